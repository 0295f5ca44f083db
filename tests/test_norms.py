"""Norms in one step give the family's own numbers and gradients, or are left to the family."""

import copy

import pytest
import torch
from test_trunk import FAMILIES, tiny_model
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lorarlhf.backbone import trunk
from lorarlhf.backbone.kernels.norms import FusedNorm, fuse_norms

OWN = ("gemma2", "gemma3_text")  # their norms add 1 to the weight


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_gradients_are_the_familys(family: str) -> None:
    own = tiny_model(family).requires_grad_(False)
    for module in own.modules():
        if "RMSNorm" in type(module).__name__:
            module.weight.data.uniform_(0.5, 1.5, generator=torch.Generator("cpu").manual_seed(1))
    fused = copy.deepcopy(own)
    fuse_norms(fused)
    norms = [module for module in fused.modules() if "RMSNorm" in type(module).__name__]
    assert {isinstance(norm, FusedNorm) for norm in norms} == {family not in OWN}
    found = []
    for model in (own, fused):
        ids = torch.arange(24).view(2, 12)
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        inputs = trunk.padded_inputs(ids, torch.ones_like(ids)) | {"inputs_embeds": embedded}
        del inputs["input_ids"]
        hidden = trunk.run_decoder(model.get_decoder(), inputs)
        (hidden * torch.arange(hidden.numel()).view_as(hidden).cos()).sum().backward()
        with torch.no_grad():
            assert torch.equal(trunk.run_decoder(model.get_decoder(), inputs), hidden)
        assert embedded.grad is not None
        found.append((hidden.detach(), embedded.grad))
    (wanted, wanted_grad), (ours, grad) = found
    assert torch.equal(ours, wanted)
    # By the size of each token's: the padding token's embedding is 0, where every norm's slope is
    # 1,000, and behind all of them its gradient is a number of sixteen digits.
    size = wanted_grad.abs().amax(-1, keepdim=True)
    assert size.min() > 0.1
    torch.testing.assert_close(grad / size, wanted_grad / size, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16, torch.float32])
def test_gradients_against_float64(kept: torch.dtype) -> None:
    norm = LlamaRMSNorm(48).requires_grad_(False)
    norm.weight.data.uniform_(0.5, 1.5)
    norm.to(kept)
    fuse_norms(norm)
    assert isinstance(norm, FusedNorm)
    x = torch.randn(3, 5, 48).to(kept).requires_grad_()
    above = torch.randn(3, 5, 48).to(kept)
    norm(x).backward(above)
    exact = x.detach().double().requires_grad_()
    scale = (exact.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
    (norm.weight.double() * exact * scale).backward(above.double())
    assert x.grad is not None
    assert exact.grad is not None
    near = 1e-5 if kept == torch.float32 else 0.02
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=near, atol=near)


def test_a_weight_that_trains_is_left_to_the_family() -> None:
    norm, own = LlamaRMSNorm(8), LlamaRMSNorm(8)
    fuse_norms(norm)
    x = torch.randn(3, 8)
    for module in (norm, own):
        module(x).square().sum().backward()
    assert own.weight.grad is not None
    torch.testing.assert_close(norm.weight.grad, own.weight.grad)


class RoundsLate(LlamaRMSNorm):
    """The weight before the cast: the same up to rounding, but not the same."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        wide = hidden_states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self.weight.float() * wide).to(hidden_states.dtype)


class Forgets(LlamaRMSNorm):
    """Another epsilon than it says."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.weight * hidden_states * hidden_states.square().mean(-1, True).rsqrt()


@pytest.mark.parametrize("kind", [RoundsLate, Forgets, nn.RMSNorm])
def test_other_norms_stay(kind: type) -> None:
    norm = kind(64).to(torch.bfloat16)
    fuse_norms(norm)
    assert type(norm) is kind
