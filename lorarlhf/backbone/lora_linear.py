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

from lorarlhf.backbone.dense import grad_product, is_dense


def fuse_lora(model: PeftModel) -> None:
    """Give every LoRA layer on a 4-bit or plain linear layer the fused forward.

    Whatever it does not know (8 bit, several adapters at once, dropout, variants) takes PEFT's own.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer) and is_dense(module.get_base_layer()):
            module.__class__ = _fused(type(module))


@contextmanager
def ready_adapters(modules: Iterable[LoraLayer], dtype: torch.dtype) -> Iterator[None]:
    """Hold the active adapter in the dtype of the products inside, its scaling in B.

    For many small forwards without gradient, each of which would cast every weight anew. Nothing
    may train inside.
    """
    layers: list[Any] = [module for module in modules if isinstance(module, Fused)]
    try:
        for layer in layers:
            layer.__dict__["ready"] = {
                name: (
                    layer.lora_A[name].weight.detach().to(dtype),
                    (layer.lora_B[name].weight.detach() * layer.scaling[name]).to(dtype),
                    1.0,
                )
                for name in layer.active_adapters
                if name in layer.lora_A
            }
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("ready", None)


class Fused:
    """Stands before one of PEFT's layer classes and takes the forward that it knows."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        layer: Any = self
        own: Any = super()
        names = layer.active_adapters
        if args or kwargs or layer.merged:
            return own.forward(x, *args, **kwargs)
        if layer._disable_adapters or not any(name in layer.lora_A for name in names):
            return layer.base_layer(x)
        if len(names) != 1:
            return own.forward(x)
        (name,) = names
        dropout, b = layer.lora_dropout[name], layer.lora_B[name]
        drops = dropout.training and getattr(dropout, "p", 0) > 0
        if drops or b.bias is not None or name in layer.lora_variant:
            return own.forward(x)
        weights = layer.lora_A[name].weight, b.weight, layer.scaling[name]
        if torch.is_grad_enabled():
            return _LoraLinear.apply(x, *weights, layer.base_layer)
        low, high, scaling = layer.__dict__.get("ready", {}).get(name, weights)
        return _product(x, low, high, scaling, layer.base_layer)[0]


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
