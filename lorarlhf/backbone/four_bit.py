"""Do 4-bit layers compute on a device? A small one is tried, forward and backward.

bitsandbytes has kernels for NVIDIA, AMD and Intel cards, for Apple's GPU and for CPUs. Those for
Intel and Apple are young, and nobody has run lorarlhf with them yet, so they are tried before they
are used: the result has to be the CPU's.
"""

from functools import cache

import torch

SIZE = 256
"""Columns and rows of the layer that is tried: some blocks of weights, with double quantisation."""
ROWS = (1, 8)
"""Of the inputs. A single one takes another kernel, by which answers are sampled."""
MOST_DIFFERENCE = 0.02
"""From the CPU's result, as a share of its norm. A 16-bit dtype rounds by half a percent; kernels
that do not work are far off."""


def weight_and_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """The weight (SIZE, SIZE) and the inputs (ROWS[-1], SIZE) that are tried, on the CPU."""
    generator = torch.Generator("cpu").manual_seed(0)
    weight = torch.randn(SIZE, SIZE, generator=generator, device="cpu")
    return weight, torch.randn(ROWS[-1], SIZE, generator=generator, device="cpu")


def product(device: torch.device, dtype: torch.dtype, rows: int) -> tuple[torch.Tensor, ...]:
    """A product by a 4-bit layer, and the gradient of its inputs, each (rows, SIZE) in float32."""
    import bitsandbytes

    weight, inputs = weight_and_inputs()
    layer = bitsandbytes.nn.Linear4bit(
        SIZE, SIZE, bias=False, quant_type="nf4", compute_dtype=dtype
    )
    layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    given = inputs[:rows].to(device, dtype).requires_grad_()
    found = layer.to(device)(given)
    (gradient,) = torch.autograd.grad(found.float().square().sum(), given)
    return found.detach().float().cpu(), gradient.float().cpu()


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """How far two tensors of one shape are apart, as a share of the second one's norm."""
    return ((found - wanted).norm() / wanted.norm()).item()


@cache
def trouble(kind: str, dtype: torch.dtype) -> str | None:
    """Why 4-bit layers can't be used on a kind of device, in one line; None if they work.

    Args:
        kind: for example `mps`.
        dtype: that they would compute in there.
    """
    try:
        for rows in ROWS:
            pairs = zip(
                product(torch.device(kind), dtype, rows),
                product(torch.device("cpu"), torch.float32, rows),
                strict=True,
            )
            off = max(difference(found, wanted) for found, wanted in pairs)
            if not off <= MOST_DIFFERENCE:  # true for NaN, too
                return f"the result is off by {off:.0%} from the CPU's"
    except Exception as error:  # a missing kernel or a driver may fail in any way
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return None
