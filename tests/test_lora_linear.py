"""The fused LoRA layer gives PEFT's own numbers and gradients, or leaves the work to PEFT."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf.backbone import roles
from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.kernels.lora_linear import Fused, cast_adapters

BITS = {4: "float32", 16: "float32", 8: "float32"}


@pytest.fixture(params=BITS)
def backbone(
    request: pytest.FixtureRequest, tiny_base: Path, randomise: Callable[..., None]
) -> Backbone:
    bits = request.param
    backbone = Backbone.load(str(tiny_base), bits=bits, compute_dtype=BITS[bits], lora_rank=4)
    backbone.add_role("value")
    for seed, role in enumerate(("policy", "value")):
        randomise(backbone, role, seed=seed)
    return backbone


def cast(backbone: Backbone) -> AbstractContextManager[None]:
    return cast_adapters(roles.lora_layers(backbone.model), backbone.compute_dtype)


def peft_only(backbone: Backbone) -> None:
    """Take the fused forwards away again."""
    for layer in roles.lora_layers(backbone.model):
        if isinstance(layer, Fused):
            layer.__class__ = type(layer).__mro__[2]


def states_and_gradients(backbone: Backbone, role: str) -> list[torch.Tensor]:
    ids = torch.arange(24).view(2, 12) % 50 + 4
    backbone.model.zero_grad(set_to_none=True)
    with backbone.role(role, train=role != "base"):
        embedded = backbone.causal.get_input_embeddings()(ids).detach().requires_grad_()
        hidden = backbone.decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state
        (hidden * torch.arange(hidden.numel()).view_as(hidden).cos()).sum().backward()
    weights = [] if role == "base" else backbone.parameters_of(role)
    grads = [p.grad for p in weights if p.grad is not None]
    assert role == "base" or len(grads) >= 2 * len(roles.lora_layers(backbone.model))
    assert embedded.grad is not None
    return [hidden.detach(), embedded.grad, *grads]


@pytest.mark.parametrize("role", ["policy", "value", "base"])
def test_states_and_gradients_are_pefts(backbone: Backbone, role: str) -> None:
    fused = states_and_gradients(backbone, role)
    peft_only(backbone)
    plain = states_and_gradients(backbone, role)
    for ours, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert all(wanted.abs().max() > 1e-3 for wanted in plain)


def test_what_is_fused(tiny_base: Path) -> None:
    for bits, fused in ((4, True), (8, False), (16, True)):
        backbone = Backbone.load(str(tiny_base), bits=bits, lora_rank=4)
        layers: list[Any] = roles.lora_layers(backbone.model)
        assert all(isinstance(layer, Fused) == fused for layer in layers), bits


def test_mixed_precision_is_pefts(tiny_base: Path, randomise: Callable[..., None]) -> None:
    """bfloat16 products of float32 adapters: equal up to bfloat16's rounding."""
    backbone = Backbone.load(str(tiny_base), bits=4, compute_dtype="bfloat16", lora_rank=4)
    randomise(backbone, "policy")
    ids = torch.arange(24).view(2, 12) % 50 + 4

    def gradients() -> torch.Tensor:
        backbone.model.zero_grad(set_to_none=True)
        with backbone.role("policy", train=True):
            hidden = backbone.forward.hidden(ids, torch.ones_like(ids))
            assert hidden.dtype == torch.bfloat16
            hidden.float()[..., ::2].square().mean().backward()
        grads = [p.grad for p in backbone.parameters_of("policy") if p.grad is not None]
        assert {grad.dtype for grad in grads} == {torch.float32}
        return torch.cat([grad.flatten() for grad in grads])

    fused = gradients()
    peft_only(backbone)
    assert torch.cosine_similarity(fused, gradients(), dim=0) > 0.995


@pytest.mark.parametrize("adapters", [["default"], ["default", "value"]])
def test_dropout_and_several_adapters_are_left_to_peft(
    tiny_base: Path, randomise: Callable[..., None], adapters: list[str]
) -> None:
    dropout = 0.5 if len(adapters) == 1 else 0.0
    backbone = Backbone.load(
        str(tiny_base), bits=16, compute_dtype="float32", lora_rank=4, lora_dropout=dropout
    )
    backbone.add_role("value")
    for role in ("policy", "value"):
        randomise(backbone, role)
    backbone.model.base_model.set_adapter(adapters)
    backbone.model.train()
    ids = torch.arange(12)[None] + 4

    def states() -> torch.Tensor:
        torch.manual_seed(0)
        with torch.no_grad():
            return backbone.decoder(input_ids=ids, use_cache=False).last_hidden_state

    ours = states()
    peft_only(backbone)
    assert torch.equal(ours, states())
    backbone.model.base_model.set_adapter(["default"])
    backbone.model.eval()
    assert not torch.allclose(ours, states())  # the dropout, or the second adapter, was there


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cast_adapters_give_the_same_states(
    tiny_base: Path, randomise: Callable[..., None], dtype: str
) -> None:
    backbone = Backbone.load(str(tiny_base), bits=4, compute_dtype=dtype, lora_rank=4)
    backbone.add_role("value")
    for seed, role in enumerate(("policy", "value")):
        randomise(backbone, role, seed=seed)
    ids = torch.arange(24).view(2, 12) % 50 + 4

    def states() -> list[torch.Tensor]:
        found = []
        with torch.no_grad():
            for role in ("policy", "value", "base"):
                with backbone.role(role):
                    found.append(backbone.decoder(input_ids=ids).last_hidden_state)
        return found

    wanted = states()
    with backbone.role("policy"), cast(backbone):
        ours = states()  # another role than the one that is cast, too
    for mine, theirs in zip(ours, wanted, strict=True):
        assert torch.equal(mine, theirs)  # the scaling is 2: nothing is rounded otherwise
    assert not any("cast" in module.__dict__ for module in backbone.model.modules())


def test_cast_weights_go_with_an_error(tiny_base: Path) -> None:
    backbone = Backbone.load(str(tiny_base), bits=4, lora_rank=4)
    layers: list[Any] = roles.lora_layers(backbone.model)
    with pytest.raises(ZeroDivisionError), backbone.role("policy"), cast(backbone):
        assert all("cast" in layer.__dict__ for layer in layers)
        raise ZeroDivisionError
    assert not any("cast" in layer.__dict__ for layer in layers)
