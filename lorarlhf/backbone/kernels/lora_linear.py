"""A linear layer and its LoRA in one step: the base's product, the low-rank part added in place.

PEFT adds the two as tensors of their own: it copies the base's result, multiplies the adapter's by
its scaling and adds them, each a pass over an output that is far larger than the adapter itself,
and again on the way back. The arithmetic is the same (arXiv 2106.09685, equation 3):
y = x W^T + scaling (x A^T) B^T, in the dtype of the base's result also where nothing trains.
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

from lorarlhf.backbone.kernels.dequantised import can_dequantise, grad_product


def fuse_lora(model: PeftModel) -> None:
    """Give every LoRA layer on a 4-bit or plain linear layer the fused forward.

    Whatever it does not know (8 bit, several adapters at once, dropout, variants) takes PEFT's own.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer) and can_dequantise(module.get_base_layer()):
            module.__class__ = _fused(type(module))


@contextmanager
def ready_adapters(modules: Iterable[LoraLayer], dtype: torch.dtype) -> Iterator[None]:
    """Hold the active adapter in the dtype of the products inside, its scaling in B.

    For many small forwards without gradient, each of which would cast every weight anew and ask
    each layer what it has to do. Nothing may train inside.
    """
    layers: list[Any] = [module for module in modules if isinstance(module, Fused)]
    try:
        for layer in layers:
            if (name := layer.only_adapter()) is not None:
                low = layer.lora_A[name].weight.detach().to(dtype)
                high = layer.lora_B[name].weight.detach() * layer.scaling[name]
                layer.__dict__["ready"] = layer._active_adapter, low.T, high.to(dtype).T
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("ready", None)


class Fused:
    """Stands before one of PEFT's layer classes and takes the forward that it knows."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        layer: Any = self
        ready = layer.__dict__.get("ready")
        if ready is not None and not layer._disable_adapters:
            name, low, high = ready
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
        """The one adapter that is active, where it is of the kind that is known here."""
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
    """PEFT's class with `Fused` before it: a class, as a bound method would be a circle."""
    return kind if issubclass(kind, Fused) else type(f"Fused{kind.__name__}", (Fused, kind), {})


def _product(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float, base: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., in) -> (..., out), and the scaled low-rank states (n, r)."""
    y = base(x)
    rows = x.reshape(-1, x.shape[-1]).to(y.dtype)
    low = (rows @ a.to(y.dtype).T).to(y.dtype)  # autocast may have its own idea
    if scaling != 1:
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
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        x, a, b, low = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_low = rows @ b.to(grad.dtype)
        grad_low *= ctx.scaling
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_product(ctx.base, rows)
            grad_x.addmm_(grad_low, a.to(grad.dtype))
            grad_x = grad_x.view(x.shape).to(x.dtype)
        if ctx.needs_input_grad[1]:
            grad_a = (grad_low.T @ x.reshape(-1, x.shape[-1]).to(grad.dtype)).to(a.dtype)
        if ctx.needs_input_grad[2]:
            grad_b = (rows.T @ low.to(grad.dtype)).to(b.dtype)
        return grad_x, grad_a, grad_b, None, None
