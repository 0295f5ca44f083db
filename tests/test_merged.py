"""Sampling from weights with the active adapter added: the same numbers but for rounding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_base

from lorarlhf.backbone import generation, roles
from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.kernels import dequantised
from lorarlhf.backbone.kernels.dequantised import numbers_of
from lorarlhf.backbone.kernels.merged import keep_merged

ALL = 10**12
ROLES = ("policy", "value", "base")
PROMPTS = [[5, 6, 7, 8], [9, 10, 11], [12, 13]]


@pytest.fixture(autouse=True)
def small_weights_pack_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dequantised, "SMALL", 0)


def loaded(base: Path, randomise: Callable[..., None], **named: Any) -> Backbone:
    backbone = Backbone.load(str(base), lora_rank=4, **({"bits": 4} | named))
    backbone.add_role("value")
    for seed, role in enumerate(("policy", "value")):
        randomise(backbone, role, seed=seed)
    return backbone


def layers_of(backbone: Backbone) -> list[Any]:
    return list(roles.lora_layers(backbone.model))


def merged(backbone: Backbone) -> list[Any]:
    return [layer for layer in layers_of(backbone) if "summed" in layer.__dict__]


@torch.no_grad()
def states(backbone: Backbone) -> list[torch.Tensor]:
    ids = torch.arange(24).view(2, 12) % 50 + 4
    found = []
    for role in ROLES:
        with backbone.role(role):
            found.append(backbone.decoder(input_ids=ids).last_hidden_state.float())
    return found


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gemma2"])
def test_the_role_s_states_are_the_adapter_s(
    tmp_path: Path, randomise: Callable[..., None], family: str, dtype: str, bits: int
) -> None:
    """Also with biases (qwen2) and with several projections in one (phi3)."""
    base = write_base(tmp_path / family, family=family)
    backbone = loaded(base, randomise, bits=bits, compute_dtype=dtype)
    wanted = states(backbone)
    with backbone.role("policy"), generation.weights_for_sampling(backbone):
        assert merged(backbone) == layers_of(backbone)
        ours = states(backbone)  # of other roles, too, which nothing was merged for
    near = 1e-5 if dtype == "float32" else 0.05
    for mine, theirs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=near, atol=near * theirs.abs().max().item())
    assert (wanted[0] - wanted[2]).abs().max() > 0.1  # the adapter does something
    assert all(torch.equal(a, b) for a, b in zip(states(backbone), wanted, strict=True))


def test_in_8_bit_nothing_is_merged(tiny_base: Path, randomise: Callable[..., None]) -> None:
    backbone = loaded(tiny_base, randomise, bits=8)
    with backbone.role("policy"), generation.weights_for_sampling(backbone):
        assert merged(backbone) == []


def test_gradients_are_the_adapter_s_own(tiny_base: Path, randomise: Callable[..., None]) -> None:
    backbone = loaded(tiny_base, randomise, compute_dtype="float32")
    ids = torch.arange(12)[None] + 4

    def gradients() -> list[torch.Tensor]:
        backbone.model.zero_grad(set_to_none=True)
        with backbone.role("policy", train=True):
            backbone.forward.hidden(ids, torch.ones_like(ids)).square().sum().backward()
        return [p.grad for p in backbone.parameters_of("policy") if p.grad is not None]

    wanted = gradients()
    with backbone.role("policy"), generation.weights_for_sampling(backbone):
        ours = gradients()
    assert len(ours) == len(wanted) > 0
    for mine, theirs in zip(ours, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_sum_is_the_formula(tiny_base: Path, randomise: Callable[..., None]) -> None:
    backbone = loaded(tiny_base, randomise, bits=16, compute_dtype="float32", lora_alpha=8)
    layer = layers_of(backbone)[0]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    wanted = layer.base_layer.weight + 2 * b @ a
    x = torch.eye(wanted.shape[1])
    with torch.no_grad(), backbone.role("policy"), keep_merged([layer], ALL):
        torch.testing.assert_close(layer(x), wanted.T, rtol=1e-5, atol=1e-6)


def test_answers_are_those_of_the_adapter(
    tiny_base: Path, randomise: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = loaded(tiny_base, randomise, compute_dtype="float32")

    def answers() -> list[list[int]]:
        with backbone.role("policy"):
            found = generation.generate_encoded(backbone, PROMPTS, max_new_tokens=20)
        return [answer.ids for answer in found]

    ours = answers()
    monkeypatch.setattr(generation, "keep_merged", lambda layers, room: keep_merged([], room))
    assert ours == answers()


def test_as_many_of_the_last_layers_as_there_is_room_for(
    tiny_base: Path, randomise: Callable[..., None]
) -> None:
    backbone = loaded(tiny_base, randomise)
    layers = layers_of(backbone)
    size = [numbers_of(layer.get_base_layer()) for layer in layers]
    with backbone.role("policy"), keep_merged(layers, sum(size[-3:]) + 1) as left:
        assert (merged(backbone), left) == (layers[-3:], 1)
        # Of the others the plain weights are kept, and of these not.
        with backbone.dequantised():
            kept = [layer for layer in layers if hasattr(layer.base_layer, "packed_forward")]
            assert kept == layers[:-3] or not dequantised._can_pack(backbone.compute_dtype)
    with backbone.role("base"), keep_merged(layers, ALL) as left:
        assert (merged(backbone), left) == ([], ALL)


def test_everything_is_as_it_was_afterwards(
    tiny_base: Path, randomise: Callable[..., None]
) -> None:
    backbone = loaded(tiny_base, randomise)
    with (
        pytest.raises(ZeroDivisionError),
        backbone.role("policy"),
        generation.weights_for_sampling(backbone),
    ):
        raise ZeroDivisionError
    assert not any("summed" in module.__dict__ for module in backbone.model.modules())


def test_inside_a_phase_that_trains(tiny_base: Path, randomise: Callable[..., None]) -> None:
    """PPO keeps the layers that train ready for the backward while it samples."""
    backbone = loaded(tiny_base, randomise, compute_dtype="float32")
    wanted = states(backbone)
    with backbone.dequantised(backbone.split, backward=True):
        with backbone.role("policy"), generation.weights_for_sampling(backbone):
            assert merged(backbone) == layers_of(backbone)
            ours = states(backbone)
        after = states(backbone)
    for mine in (ours, after):
        for one, theirs in zip(mine, wanted, strict=True):
            torch.testing.assert_close(one, theirs, rtol=1e-4, atol=1e-4)
