"""Attention for packed sequences, and the plain one that goes with it.

Registered with transformers under the names in `NAMES`, so that each family's own layers call it.
Handed a `packing` (see `packing.py`) it attends within each sequence; without one it is the usual
attention over (B, T). Shapes: h query heads, k key heads, d a head's size, S keys.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

NAMES = {"plain": "lorarlhf_plain", "fused": "lorarlhf_fused"}
"""`fused`: torch's kernel, which holds no (T, S) weights. `plain`: two products, twice as fast on
the CPU at the lengths of chat answers, where the fused kernel's backward takes as long as all
matrix products of a layer together."""
UNKNOWN = ("s_aux", "position_bias")
"""What some families add to the scores; they keep their own attention."""


def register() -> None:
    """Make both known to transformers, with the masks that they take."""
    for kind, name in NAMES.items():
        AttentionInterface.register(name, partial(_attention, kind))
    AttentionMaskInterface.register(NAMES["plain"], eager_mask)
    AttentionMaskInterface.register(NAMES["fused"], sdpa_mask)


def name_for(device: torch.device) -> str:
    """Which of the two a device gets."""
    return NAMES["plain" if device.type == "cpu" else "fused"]


def _attention(
    kind: str,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: (B, h, T, d) and (B, k, S, d) -> (B, T, h, d)."""
    rules = _Rules(module, query, scaling, dropout, kwargs)
    fused = kind == "fused" and not rules.softcap  # torch's kernel knows no cap on logits (Gemma 2)
    if packing is not None:
        attend = rules.fused if fused else rules.plain
        return packing.attend(query, key, value, attend, rules.window), None
    if fused:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if attention_mask is None and kind == "fused":  # its mask may be left out where it is causal
        attention_mask = causal_mask(query, key)
    return rules.plain(query, key, value, attention_mask).transpose(1, 2).contiguous(), None


class _Rules:
    """What a layer says about its attention, and the attention by these rules."""

    def __init__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        scaling: float | None,
        dropout: float,
        said: dict[str, Any],
    ) -> None:
        unknown = [name for name in UNKNOWN if said.get(name) is not None]
        if unknown:
            raise RuntimeError(f"attention here knows no {unknown[0]}")
        self.scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        self.dropout = dropout if module.training else 0.0
        self.softcap: float | None = said.get("softcap")
        self.window: int | None = said.get("sliding_window")

    def plain(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Two products, the query heads of one key head together: -> (B, h, T, d).

        The mask is boolean (T, S), or boolean or added (B, 1, T, S).
        """
        batch, heads, length, size = query.shape
        kinds, keys = key.shape[1], key.shape[2]
        groups = heads // kinds
        query, key = query.reshape(batch * kinds, groups * length, size), key.flatten(0, 1).mT
        if mask is not None and mask.ndim == 2 and not self.softcap:
            added = torch.zeros(length, keys, dtype=query.dtype, device=query.device)
            added.masked_fill_(~mask, torch.finfo(query.dtype).min)
            scores = torch.baddbmm(added.repeat(groups, 1), query, key, alpha=self.scaling)
        else:
            scores = torch.bmm(query, key).view(batch, heads, length, keys) * self.scaling
            if self.softcap:
                scores = self.softcap * torch.tanh(scores / self.softcap)
            scores = scores if mask is None else _masked(scores, mask[..., :keys])
            scores = scores.view(batch * kinds, groups * length, keys)
        weights = scores.softmax(dim=-1)  # in float32 inside, whatever the scores' dtype
        if self.dropout:
            weights = nn.functional.dropout(weights, self.dropout)
        return torch.bmm(weights, value.flatten(0, 1)).view(batch, heads, length, -1)

    def fused(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """torch's kernel: -> (B, h, T, d)."""
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=self.dropout, scale=self.scaling
        )


def _masked(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask.to(scores.dtype)


def causal_mask(query: torch.Tensor, key: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """(T, S) true where a query may look, the queries being the last T of S positions."""
    length, keys = query.shape[-2], key.shape[-2]
    ones = torch.ones(length, keys, dtype=torch.bool, device=query.device)
    mask = ones.tril(keys - length)
    return mask if window is None else mask.triu(keys - length - window + 1)
