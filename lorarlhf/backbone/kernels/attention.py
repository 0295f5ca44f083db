"""Attention for packed and for padded sequences.

Registered with transformers under the names in `NAMES`, so that each family's own layers call it.
With a `packing` argument (see `packing.py`) it attends within each sequence; without one it is the
usual attention over (B, T). Shapes: h query heads, k key heads, d the size of a head, S keys.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

NAMES = {"plain": "lorarlhf_plain", "fused": "lorarlhf_fused"}
"""`fused` is torch's kernel, which never holds (T, S) weights. `plain` is two products. It is
twice as fast on the CPU at the lengths of chat answers, where the fused kernel's backward takes as
long as all matrix products of a layer together."""
UNSUPPORTED = ("s_aux", "position_bias")
"""Terms that some families add to the scores; these families keep their own attention."""


def register() -> None:
    """Register both with transformers, with the masks that they take."""
    for kind, name in NAMES.items():
        AttentionInterface.register(name, partial(_attention, kind))
    AttentionMaskInterface.register(NAMES["plain"], eager_mask)
    AttentionMaskInterface.register(NAMES["fused"], sdpa_mask)


def name_for(device: torch.device) -> str:
    """The name of the attention for a device."""
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
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: (B, h, T, d) and (B, k, S, d) -> (B, T, h, d)."""
    packing = kwargs.pop("packing", None)
    rules = _Rules(module, query, scaling, dropout, kwargs)
    fused = kind == "fused" and not rules.softcap  # torch's kernel has no cap on scores (Gemma 2)
    if packing is not None:
        attend = rules.fused_causal if fused else rules.plain_causal
        return packing.attend(query, key, value, attend, rules.window), None
    if fused:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if attention_mask is None and kind == "fused":  # a causal mask may be left out
        attention_mask = causal_mask(query, key)
    return rules.plain(query, key, value, attention_mask).transpose(1, 2).contiguous(), None


class _Rules:
    """A layer's attention settings, and the attention that follows them."""

    def __init__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        scaling: float | None,
        dropout: float,
        extra: dict[str, Any],
    ) -> None:
        unsupported = [name for name in UNSUPPORTED if extra.get(name) is not None]
        if unsupported:
            raise RuntimeError(f"this attention does not support {unsupported[0]}")
        self.scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        self.dropout = dropout if module.training else 0.0
        self.softcap: float | None = extra.get("softcap")
        self.window: int | None = extra.get("sliding_window")

    def plain(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Two matrix products, with the query heads of one key head together: -> (B, h, T, d).

        Args:
            mask: boolean (T, S), or (B, 1, T, S) either boolean or added to the scores.
        """
        batch, heads, length, size = query.shape
        kinds, keys = key.shape[1], key.shape[2]
        groups = heads // kinds
        if length == 1 and not (self.softcap or self.dropout or torch.is_grad_enabled()):
            return self._one_query(query.view(batch, kinds, groups, size), key, value, mask)
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
        weights = scores.softmax(dim=-1)  # computed in float32, whatever the scores' dtype
        if self.dropout:
            weights = nn.functional.dropout(weights, self.dropout)
        return torch.bmm(weights, value.flatten(0, 1)).view(batch, heads, length, -1)

    def _one_query(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """A sampled token's attention by torch's kernel, which is faster here: -> (B, h, 1, d).

        Args:
            query: (B, k, h / k, d), the query heads of one key head as if they were positions.
        """
        found = nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[..., : key.shape[2]],
            scale=self.scaling,
        )
        return found.reshape(len(query), -1, 1, value.shape[-1])

    def plain_causal(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """`plain` for queries that are the last T of the S positions: -> (B, h, T, d)."""
        return self.plain(query, key, value, causal_mask(query, key, self.window))

    def fused_causal(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """torch's kernel for queries that are the last T of the S positions: -> (B, h, T, d).

        Without a window it is told that attention is causal, and gets no mask: torch's fastest
        kernels take none.
        """
        length, keys = query.shape[-2], key.shape[-2]
        mask: Any = None
        if self.window is not None:
            mask = causal_mask(query, key, self.window)
        elif length < keys:
            mask = causal_lower_right(length, keys)
        # Not `enable_gqa`: with it the kernels of cards before Ampere hold all (T, S) weights.
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
        return nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout,
            is_causal=mask is None,
            scale=self.scaling,
        )


def _masked(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask.to(scores.dtype)


def causal_mask(query: torch.Tensor, key: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """(T, S), true where a query may attend; the queries are the last T of the S positions."""
    length, keys = query.shape[-2], key.shape[-2]
    ones = torch.ones(length, keys, dtype=torch.bool, device=query.device)
    mask = ones.tril(keys - length)
    return mask if window is None else mask.triu(keys - length - window + 1)
