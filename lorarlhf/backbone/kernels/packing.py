"""Packed sequences: laid end to end without padding, with their shared prefix only once.

Chat prompts share the template's system text, which is often most of a short prompt, and a causal
model computes the same states for it in every sequence. A packed batch runs these tokens once and
runs no padding: its N rows are exactly the distinct tokens. Only attention separates the sequences.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

MIN_SHARED_TOKENS = 4
"""A shorter shared prefix costs more in extra steps than it saves."""

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Causal attention of the last T of S positions."""


@dataclass
class Pack:
    """B sequences as N rows: the P tokens of the shared prefix, then each sequence's own tokens.

    The own tokens can be laid out as a table (B, W), padded right to the longest, W.

    Attributes:
        input_ids, position_ids: (1, N).
        shared: P.
        lengths: number of own tokens of each sequence.
        gather: (B * W,) for each place of the table its row, counted after the shared ones;
            padding repeats row 0.
        scatter: (N - P,) for each row after the shared ones its place in the table.
        windows: widths of the sliding windows that layers have used.
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
        cls, sequences: Sequence[Sequence[int]], device: torch.device, max_shared: int = 0
    ) -> "Pack":
        """Pack token ids.

        Args:
            max_shared: the longest prefix that may be shared.
        """
        shared = common_prefix(sequences, max_shared)
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
        """The row of the token at index `place` of a sequence."""
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
        """Causal attention of rows (1, h, N, d) to the shared rows and those of their own sequence.

        Returns:
            (1, N, h, d).
        """
        if window is not None:
            self.windows.add(window)
        rows = [x[0].transpose(0, 1) for x in (query, key, value)]  # (N, heads, d)
        q, k, v = (self._table(x[self.shared :]).transpose(1, 2) for x in rows)  # (B, heads, W, d)
        if not self.shared:
            return self._rows(attention(q, k, v))[None]
        first = [x[: self.shared].transpose(0, 1)[None] for x in rows]  # (1, heads, P, d)
        k, v = (
            torch.cat([x.expand(len(q), -1, -1, -1), y], dim=2)
            for x, y in zip(first[1:], (k, v), strict=True)
        )
        own = self._rows(attention(q, k, v))
        q, k, v = first
        begin = attention(q, k, v)[0].transpose(0, 1)
        return torch.cat([begin, own])[None]

    def _table(self, rows: torch.Tensor) -> torch.Tensor:
        """Own rows (N - P, ...) -> (B, W, ...), padded right."""
        table = _Gather.apply(rows, self.gather, self.scatter)
        return table.view(len(self.lengths), -1, *rows.shape[1:])

    def _rows(self, table: torch.Tensor) -> torch.Tensor:
        """(B, heads, W, d) -> own rows (N - P, heads, d)."""
        return _Scatter.apply(table.transpose(1, 2).flatten(0, 1), self.scatter)

    def padded(self, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The sequences unpacked: ids (B, T) padded right, and their mask."""
        own = self.input_ids[0, self.shared :][self.gather].view(len(self.lengths), -1)
        begin = self.input_ids[:, : self.shared].expand(len(own), -1)
        columns = torch.arange(own.shape[1], device=own.device)
        real = columns[None] < torch.tensor(self.lengths, device=own.device)[:, None]
        ids = torch.cat([begin, own.masked_fill(~real, pad)], dim=1)
        return ids, torch.cat([torch.ones_like(begin), real.long()], dim=1)

    def padded_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """States (N, H) -> (B, T, H), laid out as by `padded`."""
        own = self._table(rows[self.shared :])
        return torch.cat([rows[None, : self.shared].expand(len(own), -1, -1), own], dim=1)

    def rows_of(self, padded: torch.Tensor) -> torch.Tensor:
        """States (B, T, H) of `padded` sequences -> (N, H)."""
        own = padded[:, self.shared :].flatten(0, 1)[self.scatter]
        return torch.cat([padded[0, : self.shared], own])


def common_prefix(sequences: Sequence[Sequence[int]], most: int) -> int:
    """Tokens that all sequences begin with, up to `most`; 0 if too few to be worth sharing."""
    if len(sequences) < 2:
        return 0
    found = 0
    for tokens in zip(*(ids[: max(0, most)] for ids in sequences), strict=False):
        if len(set(tokens)) > 1:
            break
        found += 1
    return found if found >= MIN_SHARED_TOKENS else 0


class _Gather(torch.autograd.Function):
    """Rows into a padded table. Padding has no gradient, so the backward only selects."""

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
    """Rows out of a padded table; its padding gets a zero gradient."""

    @staticmethod
    def forward(ctx: Any, table: torch.Tensor, scatter: torch.Tensor) -> torch.Tensor:
        ctx.shape = table.shape
        ctx.scatter = scatter
        return table.index_select(0, scatter)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple:
        table = grad.new_zeros(ctx.shape)
        return table.index_copy_(0, ctx.scatter, grad), None
