"""A linear layer and its LoRA in one step: the base's product, the low-rank part added in place.

PEFT adds the two as tensors of their own: it copies the base's result, multiplies the adapter's by
its scaling and adds them, each a pass over an output that is far larger than the adapter itself,
and again on the way back. The arithmetic is the same (arXiv 2106.09685, equation 3):
y = x W^T + scaling (x A^T) B^T.
"""

from types import MethodType
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn


def fuse_lora(model: PeftModel) -> None:
    """Give every LoRA layer on a 4-bit or plain linear layer the fused forward.

    Whatever it does not know (8 bit, several adapters at once, dropout, variants) takes PEFT's own.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer) and dense_weight(module.get_base_layer()) is not None:
            module.forward = MethodType(_forward, module)  # type: ignore[attr-defined, method-assign]


def dense_weight(base: nn.Module) -> torch.Tensor | None:
    """The weight (out, in) of a linear layer, dequantised from 4 bit; None for other layers."""
    if type(base).__name__ == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        weight: Any = base.weight
        return dequantize_4bit(weight.data, weight.quant_state)
    return base.weight if type(base) is nn.Linear else None


def _forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if layer._disable_adapters and not layer.merged and not kwargs:
        return layer.base_layer(x)
    names = layer.active_adapters
    if args or kwargs or len(names) != 1 or layer.merged:
        return type(layer).forward(layer, x, *args, **kwargs)
    (name,) = names
    if name not in layer.lora_A:
        return layer.base_layer(x)
    dropout, b = layer.lora_dropout[name], layer.lora_B[name]
    drops = dropout.training and getattr(dropout, "p", 0) > 0
    if drops or b.bias is not None or name in layer.lora_variant:
        return type(layer).forward(layer, x)
    weights = layer.lora_A[name].weight, b.weight
    if torch.is_grad_enabled():
        return _LoraLinear.apply(x, *weights, layer.scaling[name], layer.base_layer)
    return _product(x, *weights, layer.scaling[name], layer.base_layer)[0]


def _product(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float, base: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., in) -> (..., out), and the scaled low-rank states (n, r)."""
    y = base(x)
    rows = x.reshape(-1, x.shape[-1]).to(y.dtype)
    low = (rows @ a.to(y.dtype).T).to(y.dtype)  # autocast may have its own idea
    low *= scaling
    y.view(-1, y.shape[-1]).addmm_(low, b.to(y.dtype).T)
    return y, low


class _LoraLinear(torch.autograd.Function):
    """The product with its gradients; the base's weight is dequantised anew for the backward."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float, base: nn.Module
    ) -> torch.Tensor:
        y, low = _product(x, a, b, scaling, base)
        ctx.save_for_backward(x, a, b, low)
        ctx.scaling, ctx.base = scaling, base
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        x, a, b, low = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_low = rows @ b.to(grad.dtype)
        grad_low *= ctx.scaling
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            weight = dense_weight(ctx.base)
            assert weight is not None
            grad_x = rows @ weight.to(grad.dtype)
            grad_x.addmm_(grad_low, a.to(grad.dtype))
            grad_x = grad_x.view(x.shape).to(x.dtype)
        if ctx.needs_input_grad[1]:
            grad_a = (grad_low.T @ x.reshape(-1, x.shape[-1]).to(grad.dtype)).to(a.dtype)
        if ctx.needs_input_grad[2]:
            grad_b = (rows.T @ low.to(grad.dtype)).to(b.dtype)
        return grad_x, grad_a, grad_b, None, None
