"""Sequences laid end to end without padding, with the beginning they share once.

The prompts of a chat share the template's system text, often most of a short prompt; a causal model
gives those tokens the same states in every sequence. A packed batch runs them once, and runs no
padding: its N rows are all tokens that there are. Only attention sees the sequences apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lorarlhf.backbone.kernels.attention import causal_mask

WORTH_SHARING = 4
"""Tokens: a shorter common beginning costs more steps of its own than it saves."""

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass
class Pack:
    """B sequences as N rows: P shared tokens, then each sequence's own, one after the other.

    Attributes:
        input_ids, position_ids: (1, N).
        shared: P.
        lengths: own tokens of each sequence.
        gather: (B * W,) the row, counted after the shared ones, of each place of a table of own
            tokens padded right to the longest, W; padding repeats row 0.
        scatter: (N - P,) the place in that table of each row.
        windows: widths of the sliding windows that layers asked for.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    shared: int
    lengths: list[int]
    gather: torch.Tensor
    scatter: torch.Tensor
    windows: set[int] = field(default_factory=set)

    @classmethod
    def of(
        cls, sequences: Sequence[Sequence[int]], device: torch.device, most_shared: int = 0
    ) -> "Pack":
        """Pack token ids.

        Args:
            most_shared: how many tokens at the beginning may be shared, at most.
        """
        shared = common_beginning(sequences, most_shared)
        own = [list(ids[shared:]) for ids in sequences]
        lengths = [len(ids) for ids in own]
        width = max(lengths)
        ids = [*sequences[0][:shared], *(token for part in own for token in part)]
        places = [*range(shared), *(shared + i for n in lengths for i in range(n))]
        scatter = [row * width + i for row, n in enumerate(lengths) for i in range(n)]
        gather = torch.zeros(len(sequences) * width, dtype=torch.long, device=device)
        back = torch.tensor(scatter, device=device)
        gather[back] = torch.arange(len(scatter), device=device)
        return cls(
            torch.tensor([ids], device=device),
            torch.tensor([places], device=device),
            shared,
            lengths,
            gather,
            back,
        )

    def row(self, sequence: int, place: int) -> int:
        """The row of a sequence's token, counted from the sequence's beginning."""
        if place < self.shared:
            return place
        return self.shared + sum(self.lengths[:sequence]) + place - self.shared

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention: Attend,
        window: int | None,
    ) -> torch.Tensor:
        """Attention of rows (1, h, N, d) to the shared rows and their own sequence's, causal.

        Returns:
            (1, N, h, d).
        """
        if window is not None:
            self.windows.add(window)
        rows = [x[0].transpose(0, 1) for x in (query, key, value)]  # (N, heads, d)
        q, k, v = (self._table(x[self.shared :]).transpose(1, 2) for x in rows)  # (B, heads, W, d)
        if not self.shared:
            return self._rows(attention(q, k, v, causal_mask(q, k, window)))[None]
        first = [x[: self.shared].transpose(0, 1)[None] for x in rows]  # (1, heads, P, d)
        k, v = (
            torch.cat([x.expand(len(q), -1, -1, -1), y], dim=2)
            for x, y in zip(first[1:], (k, v), strict=True)
        )
        own = self._rows(attention(q, k, v, causal_mask(q, k, window)))
        q, k, v = first
        begin = attention(q, k, v, causal_mask(q, k, window))[0].transpose(0, 1)
        return torch.cat([begin, own])[None]

    def _table(self, rows: torch.Tensor) -> torch.Tensor:
        """Own rows (N - P, ...) -> (B, W, ...), padded right."""
        table = _Gather.apply(rows, self.gather, self.scatter)
        return table.view(len(self.lengths), -1, *rows.shape[1:])

    def _rows(self, table: torch.Tensor) -> torch.Tensor:
        """(B, heads, W, d) -> own rows (N - P, heads, d)."""
        return _Scatter.apply(table.transpose(1, 2).flatten(0, 1), self.scatter)

    def padded(self, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The sequences as they were: ids (B, T) padded right, and the mask."""
        own = self.input_ids[0, self.shared :][self.gather].view(len(self.lengths), -1)
        begin = self.input_ids[:, : self.shared].expand(len(own), -1)
        columns = torch.arange(own.shape[1], device=own.device)
        real = columns[None] < torch.tensor(self.lengths, device=own.device)[:, None]
        ids = torch.cat([begin, own.masked_fill(~real, pad)], dim=1)
        return ids, torch.cat([torch.ones_like(begin), real.long()], dim=1)

    def padded_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """States (N, H) -> (B, T, H) as `padded` lays them out."""
        own = self._table(rows[self.shared :])
        return torch.cat([rows[None, : self.shared].expand(len(own), -1, -1), own], dim=1)

    def rows_of(self, padded: torch.Tensor) -> torch.Tensor:
        """States (B, T, H) of `padded` sequences -> (N, H)."""
        own = padded[:, self.shared :].flatten(0, 1)[self.scatter]
        return torch.cat([padded[0, : self.shared], own])


def common_beginning(sequences: Sequence[Sequence[int]], most: int) -> int:
    """How many first tokens all sequences share, up to `most`; 0 where sharing is not worth it."""
    if len(sequences) < 2:
        return 0
    found = 0
    for tokens in zip(*(ids[: max(0, most)] for ids in sequences), strict=False):
        if len(set(tokens)) > 1:
            break
        found += 1
    return found if found >= WORTH_SHARING else 0


class _Gather(torch.autograd.Function):
    """Rows into a padded table. What flows back from padding is nothing, so it is not added up."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, gather: torch.Tensor, scatter: torch.Tensor
    ) -> torch.Tensor:
        ctx.scatter = scatter
        return rows.index_select(0, gather)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        return grad.index_select(0, ctx.scatter), None, None


class _Scatter(torch.autograd.Function):
    """Rows out of a padded table, whose padding gets a gradient of zero."""

    @staticmethod
    def forward(ctx: Any, table: torch.Tensor, scatter: torch.Tensor) -> torch.Tensor:
        ctx.shape = table.shape
        ctx.scatter = scatter
        return table.index_select(0, scatter)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        table = grad.new_zeros(ctx.shape)
        return table.index_copy_(0, ctx.scatter, grad), None
