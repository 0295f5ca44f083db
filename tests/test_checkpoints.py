"""What checkpoints give back to optimizers."""

from typing import Any

import pytest
import torch

from lorarlhf.runtime.checkpoints import fill_optimizer, optimizer_tensors

KINDS: list[dict[str, Any]] = [{"fused": True}, {"capturable": True}, {"foreach": True}, {}]


def trained(device: str, **kind: Any) -> tuple[torch.optim.AdamW, list[torch.Tensor]]:
    weights = [torch.ones(3, device=device), torch.ones(2, 2, device=device)]
    return torch.optim.AdamW([{"params": [w]} for w in weights], lr=0.1, **kind), weights


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_counted_where_the_kernel_looks_for_them(kind: dict[str, Any]) -> None:
    source, weights = trained("cpu")
    for weight in weights:
        weight.grad = torch.full_like(weight, 0.5)
    source.step()
    tensors = optimizer_tensors("own", source)
    assert {tensor.device.type for tensor in tensors.values()} == {"cpu"}
    # The device "meta" stands for a card; torch's own loading says where each tensor belongs.
    wanted, _ = trained("meta", **kind)
    saved = source.state_dict()
    saved["param_groups"] = wanted.state_dict()["param_groups"]
    wanted.load_state_dict(saved)
    ours, places = trained("meta", **kind)
    fill_optimizer("own", ours, tensors)
    for place, theirs in zip(places, wanted.state.values(), strict=True):
        found = ours.state[place]
        assert found.keys() == theirs.keys()
        for key, value in found.items():
            assert (value.device, value.dtype) == (theirs[key].device, theirs[key].dtype), key
    device = "meta" if {"fused", "capturable"} & kind.keys() else "cpu"
    assert ours.state[places[0]]["step"].device.type == device


@pytest.mark.parametrize("kind", KINDS[:1] + KINDS[2:])
def test_a_filled_optimizer_takes_the_step_of_its_source(kind: dict[str, Any]) -> None:
    source, weights = trained("cpu", **kind)
    for weight in weights:
        weight.grad = torch.full_like(weight, 0.5)
    source.step()
    other, copies = trained("cpu", **kind)
    for weight, copy in zip(weights, copies, strict=True):
        copy.data.copy_(weight)
        copy.grad, weight.grad = -torch.ones_like(copy), -torch.ones_like(weight)
    fill_optimizer("own", other, optimizer_tensors("own", source))
    source.step()
    other.step()
    assert all(torch.equal(a, b) for a, b in zip(weights, copies, strict=True))
