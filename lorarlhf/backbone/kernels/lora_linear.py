"""A linear layer and its LoRA in one step: the low-rank part is added to the base's product.

PEFT copies the base's result, multiplies the adapter's result by its scaling and adds the two. Each
step is a pass over an output that is far larger than the adapter, in the forward and again in the
backward. The arithmetic here is the same (arXiv 2106.09685, equation 3):
y = x W^T + scaling (x A^T) B^T, always in the dtype of the base's result.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.autograd.function import once_differentiable

from lorarlhf.backbone.kernels.dequantised import can_dequantise, input_gradient, product


def fuse_lora(model: PeftModel) -> None:
    """Give every LoRA layer on a 4-bit or plain linear layer the fused forward.

    Cases that it does not cover (8 bit, several adapters at once, dropout, variants) still take
    PEFT's own forward.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer) and can_dequantise(module.get_base_layer()):
            module.__class__ = _fused(type(module))


@contextmanager
def cast_adapters(modules: Iterable[LoraLayer], dtype: torch.dtype) -> Iterator[None]:
    """Keep the active adapter cast to `dtype` inside the context, with its scaling folded into B.

    For many small forwards without gradients, which would otherwise cast every weight each time.
    Nothing may train inside.

    Args:
        modules: the LoRA layers.
    """
    layers: list[Any] = [module for module in modules if isinstance(module, Fused)]
    try:
        for layer in layers:
            if (name := layer.only_adapter()) is not None:
                low = layer.lora_A[name].weight.detach().to(dtype)
                high = layer.lora_B[name].weight.detach() * layer.scaling[name]
                layer.__dict__["cast"] = layer._active_adapter, low.T, high.to(dtype).T
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("cast", None)


class Fused:
    """Mixed in before one of PEFT's layer classes; takes over the forwards that it covers."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        layer: Any = self
        summed = layer.__dict__.get("summed")
        if summed is not None and not (layer._disable_adapters or torch.is_grad_enabled()):
            name, weight = summed
            if name == layer._active_adapter and x.dtype == weight.dtype:
                return product(x, weight, layer.base_layer.bias)
        cast = layer.__dict__.get("cast")
        if cast is not None and not layer._disable_adapters:
            name, low, high = cast
            if name == layer._active_adapter and x.dtype == low.dtype:
                y = layer.base_layer(x)
                y.view(-1, y.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]) @ low, high)
                return y
        own: Any = super()
        if args or kwargs or layer.merged:
            return own.forward(x, *args, **kwargs)
        if layer._disable_adapters or not any(n in layer.lora_A for n in layer.active_adapters):
            return layer.base_layer(x)
        name = layer.only_adapter()
        if name is None:
            return own.forward(x)
        weights = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
        if torch.is_grad_enabled():
            return _LoraLinear.apply(x, *weights, layer.base_layer)
        return _product(x, *weights, layer.base_layer)[0]

    def only_adapter(self) -> str | None:
        """The active adapter, if there is exactly one and the fused forward covers it."""
        layer: Any = self
        names = layer.active_adapters
        if len(names) != 1 or names[0] not in layer.lora_A:
            return None
        name = names[0]
        dropout, b = layer.lora_dropout[name], layer.lora_B[name]
        drops = dropout.training and getattr(dropout, "p", 0) > 0
        known = not drops and b.bias is None and name not in layer.lora_variant
        return name if known and not layer.merged and not layer._disable_adapters else None


@cache
def _fused(kind: type) -> type:
    """PEFT's class with `Fused` mixed in. A bound method would be a reference cycle."""
    return kind if issubclass(kind, Fused) else type(f"Fused{kind.__name__}", (Fused, kind), {})


def _product(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float, base: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., in) -> (..., out), and the scaled low-rank states (n, r)."""
    y = base(x)
    rows = x.reshape(-1, x.shape[-1]).to(y.dtype)
    low = (rows @ a.to(y.dtype).T).to(y.dtype)  # autocast may choose another dtype
    if scaling != 1:
        low *= scaling
    y.view(-1, y.shape[-1]).addmm_(low, b.to(y.dtype).T)
    return y, low


class _LoraLinear(torch.autograd.Function):
    """The product with its gradients; the backward dequantises the base's weight again."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float, base: nn.Module
    ) -> torch.Tensor:
        y, low = _product(x, a, b, scaling, base)
        ctx.save_for_backward(x, a, b, low)
        ctx.scaling, ctx.base = scaling, base
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        x, a, b, low = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_low = rows @ b.to(grad.dtype)
        grad_low *= ctx.scaling
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = input_gradient(ctx.base, rows)
            grad_x.addmm_(grad_low, a.to(grad.dtype))
            grad_x = grad_x.view(x.shape).to(x.dtype)
        if ctx.needs_input_grad[1]:
            grad_a = (grad_low.T @ x.reshape(-1, x.shape[-1]).to(grad.dtype)).to(a.dtype)
        if ctx.needs_input_grad[2]:
            grad_b = (rows.T @ low.to(grad.dtype)).to(b.dtype)
        return grad_x, grad_a, grad_b, None, None
