"""The policy as plain matrices: quantised weights dequantised, and an adapter added to them.

W + scaling B A (arXiv 2106.09685, equation 3), one matrix at a time. A server gets its weights this
way (`ppo/vllm.py`), and so does an export (`export/merged.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lorarlhf.backbone import roles
from lorarlhf.backbone.kernels.dequantised import dequantised_weight

BASE_LAYER = ".base_layer"  # PEFT's name for the layer under an adapter


@dataclass(frozen=True)
class BaseWeight:
    """One weight of the base.

    Attributes:
        name: as the base names it, without PEFT's additions.
        owner: the module that holds it; layer: the adapted layer around that; None without one.
        weight: as it is stored, maybe quantised.
    """

    name: str
    owner: Any
    layer: Any
    weight: nn.Parameter

    @property
    def quantised(self) -> bool:
        """Whether it is stored in 4 or 8 bit."""
        return type(self.weight).__name__ in ("Params4bit", "Int8Params")

    @property
    def shape(self) -> list[int]:
        """Its shape as a plain matrix, (out, in) for linear layers."""
        if self.quantised:
            return [self.owner.out_features, self.owner.in_features]
        return list(self.weight.shape)

    def adapted_by(self, adapter: str) -> bool:
        """Whether the adapter adds something to it."""
        return self.layer is not None and adapter in self.layer.lora_A and self.weight.dim() == 2

    def plain(self) -> torch.Tensor:
        """The weight itself, dequantised if it is quantised."""
        return _dequantised(self.owner) if self.quantised else self.weight

    def merged(self, adapter: str, instead: torch.Tensor | None = None) -> torch.Tensor:
        """The weight with the adapter's product added, in float32 where there is one.

        Args:
            instead: a matrix to add it to in place of this weight.
        """
        plain = self.plain() if instead is None else instead
        if not self.adapted_by(adapter):
            return plain
        delta = self.layer.get_delta_weight(adapter).float()  # a new tensor
        return delta.add_(plain.to(delta.device))


def base_weights(backbone: Any, *, everything: bool = True) -> Iterator[BaseWeight]:
    """Each weight of a backbone's base; without `everything` those of the adapted layers alone."""
    causal = backbone.causal
    for name, weight in causal.named_parameters():
        path = name.rpartition(".")[0]
        adapted = path.endswith(BASE_LAYER)
        if "lora_" in name or not (everything or adapted):
            continue
        layer = causal.get_submodule(path.removesuffix(BASE_LAYER)) if adapted else None
        yield BaseWeight(name.replace(BASE_LAYER, ""), causal.get_submodule(path), layer, weight)


def mergeable(backbone: Any) -> bool:
    """Whether all adapters are on linear layers, and not on experts."""
    return all(isinstance(x.get_base_layer(), nn.Linear) for x in roles.lora_layers(backbone.model))


def _dequantised(owner: Any) -> torch.Tensor:
    if type(owner.weight).__name__ == "Params4bit":
        return dequantised_weight(owner)
    from bitsandbytes.functional import int8_vectorwise_dequant

    # The first forward moves the scales to `state`; PEFT's own function loses them on a CPU.
    scales = owner.weight.SCB if owner.weight.SCB is not None else owner.state.SCB
    return int8_vectorwise_dequant(owner.weight.data, scales)
