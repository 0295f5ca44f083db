"""The memory that a base's weights take, and how many copies of them this process holds."""

import gc
from collections import Counter
from typing import Any

import torch
from torch import nn


class Footprint:
    """Memory figures of one base.

    Args:
        model: the causal language model, before it gets adapters.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._shapes = Counter(_key(weight) for weight in model.parameters())

    def bytes(self) -> int:
        """Bytes of the base's weights, without the adapters."""
        return sum(
            weight.untyped_storage().nbytes()
            for name, weight in self._model.named_parameters()
            if "lora_" not in name
        )

    def copies(self) -> int:
        """How many copies of the base's weights live in this process: 1, or something is wrong.

        Counts the distinct storages of all living parameters that have the shape and dtype of one
        of the base's own matrices.
        """
        gc.collect()
        gc.collect()  # what the first round has finalised is freed only now
        found: dict[tuple, set[int]] = {}
        for thing in gc.get_objects():
            # By type first: isinstance alone asks odd objects for attributes that warn.
            if issubclass(type(thing), torch.Tensor) and isinstance(thing, nn.Parameter):
                if _key(thing) not in self._shapes:
                    continue
                found.setdefault(_key(thing), set()).add(thing.untyped_storage().data_ptr())
        matrices = [key for key in self._shapes if len(key[0]) > 1]  # a norm is shaped like a head
        large = [key for key in matrices if torch.Size(key[0]).numel() >= 1 << 16]
        keys = large or matrices  # tiny test models have no matrix that large
        return max(-(-len(found.get(key, ())) // self._shapes[key]) for key in keys)


def _key(weight: torch.Tensor) -> tuple:
    return tuple(weight.shape), weight.dtype
