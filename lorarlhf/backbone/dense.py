"""Weights kept dequantised through a phase that reads each of them many times.

On a CPU turning 4 bit into 16 takes a fifth of the time of a sampled token and a twentieth of a
training pass. The kept weights are the numbers that bitsandbytes multiplies with, bit for bit.
Cards dequantise faster than they multiply, and have less memory to spare.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn


@contextmanager
def kept_dense(layers: Iterable[nn.Module], room: int) -> Iterator[None]:
    """Keep the 4-bit weights in these layers dequantised inside, the last layers first.

    Only on the CPU, and only as many whole layers as fit into `room` bytes.
    """
    chosen: list[Any] = []
    for layer in reversed(list(layers)):
        weights = [module for module in layer.modules() if _is_4bit(module)]
        room -= sum(_size(module) for module in weights)
        if room < 0:
            break
        chosen = weights + chosen
    # All in one piece, which goes back to the system as soon as it is let go.
    piece = torch.empty(sum(map(_size, chosen)), dtype=torch.uint8, device="cpu")
    begin = 0
    kinds: list[type] = [type(module) for module in chosen]
    try:
        for module, kind in zip(chosen, kinds, strict=True):
            part = piece[begin : begin + _size(module)]
            begin += len(part)
            weight = dense_weight(module)
            module.__dict__["dense"] = part.view(weight.dtype).view(weight.shape).copy_(weight)
            module.__class__ = _kept(kind)
        yield
    finally:
        for module, kind in zip(chosen, kinds, strict=True):
            module.__class__ = kind
            module.__dict__.pop("dense", None)


def is_dense(base: nn.Module) -> bool:
    """Whether `dense_weight` knows this layer."""
    return type(base).__name__ == "Linear4bit" or type(base) is nn.Linear


def dense_weight(base: Any) -> torch.Tensor:
    """The weight (out, in) of a linear layer, dequantised from 4 bit."""
    if type(base) is nn.Linear:
        return base.weight
    if isinstance(base, Kept):
        return base.__dict__["dense"]
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(base.weight.data, base.weight.quant_state)


class Kept:
    """Stands before bitsandbytes' class while a layer's dequantised weight is there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        layer: Any = self
        weight = layer.__dict__["dense"]
        if x.dtype != weight.dtype or (x.requires_grad and torch.is_grad_enabled()):
            own: Any = super()
            return own.forward(x)  # it has a backward that keeps nothing but 4 bit
        return nn.functional.linear(x, weight, layer.bias)


@cache
def _kept(kind: type) -> type:
    return type(f"Kept{kind.__name__}", (Kept, kind), {})


def _is_4bit(module: Any) -> bool:
    if type(module).__name__ != "Linear4bit" or module.weight.device.type != "cpu":
        return False
    state = getattr(module.weight, "quant_state", None)
    return state is not None and module.compute_dtype in (None, state.dtype)


def _size(module: Any) -> int:
    state = module.weight.quant_state
    return state.shape.numel() * state.dtype.itemsize
