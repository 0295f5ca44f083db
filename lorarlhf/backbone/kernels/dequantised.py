"""Weights kept dequantised through a phase that reads each of them many times.

On a CPU turning 4 bit into 16 takes a fifth of the time of a sampled token and a twentieth of a
training pass. The kept weights are the numbers that bitsandbytes multiplies with, bit for bit.
Cards dequantise faster than they multiply, and have less memory to spare.

In bfloat16 they are packed besides: oneDNN would otherwise bring each weight into the order of its
kernel for every product, which takes longer than a product of few rows and a sixth of one of 800.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

ROWS = 16
"""How many rows packed weights are laid out for; AVX512's layout is the same for any number."""
KEPT = ("dense", "forth", "back")
"""What a module keeps: its weight as it is, or packed for `x W^T` and for `grad W`."""


@contextmanager
def keep_dequantised(
    layers: Iterable[nn.Module], room: int, *, backward: bool = False
) -> Iterator[None]:
    """Keep the 4-bit weights in these layers dequantised inside, the last layers first.

    Only on the CPU, and only as many whole layers as fit into `room` bytes. Weights that an outer
    one keeps stay as they are.

    Args:
        backward: keep what `grad_product` needs, too.
    """
    chosen: list[Any] = []
    for layer in reversed(list(layers)):
        weights = [module for module in layer.modules() if _is_4bit(module)]
        room -= sum(_size(module, backward) for module in weights)
        if room < 0:
            break
        chosen = weights + chosen
    plain = [module for module in chosen if not _packs(module.weight.quant_state.dtype)]
    # All in one piece, which goes back to the system as soon as it is let go.
    sizes = [_size(module, backward) for module in plain]
    piece = torch.empty(sum(sizes), dtype=torch.uint8, device="cpu")
    kinds: list[type] = [type(module) for module in chosen]
    try:
        for module, part in zip(plain, piece.split(sizes), strict=True):
            weight = dequantised_weight(module)
            module.__dict__["dense"] = part.view(weight.dtype).view(weight.shape).copy_(weight)
        for module, kind in zip(chosen, kinds, strict=True):
            if "dense" not in module.__dict__:
                weight = dequantised_weight(module)
                module.__dict__["forth"] = _packed(weight)
                if backward:
                    module.__dict__["back"] = _packed(weight.T.contiguous())
            module.__class__ = _kept(kind)
        yield
    finally:
        for module, kind in zip(chosen, kinds, strict=True):
            module.__class__ = kind
            for name in KEPT:
                module.__dict__.pop(name, None)


def can_dequantise(base: nn.Module) -> bool:
    """Whether `dense_weight` knows this layer."""
    return type(base).__name__ == "Linear4bit" or type(base) is nn.Linear


def dequantised_weight(base: Any) -> torch.Tensor:
    """The weight (out, in) of a linear layer, dequantised from 4 bit."""
    if type(base) is nn.Linear:
        return base.weight
    if "dense" in base.__dict__:
        return base.__dict__["dense"]
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(base.weight.data, base.weight.quant_state)


def grad_product(base: Any, grad: torch.Tensor) -> torch.Tensor:
    """What flows back through a linear layer: (n, out) -> (n, in)."""
    back = base.__dict__.get("back")
    if back is None or grad.dtype != torch.bfloat16:
        return grad @ dequantised_weight(base).to(grad.dtype)
    return _packed_product(grad, back, None)


class Kept:
    """Stands before bitsandbytes' class while a layer's dequantised weight is there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        layer: Any = self
        backward = x.requires_grad and torch.is_grad_enabled()
        if x.dtype != layer.weight.quant_state.dtype or backward:
            own: Any = super()
            return own.forward(x)  # it has a backward that keeps nothing but 4 bit
        if "forth" in layer.__dict__:
            return _packed_product(x, layer.__dict__["forth"], layer.bias)
        return nn.functional.linear(x, layer.__dict__["dense"], layer.bias)


@cache
def _kept(kind: type) -> type:
    return type(f"Kept{kind.__name__}", (Kept, kind), {})


def _is_4bit(module: Any) -> bool:
    if type(module).__name__ != "Linear4bit" or module.weight.device.type != "cpu":
        return False
    state = getattr(module.weight, "quant_state", None)
    return state is not None and module.compute_dtype in (None, state.dtype)


def _size(module: Any, backward: bool) -> int:
    state = module.weight.quant_state
    copies = 2 if backward and _packs(state.dtype) else 1
    return copies * state.shape.numel() * state.dtype.itemsize


# ---- oneDNN's own order: what torch's compiler calls for frozen weights on a CPU


def _packed(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)


def _packed_product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    bias = None if bias is None else bias.to(x.dtype)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def _packs(dtype: torch.dtype) -> bool:
    """Whether this torch packs, and gives the plain product's numbers."""
    if dtype != torch.bfloat16:  # others are multiplied by another library, which rounds otherwise
        return False
    places = torch.arange(64 * 64, dtype=torch.float32, device="cpu").view(64, 64)
    x, weight = places[:3].sin().to(dtype), places.cos().to(dtype)
    try:
        ours = _packed_product(x, _packed(weight), None)
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(ours, nn.functional.linear(x, weight), rtol=0.02, atol=0.02)
