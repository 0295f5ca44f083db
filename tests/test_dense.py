"""Weights that are kept dequantised are bitsandbytes' own numbers, and are gone afterwards."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.kernels import dequantised
from lorarlhf.backbone.kernels.dequantised import CACHED, DequantisedLinear
from lorarlhf.ppo.objective import token_logprobs

PLAIN = {True: "packed_forward", False: "dequantised"}


@pytest.fixture(autouse=True)
def small_weights_pack_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dequantised, "SMALL", 0)


@pytest.fixture(params=["float32", "bfloat16"])
def backbone(
    request: pytest.FixtureRequest, tiny_base: Path, randomise: Callable[..., None]
) -> Backbone:
    backbone = Backbone.load(str(tiny_base), bits=4, compute_dtype=request.param, lora_rank=4)
    randomise(backbone, "policy")
    return backbone


def kept(backbone: Backbone) -> list[Any]:
    """The layers' linear modules whose weight is kept; the LM head is asked for by `head`."""
    return [m for m in backbone.decoder.modules() if isinstance(m, DequantisedLinear)]


def head(backbone: Backbone) -> Any:
    return backbone.causal.get_output_embeddings()


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
    with backbone.dequantised(backward=backward):
        assert len(kept(backbone)) == len(four_bit(backbone.decoder))
        names = {name for module in kept(backbone) for name in module.__dict__} & set(CACHED)
        packs = "packed_forward" in names
        assert packs == dequantised._can_pack(backbone.compute_dtype)
        assert names == (
            {"packed_forward", "packed_backward"} if packs and backward else {PLAIN[packs]}
        )
        ours = list(states_and_gradients(backbone))
    for mine, theirs in zip(ours, wanted, strict=True):
        if packs:  # oneDNN adds up in an order of its own choice
            near = 1e-5 if backbone.compute_dtype == torch.float32 else 0.02
            largest = theirs.abs().max().item()
            torch.testing.assert_close(mine, theirs, rtol=near, atol=near * largest)
        else:
            assert torch.equal(mine, theirs)


def test_where_nothing_packs_no_number_changes(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dequantised, "_can_pack", lambda dtype: False)
    wanted = list(states_and_gradients(backbone))
    with backbone.dequantised(backward=True):
        assert all("dequantised" in module.__dict__ for module in kept(backbone))
        ours = list(states_and_gradients(backbone))
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))


def test_small_weights_in_float32_are_not_packed(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone.load(str(tiny_base), bits=4, compute_dtype="float32")
    small = backbone.hidden_size**2
    monkeypatch.setattr(dequantised, "SMALL", small + 1)
    with backbone.dequantised(backward=True):
        for module in kept(backbone):
            numbers = module.in_features * module.out_features
            packed = {"packed_forward", "packed_backward"} <= set(module.__dict__)
            assert packed == (numbers > small and dequantised._can_pack(torch.float32))
            assert packed != ("dequantised" in module.__dict__)


def test_everything_is_as_it_was_afterwards(backbone: Backbone) -> None:
    before = {name: type(module) for name, module in backbone.model.named_modules()}
    upper = len(backbone.decoder.layers) - 1
    with (
        pytest.raises(ZeroDivisionError),
        backbone.dequantised(upper, backward=True),
        backbone.dequantised(),
    ):
        assert len(kept(backbone)) == len(four_bit(backbone.decoder))
        raise ZeroDivisionError
    assert {name: type(module) for name, module in backbone.model.named_modules()} == before
    names = {name for module in backbone.model.modules() for name in module.__dict__}
    assert not set(CACHED) & names


def test_an_inner_one_leaves_what_an_outer_one_keeps(backbone: Backbone) -> None:
    upper = len(backbone.decoder.layers) - 1
    with backbone.dequantised(upper, backward=True):
        outer = kept(backbone)
        with backbone.dequantised():
            assert len(kept(backbone)) > len(outer)
        assert kept(backbone) == outer
        assert all(set(CACHED) & set(module.__dict__) for module in outer)


def test_as_many_of_the_last_layers_as_there_is_room_for(backbone: Backbone) -> None:
    layers = backbone.decoder.layers
    size = sum(module.weight.quant_state.shape.numel() for module in four_bit(layers[-1]))
    room = 2 * size
    both = room * (2 if dequantised._can_pack(backbone.compute_dtype) else 1)
    for given, count, backward in (
        *((room, 2, False), (room - 1, 1, False), (0, 0, False)),
        *((both, 2, True), (both - 1, 1, True)),
    ):
        with backbone.dequantised(backward=backward, max_weights=given):
            wanted = [x for layer in layers[len(layers) - count :] for x in four_bit(layer)]
            assert kept(backbone) == wanted
    with backbone.dequantised(len(layers) - 1):
        assert kept(backbone) == four_bit(layers[-1])


@pytest.mark.parametrize("bits", [4, 16])
def test_the_head_is_packed_in_float32_alone(tiny_base: Path, bits: int) -> None:
    for dtype in ("float32", "bfloat16"):
        backbone = Backbone.load(str(tiny_base), bits=bits, compute_dtype=dtype)
        packs = dtype == "float32" and dequantised._can_pack(torch.float32)
        with backbone.dequantised():
            assert isinstance(head(backbone), DequantisedLinear) == packs
            assert backbone.lm_head.products is None
            assert bool(kept(backbone)) == (
                bits == 4 or dequantised._can_pack(backbone.compute_dtype)
            )
        with backbone.dequantised(backward=True):
            assert (backbone.lm_head.products is not None) == packs
        assert type(head(backbone)) is torch.nn.Linear and backbone.lm_head.products is None


@pytest.mark.parametrize("softcap", [None, 20.0])
def test_log_probabilities_are_the_plain_head_s(tiny_base: Path, softcap: float | None) -> None:
    backbone = Backbone.load(str(tiny_base), bits=4, compute_dtype="float32")
    weight = backbone.lm_head.weight
    targets = torch.arange(300) % len(weight)
    rows = torch.randn(300, weight.shape[1], generator=torch.Generator().manual_seed(0))

    def results() -> list[torch.Tensor]:
        hidden = rows.clone().requires_grad_()
        products = backbone.lm_head.products
        found = token_logprobs(hidden, weight, targets, 0.7, softcap, products=products)
        (found[0] * torch.arange(300).cos()).sum().backward()
        assert hidden.grad is not None
        return [*(x.detach() for x in found), hidden.grad]

    plain = results()
    with backbone.dequantised(backward=True):
        assert (backbone.lm_head.products is not None) == dequantised._can_pack(torch.float32)
        for mine, theirs in zip(results(), plain, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
