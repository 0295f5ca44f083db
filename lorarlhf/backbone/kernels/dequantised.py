"""Keep 4-bit weights dequantised during a phase that reads each of them many times.

On a CPU, dequantising takes a fifth of the time of a sampled token and a twentieth of a training
pass. The kept weights are bit for bit the numbers that bitsandbytes multiplies with. Cards
dequantise faster than they multiply and have less memory to spare, so nothing is kept there.

In bfloat16 the kept weights are also packed in oneDNN's own layout. Otherwise oneDNN reorders each
weight for every product, which takes longer than a product of a few rows, and a sixth of the time
of a product of 800 rows.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

PACKED_ROWS = 16
"""How many rows of input the packed layout is made for; AVX512's is the same for any number."""
CACHED = ("dequantised", "packed_forward", "packed_backward")
"""Attributes that hold a module's dequantised weight, and the weight packed for `x W^T` and for
`grad W`."""


@contextmanager
def keep_dequantised(
    layers: Iterable[nn.Module], max_bytes: int, *, backward: bool = False
) -> Iterator[None]:
    """Keep the 4-bit weights of these layers dequantised inside the context, last layers first.

    Only on the CPU, and only as many complete layers as fit into `max_bytes`. Contexts nest: an
    inner one leaves alone what an outer one keeps.

    Args:
        backward: also keep what `input_gradient` needs.
    """
    chosen: list[Any] = []
    for layer in reversed(list(layers)):
        weights = [module for module in layer.modules() if _is_4bit(module)]
        max_bytes -= sum(_size(module, backward) for module in weights)
        if max_bytes < 0:
            break
        chosen = weights + chosen
    plain = [module for module in chosen if not _packs(module.weight.quant_state.dtype)]
    # One allocation for all of them, because the system gets it back as soon as it is freed.
    sizes = [_size(module, backward) for module in plain]
    buffer = torch.empty(sum(sizes), dtype=torch.uint8, device="cpu")
    kinds: list[type] = [type(module) for module in chosen]
    try:
        for module, part in zip(plain, buffer.split(sizes), strict=True):
            weight = dequantised_weight(module)
            module.__dict__["dequantised"] = (
                part.view(weight.dtype).view(weight.shape).copy_(weight)
            )
        for module, kind in zip(chosen, kinds, strict=True):
            if "dequantised" not in module.__dict__:
                weight = dequantised_weight(module)
                module.__dict__["packed_forward"] = _packed(weight)
                if backward:
                    module.__dict__["packed_backward"] = _packed(weight.T.contiguous())
            module.__class__ = _with_dequantised_weight(kind)
        yield
    finally:
        for module, kind in zip(chosen, kinds, strict=True):
            module.__class__ = kind
            for name in CACHED:
                module.__dict__.pop(name, None)


def can_dequantise(base: nn.Module) -> bool:
    """Whether `dequantised_weight` can read this layer."""
    return type(base).__name__ == "Linear4bit" or type(base) is nn.Linear


def dequantised_weight(base: Any) -> torch.Tensor:
    """The weight (out, in) of a plain linear layer, or of a 4-bit one, dequantised."""
    if type(base) is nn.Linear:
        return base.weight
    if "dequantised" in base.__dict__:
        return base.__dict__["dequantised"]
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(base.weight.data, base.weight.quant_state)


def input_gradient(base: Any, grad: torch.Tensor) -> torch.Tensor:
    """The gradient in a linear layer's input, `grad W`: (n, out) -> (n, in)."""
    packed = base.__dict__.get("packed_backward")
    if packed is None or grad.dtype != torch.bfloat16:
        return grad @ dequantised_weight(base).to(grad.dtype)
    return _packed_product(grad, packed, None)


class DequantisedLinear:
    """Mixed in before bitsandbytes' class while a layer's dequantised weight is kept."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        layer: Any = self
        backward = x.requires_grad and torch.is_grad_enabled()
        if x.dtype != layer.weight.quant_state.dtype or backward:
            own: Any = super()
            return own.forward(x)  # its backward keeps only the 4-bit weight
        if "packed_forward" in layer.__dict__:
            return _packed_product(x, layer.__dict__["packed_forward"], layer.bias)
        return nn.functional.linear(x, layer.__dict__["dequantised"], layer.bias)


@cache
def _with_dequantised_weight(kind: type) -> type:
    return type(f"Dequantised{kind.__name__}", (DequantisedLinear, kind), {})


def _is_4bit(module: Any) -> bool:
    if type(module).__name__ != "Linear4bit" or module.weight.device.type != "cpu":
        return False
    state = getattr(module.weight, "quant_state", None)
    return state is not None and module.compute_dtype in (None, state.dtype)


def _size(module: Any, backward: bool) -> int:
    state = module.weight.quant_state
    copies = 2 if backward and _packs(state.dtype) else 1
    return copies * state.shape.numel() * state.dtype.itemsize


# ---- oneDNN's packed layout: the same operators that torch's compiler calls for frozen weights


def _packed(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)


def _packed_product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    bias = None if bias is None else bias.to(x.dtype)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def _packs(dtype: torch.dtype) -> bool:
    """Whether this torch can pack weights, and gets the plain product's numbers with them."""
    if dtype != torch.bfloat16:  # another library multiplies the others, and rounds differently
        return False
    places = torch.arange(64 * 64, dtype=torch.float32, device="cpu").view(64, 64)
    x, weight = places[:3].sin().to(dtype), places.cos().to(dtype)
    try:
        ours = _packed_product(x, _packed(weight), None)
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(ours, nn.functional.linear(x, weight), rtol=0.02, atol=0.02)
