"""The active adapter added to the base's weights while many answers are sampled, on a CPU.

An adapter's two narrow products take a seventh of the time of a sampling step. Here its product is
added to the dequantised weight once, W + scaling B A (arXiv 2106.09685, section 4.1), and the layer
costs what it costs without an adapter. As many layers are merged as there is room for kept weights:
all of the small base, and the uppermost ones of a larger one. In float32 the results differ only by
rounding. In bfloat16 the sum is rounded once more, and the model is as far from float32 as with the
adapter beside it (benchmarks/merged_sampling.py).

The base stays as it is. Only sampling uses these weights: log-probabilities and gradients come from
the adapter itself.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from lorarlhf.backbone.kernels.dequantised import (
    dequantised_weight,
    dtype_of,
    numbers_of,
    prepared,
)
from lorarlhf.backbone.kernels.lora_linear import Fused


@contextmanager
def keep_merged(modules: Iterable[LoraLayer], max_weights: int) -> Iterator[int]:
    """Keep the active adapter merged inside the context, beginning with the last layer.

    Only on the CPU: cards have no memory to spare. Another role that is switched to inside, and
    anything with gradients, is computed as without it.

    Args:
        modules: the LoRA layers.
        max_weights: how many weights are kept, at most.

    Yields:
        how many of `max_weights` are left.
    """
    merged: list[Any] = []
    layers: list[Any] = [module for module in modules if isinstance(module, Fused)]
    try:
        for layer in reversed(layers):
            base, name = layer.get_base_layer(), layer.only_adapter()
            if name is None or base.weight.device.type != "cpu":
                continue
            if numbers_of(base) > max_weights:
                break
            max_weights -= numbers_of(base)
            weight = prepared(_sum(layer, name).to(dtype_of(base)))
            layer.__dict__["summed"] = layer._active_adapter, weight
            base.__dict__["summed"] = True
            merged.append(layer)
        yield max_weights
    finally:
        for layer in merged:
            for module in (layer, layer.get_base_layer()):
                module.__dict__.pop("summed", None)


def _sum(layer: Any, name: str) -> torch.Tensor:
    """The base's weight and the adapter's (out, in), added in float32."""
    low, high = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
    weight = dequantised_weight(layer.get_base_layer()).float()
    return torch.addmm(weight, high.float(), low.float(), alpha=layer.scaling[name])
