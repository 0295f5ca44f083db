"""Weights that are kept dequantised are bitsandbytes' own numbers, and are gone afterwards."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.kernels import dequantised
from lorarlhf.backbone.kernels.dequantised import CACHED, DequantisedLinear

PLENTY = 1 << 30
PLAIN = {True: "packed_forward", False: "dequantised"}


@pytest.fixture(params=["float32", "bfloat16"])
def backbone(
    request: pytest.FixtureRequest, tiny_base: Path, randomise: Callable[..., None]
) -> Backbone:
    backbone = Backbone.load(str(tiny_base), bits=4, compute_dtype=request.param, lora_rank=4)
    randomise(backbone, "policy")
    return backbone


def kept(backbone: Backbone) -> list[Any]:
    return [module for module in backbone.model.modules() if isinstance(module, DequantisedLinear)]


def four_bit(layer: Any) -> list[Any]:
    names = ("Linear4bit", "DequantisedLinear4bit")
    return [module for module in layer.modules() if type(module).__name__ in names]


def states_and_gradients(backbone: Backbone) -> Iterator[torch.Tensor]:
    """From the embeddings up: also through layers that carry no adapter."""
    ids = torch.arange(24).view(2, 12) % 50 + 4
    backbone.model.zero_grad(set_to_none=True)
    with torch.no_grad(), backbone.role("policy"):
        yield backbone.forward.hidden(ids, torch.ones_like(ids))
    with backbone.role("policy", train=True):
        embedded = backbone.causal.get_input_embeddings()(ids).detach().requires_grad_()
        with backbone.forward._mixed_precision():
            hidden = backbone.decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state
        (hidden.float() * torch.arange(hidden.numel()).view_as(hidden).cos()).sum().backward()
    yield hidden.detach()
    for tensor in (embedded, *backbone.parameters_of("policy")):
        assert tensor.grad is not None
        assert tensor.grad.abs().max() > 0
        yield tensor.grad


@pytest.mark.parametrize("backward", [False, True])
def test_no_number_changes(backbone: Backbone, backward: bool) -> None:
    wanted = list(states_and_gradients(backbone))
    with backbone.dequantised(PLENTY, backward=backward):
        assert len(kept(backbone)) == len(four_bit(backbone.decoder))
        names = {name for module in kept(backbone) for name in module.__dict__} & set(CACHED)
        packs = "packed_forward" in names
        assert packs == dequantised._packs(backbone.compute_dtype)
        assert names == (
            {"packed_forward", "packed_backward"} if packs and backward else {PLAIN[packs]}
        )
        ours = list(states_and_gradients(backbone))
    for mine, theirs in zip(ours, wanted, strict=True):
        if packs:  # oneDNN adds up in an order of its own choice
            near = 0.02 * theirs.abs().max().item()
            torch.testing.assert_close(mine, theirs, rtol=0.02, atol=near)
        else:
            assert torch.equal(mine, theirs)


def test_where_nothing_packs_no_number_changes(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dequantised, "_packs", lambda dtype: False)
    wanted = list(states_and_gradients(backbone))
    with backbone.dequantised(PLENTY, backward=True):
        assert all("dequantised" in module.__dict__ for module in kept(backbone))
        ours = list(states_and_gradients(backbone))
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))


def test_everything_is_as_it_was_afterwards(backbone: Backbone) -> None:
    before = {name: type(module) for name, module in backbone.model.named_modules()}
    upper = len(backbone.decoder.layers) - 1
    with (
        pytest.raises(ZeroDivisionError),
        backbone.dequantised(PLENTY, upper, backward=True),
        backbone.dequantised(PLENTY),
    ):
        assert len(kept(backbone)) == len(four_bit(backbone.decoder))
        raise ZeroDivisionError
    assert {name: type(module) for name, module in backbone.model.named_modules()} == before
    names = {name for module in backbone.model.modules() for name in module.__dict__}
    assert not set(CACHED) & names


def test_an_inner_one_leaves_what_an_outer_one_keeps(backbone: Backbone) -> None:
    upper = len(backbone.decoder.layers) - 1
    with backbone.dequantised(PLENTY, upper, backward=True):
        outer = kept(backbone)
        with backbone.dequantised(PLENTY):
            assert len(kept(backbone)) > len(outer)
        assert kept(backbone) == outer
        assert all(set(CACHED) & set(module.__dict__) for module in outer)


def test_as_many_of_the_last_layers_as_there_is_room_for(backbone: Backbone) -> None:
    layers = backbone.decoder.layers
    size = sum(module.weight.quant_state.shape.numel() for module in four_bit(layers[-1]))
    room = 2 * size * backbone.compute_dtype.itemsize
    both = room * (
        2 if dequantised._packs(backbone.compute_dtype) else 1
    )  # for forward and backward
    for given, count, backward in (
        *((room, 2, False), (room - 1, 1, False), (0, 0, False)),
        *((both, 2, True), (both - 1, 1, True)),
    ):
        with backbone.dequantised(given, backward=backward):
            wanted = [x for layer in layers[len(layers) - count :] for x in four_bit(layer)]
            assert kept(backbone) == wanted
    with backbone.dequantised(PLENTY, len(layers) - 1):
        assert kept(backbone) == four_bit(layers[-1])


def test_other_precisions_have_nothing_to_keep(tiny_base: Path) -> None:
    backbone = Backbone.load(str(tiny_base), bits=16, compute_dtype="float32")
    with backbone.dequantised(PLENTY):
        assert not kept(backbone)
