"""RMSNorm in one step, with a backward that keeps only the input.

Families write it as eight steps in float32, for which autograd keeps four float32 tensors. The
forward here takes the same steps, to the last bit; the backward is the closed form (arXiv
1910.07467, equation 4).
"""

import copy
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable


def fuse_norms(model: nn.Module) -> None:
    """Give the fused forward to those norms that compute the same numbers; others keep their own.

    These are Llama's and similar ones (Qwen, Mistral, Phi 3, SmolLM3): weight * x / rms(x), with
    the weight applied after the cast to x's dtype. Gemma's adds 1 to the weight and is left alone.
    """
    known: dict[type, bool] = {}
    for module in model.modules():
        kind: type = type(module)
        if "RMSNorm" in kind.__name__ and kind not in known:
            known[kind] = _same_numbers(module)
        if known.get(kind):
            module.__class__ = _fused(kind)


class FusedNorm:
    """Mixed in before a family's own norm class."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., H) -> (..., H)."""
        layer: Any = self
        if layer.weight.requires_grad:
            own: Any = super()
            return own.forward(hidden_states)
        if torch.is_grad_enabled() and hidden_states.requires_grad:
            return _RMSNorm.apply(hidden_states, layer.weight, layer.variance_epsilon)
        return _norm(hidden_states, layer.weight, layer.variance_epsilon)[0]


@cache
def _fused(kind: type) -> type:
    """The family's class with `FusedNorm` mixed in."""
    return type(f"Fused{kind.__name__}", (FusedNorm, kind), {})


def _norm(
    x: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., H) -> (..., H), and 1 / rms (..., 1) in float32."""
    wide = x.float()
    scale = wide.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
    return weight * (wide * scale).to(x.dtype), scale


class _RMSNorm(torch.autograd.Function):
    """The norm with its gradient in x. The weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        y, scale = _norm(x, weight, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        x, weight, scale = ctx.saved_tensors
        normed = x.float() * scale
        grad = (grad * weight).float()
        along = (grad * normed).mean(-1, keepdim=True)
        grad_x = grad.addcmul_(normed, along, value=-1).mul_(scale)
        return grad_x.to(x.dtype), None, None


def _same_numbers(module: Any) -> bool:
    """Whether a norm gives exactly `_norm`'s numbers on a few values in two dtypes."""
    weight = getattr(module, "weight", None)
    if weight is None or not hasattr(module, "variance_epsilon"):
        return False
    trial, size = copy.deepcopy(module).requires_grad_(False), weight.shape[-1]
    places = torch.arange(8 * size, dtype=torch.float32, device=weight.device)
    trial.weight.data.copy_(1 + places[:size].cos() / 2)
    sizes = torch.logspace(-4, 1, 8, device=weight.device)[:, None]  # small values show the epsilon
    for dtype in (weight.dtype, torch.float32):
        x = (sizes * places.view(8, size).sin()).to(dtype)
        if not torch.equal(trial(x), _norm(x, trial.weight, trial.variance_epsilon)[0]):
            return False
    return True
