"""Keep weights ready for products during a phase that reads each of them many times.

On a CPU, dequantising takes a fifth of the time of a sampled token and a twentieth of a training
pass. The kept weights are bit for bit the numbers that bitsandbytes multiplies with. Cards
dequantise faster than they multiply and have less memory to spare, so nothing is kept there.

In bfloat16 and float32 the kept weights are also packed in oneDNN's own layout. Otherwise oneDNN
reorders each bfloat16 weight for every product, which takes longer than a product of a few rows,
and a sixth of the time of a product of 800 rows. In float32 the plain product is another library's,
which on processors without AVX512 takes half as long again for the few rows of a sampling step,
and twice as long for the LM head; so the head is packed as well.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

PACKED_ROWS = 16
"""How many rows of input the packed layout is made for; AVX512's is the same for any number."""
SMALL = 2**19
"""Float32 weights of fewer numbers are not packed: there the plain product is as fast, and a packed
one takes up to a millisecond more for each number of rows that is new to oneDNN."""
CACHED = ("dequantised", "packed_forward", "packed_backward")
"""Attributes that hold a module's dequantised weight, and the weight packed for `x W^T` and for
`grad W`."""


@contextmanager
def keep_dequantised(
    layers: Iterable[nn.Module],
    max_bytes: int,
    *,
    backward: bool = False,
    head: nn.Module | None = None,
) -> Iterator[None]:
    """Keep the weights of these layers dequantised or packed inside the context, from the last up.

    Only on the CPU, and only as many complete layers as fit into `max_bytes`. Contexts nest: an
    inner one leaves alone what an outer one keeps.

    Args:
        backward: also keep what `input_gradient` needs.
        head: the LM head; its weight is packed in float32, outside `max_bytes`.
    """
    chosen: list[Any] = []
    for layer in reversed(list(layers)):
        weights = [m for name, m in layer.named_modules() if "lora_" not in name and _gains(m)]
        max_bytes -= sum(_size(module, backward) for module in weights)
        if max_bytes < 0:
            break
        chosen = weights + chosen
    if head is not None and _gains_as_head(head):
        chosen.append(head)
    plain = [module for module in chosen if not _packs(module)]
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
    if getattr(base.weight, "quant_state", None) is None:
        return base.weight
    if "dequantised" in base.__dict__:
        return base.__dict__["dequantised"]
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(base.weight.data, base.weight.quant_state)


def dtype_of(module: Any) -> torch.dtype:
    """The dtype of a layer's weight, dequantised if it is a 4-bit one."""
    state = getattr(module.weight, "quant_state", None)
    return module.weight.dtype if state is None else state.dtype


def numbers_of(module: Any) -> int:
    """How many numbers a linear layer's weight has, also a 4-bit one."""
    state = getattr(module.weight, "quant_state", None)
    return int((module.weight if state is None else state).shape.numel())


def prepared(weight: torch.Tensor) -> torch.Tensor:
    """A weight (out, in) in the layout in which `product` is fastest: packed, or as it is."""
    return _packed(weight) if _pays(weight.dtype, weight.numel()) else weight


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(..., in) times a weight that was `prepared` -> (..., out). Without gradients."""
    if weight.is_mkldnn:
        return _packed_product(x, weight, bias)
    return nn.functional.linear(x, weight, bias)


def input_gradient(base: Any, grad: torch.Tensor) -> torch.Tensor:
    """The gradient in a linear layer's input, `grad W`: (n, out) -> (n, in)."""
    packed = base.__dict__.get("packed_backward")
    if packed is None or grad.dtype != dtype_of(base):
        return grad @ dequantised_weight(base).to(grad.dtype)
    return _packed_product(grad, packed, None)


class DequantisedLinear:
    """Mixed in before a linear layer's class while its dequantised or packed weight is kept."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        layer: Any = self
        backward = x.requires_grad and torch.is_grad_enabled()
        if x.dtype != dtype_of(layer) or backward:
            own: Any = super()
            return own.forward(x)  # its backward keeps no dequantised weight
        kept = layer.__dict__.get("packed_forward")
        return product(x, layer.__dict__["dequantised"] if kept is None else kept, layer.bias)


@cache
def _with_dequantised_weight(kind: type) -> type:
    return type(f"Dequantised{kind.__name__}", (DequantisedLinear, kind), {})


def _gains(module: Any) -> bool:
    """Whether there is something to keep for this module: it is 4-bit, or plain and packs."""
    if "summed" in module.__dict__:  # `merged.py` keeps its sum with an adapter
        return False
    if type(module) is nn.Linear:
        frozen = not module.weight.requires_grad
        return frozen and module.weight.device.type == "cpu" and _packs(module)
    if type(module).__name__ != "Linear4bit" or module.weight.device.type != "cpu":
        return False
    state = getattr(module.weight, "quant_state", None)
    return state is not None and module.compute_dtype in (None, state.dtype)


def _gains_as_head(module: Any) -> bool:
    """Whether packing this LM head pays; in bfloat16 the gain is not worth the memory."""
    return _gains(module) and module.weight.dtype == torch.float32


def _size(module: Any, backward: bool) -> int:
    """Bytes of what is kept for this module."""
    copies = 2 if backward and _packs(module) else 1
    return copies * numbers_of(module) * dtype_of(module).itemsize


def _packs(module: Any) -> bool:
    """Whether this layer's weight is kept packed."""
    return _pays(dtype_of(module), numbers_of(module))


def _pays(dtype: torch.dtype, numbers: int) -> bool:
    return _can_pack(dtype) and (dtype != torch.float32 or numbers >= SMALL)


# ---- oneDNN's packed layout: the same operators that torch's compiler calls for frozen weights


def _packed(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)


def _packed_product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    bias = None if bias is None else bias.to(x.dtype)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def _can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch can pack weights, and gets the plain product's numbers with them."""
    if dtype != torch.bfloat16 and dtype != torch.float32:
        return False
    places = torch.arange(64 * 64, dtype=torch.float32, device="cpu").view(64, 64)
    x, weight = places[:3].sin().to(dtype), places.cos().to(dtype)
    try:
        ours = _packed_product(x, _packed(weight), None)
    except (AttributeError, RuntimeError):
        return False
    near = 1e-5 if dtype == torch.float32 else 0.02
    return torch.allclose(ours, nn.functional.linear(x, weight), rtol=near, atol=near)
