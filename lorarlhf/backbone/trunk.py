"""The trunk: the frozen lower layers that no role changes, run once and kept.

The decoder's own forward is used in both halves, so that masks, rotary embeddings, layer kinds and
embedding scaling are the family's own: the layers that are left out are replaced, at their index,
by a module that hands the hidden states on (or, at the entrance, puts the kept ones in).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class _Skip(nn.Module):
    """Stands where a layer is left out, and answers for its attributes (a layer's mask kind)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__["stood_in_for"] = layer  # not a submodule: its weights stay the decoder's

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["stood_in_for"], name)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


class _Enter(_Skip):
    """The first layer's place above a kept trunk: whatever was embedded, give the kept states."""

    def __init__(self, layer: nn.Module, kept: torch.Tensor) -> None:
        super().__init__(layer)
        self.__dict__["kept"] = kept

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.__dict__["kept"]


@contextmanager
def _replaced(parent: nn.Module, swaps: dict[str, Any]) -> Iterator[None]:
    """Swap children of `parent` by name; the originals are back afterwards, whatever happens."""
    originals = {name: parent._modules[name] for name in swaps}
    parent._modules.update(swaps)
    try:
        yield
    finally:
        parent._modules.update(originals)


def position_ids(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions from the mask (B, T), so that left padding changes no result."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def run_decoder(
    decoder: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """All layers and the final norm: (B, T) ids and mask -> hidden states (B, T, H)."""
    return decoder(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids(attention_mask),
        use_cache=False,
    ).last_hidden_state


def run_trunk(
    decoder: Any, split: int, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """The layers below `split`, without gradient: (B, T) -> hidden states (B, T, H)."""
    layers = decoder.layers
    skips = {str(i): _Skip(layers[i]) for i in range(split, len(layers))}
    with torch.no_grad(), _replaced(layers, skips), _replaced(decoder, {"norm": nn.Identity()}):
        return run_decoder(decoder, input_ids, attention_mask)


def run_upper(
    decoder: Any,
    split: int,
    trunk: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
) -> torch.Tensor:
    """The layers from `split` on and the final norm, above a kept trunk (B, T, H) -> (B, T, H)."""
    layers = decoder.layers
    skips: dict[str, Any] = {str(i): _Skip(layers[i]) for i in range(1, split)}
    skips["0"] = _Enter(layers[0], trunk)
    with _replaced(layers, skips):
        return run_decoder(decoder, input_ids, attention_mask)


def trunk_is_exact(decoder: Any, split: int, vocabulary: int) -> bool:
    """Compare a kept trunk with the plain forward on a few tokens, some of them padding.

    A family whose layers share state beyond the hidden states would differ; the caller then uses
    the plain forward, never a wrong number.
    """
    device = next(decoder.parameters()).device
    ids = (torch.arange(16, device=device).reshape(2, 8) * 7) % vocabulary
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    try:
        with torch.no_grad():
            plain = run_decoder(decoder, ids, mask)
            kept = run_trunk(decoder, split, ids, mask)
            upper = run_upper(decoder, split, kept, ids, mask)
    except (AttributeError, KeyError, TypeError, RuntimeError):
        return False  # the family's decoder is built otherwise (no `layers` or `norm`)
    real = mask.bool()
    return torch.allclose(plain[real].float(), upper[real].float(), rtol=1e-3, atol=1e-3)
