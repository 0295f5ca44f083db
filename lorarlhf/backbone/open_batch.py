"""A batch of answers that others can join and leave between two tokens, for a server.

Each answer has its own seed, temperature, top-p and length. At top-p 1 its tokens are those that
`Sampler` draws from the same seed, up to rounding. top-p is not for training: log-probabilities of
what it samples would not be those of the policy.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.sampler import PreallocatedLayer, Sampler, pick

ROOM = 128
"""Tokens for which a cache gets room at a time: most answers end long before their longest."""


@dataclass(eq=False)
class OpenAnswer:
    """One answer of a batch, and how it is sampled.

    Attributes:
        prompt_ids: its prompt, not empty.
        temperature: 0 takes the likeliest token.
        top_p: only the likeliest tokens that have this share together are sampled; 1 for all.
        ids: its tokens so far, the stop token included.
        done: whether it has ended. Whoever set it, it leaves its batch at the next step.
    """

    prompt_ids: list[int]
    seed: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    ids: list[int] = field(default_factory=list)
    done: bool = False

    def take(self, token: int, stops: Sequence[int]) -> None:
        """Append a token, and end at a stop token or at the longest length."""
        self.ids.append(token)
        self.done = token in stops or len(self.ids) >= self.max_new_tokens


class OpenBatch(Sampler):
    """Answers of the active role, one token more at each `step`; see `join`.

    Attributes:
        answers: those that have not left, one for each row of the cache.
    """

    def __init__(self, backbone: Backbone, answers: Sequence[OpenAnswer]) -> None:
        super().__init__(
            backbone,
            [answer.prompt_ids for answer in answers],
            seeds=[answer.seed for answer in answers],
            max_new_tokens=min(ROOM, max(answer.max_new_tokens for answer in answers)),
            temperature=1.0,
        )
        self.answers = list(answers)
        self.ids = [answer.ids for answer in answers]  # the very lists

    @property
    def done(self) -> bool:
        """Whether all answers have ended."""
        return all(answer.done for answer in self.answers)

    @torch.no_grad()
    def step(self) -> None:
        """One more token for each answer that has not ended; those that have leave before."""
        self.leave()
        if not self.answers:
            return
        self._trim()
        if self._cache is None:
            logits = self._first()
        else:
            self._make_room()
            logits = self._next()
        tokens = pick_each(logits, self._drawn(), self.answers).tolist()
        for answer, token in zip(self.answers, tokens, strict=True):
            if not answer.done:
                answer.take(token, self.backbone.stop_ids)
        if self.done:
            self._keep([])

    def leave(self) -> None:
        """Take the answers that are done out of the batch, where the family's cache can do it."""
        staying = [row for row, answer in enumerate(self.answers) if not answer.done]
        if len(staying) == len(self.answers):
            return
        if not staying or self._cache is None:
            self._keep(staying)
        elif self.joinable:
            self._gather([(self, staying)])
        elif self._takes_rows:
            self._leave(staying)
            self._keep(staying)

    @property
    def joinable(self) -> bool:
        """Whether its cache holds nothing but all keys and values, which is what `join` needs."""
        kinds = () if self._cache is None else map(type, self._cache.layers)
        return self._cache is not None and all(kind is PreallocatedLayer for kind in kinds)

    def join(self, other: "OpenBatch") -> bool:
        """Take over the answers of another batch of the same role; False if that can't be done.

        Both have begun. Families with a sliding window, or with other states than keys and values,
        can't be joined: their batches take turns.
        """
        if not (self.joinable and other.joinable):
            return False
        parts = [
            (one, [n for n, a in enumerate(one.answers) if not a.done]) for one in (self, other)
        ]
        self._gather(parts)
        other._keep([])
        return True

    # ---- rows

    def _keep(self, rows: Sequence[int]) -> None:
        """Keep the lists of some rows; without any, the cache is freed."""
        self.answers = [self.answers[row] for row in rows]
        self.prompts = [answer.prompt_ids for answer in self.answers]
        self.ids = [answer.ids for answer in self.answers]
        self._draws = [self._draws[row] for row in rows]
        self._open = list(range(len(rows)))
        if not rows:
            self._cache = None

    def _gather(self, parts: Sequence[tuple["OpenBatch", list[int]]]) -> None:
        """Make this batch of rows of batches, right-aligned, without columns that no row uses.

        A row's keys have their positions in them, so they may stand in any column.
        """
        answers = [one.answers[row] for one, rows in parts for row in rows]
        draws = [one._draws[row] for one, rows in parts for row in rows]
        cache: Any = DynamicCache(config=self.backbone.causal.config)
        masks = [one._mask[rows] for one, rows in parts]
        width = max(map(_used, masks))
        self._mask = torch.cat([_right(mask, 1, width) for mask in masks])
        layers: list[PreallocatedLayer] = []
        for number in range(len(self._cache.layers)):
            layer = PreallocatedLayer(width + ROOM)
            held = [(one._cache.layers[number], rows) for one, rows in parts]
            keys, values = (
                torch.cat([_right(getattr(old, name)[rows], 2, width) for old, rows in held])
                for name in ("keys", "values")
            )
            layer.update(keys, values)
            layers.append(layer)
            for old, _ in held:  # its memory is free before the next layer takes some
                old.keys = old.values = None
                old._buffers = []
        cache.layers = layers
        self._cache, self.answers, self._draws = cache, answers, draws
        self._keep(range(len(answers)))

    def _make_room(self) -> None:
        """Room for more tokens in layers that are full: they copy once, and not at every token."""
        used = self._mask.shape[1]
        for layer in self._cache.layers:
            if isinstance(layer, PreallocatedLayer) and layer.capacity <= used:
                layer.capacity = used + ROOM


def _used(mask: torch.Tensor) -> int:
    """Columns of a mask (B, S) from the first one that some row uses."""
    columns = mask.bool().any(dim=0).nonzero()
    return mask.shape[1] - int(columns[0]) if len(columns) else 0


def _right(tensor: torch.Tensor, dim: int, width: int) -> torch.Tensor:
    """The last `width` columns along a dimension, with zeros before them if there are fewer."""
    have = tensor.shape[dim]
    if have >= width:
        return tensor.narrow(dim, have - width, width)
    shape = list(tensor.shape)
    shape[dim] = width - have
    return torch.cat([tensor.new_zeros(shape), tensor], dim=dim)


# ---- picking


def pick_each(
    logits: torch.Tensor, draws: torch.Tensor, answers: Iterable[OpenAnswer]
) -> torch.Tensor:
    """Tokens (n,) of answers that are sampled in different ways; see `sampler.pick`.

    Args:
        logits: (n, V).
        draws: uniform numbers (n,) in [0, 1).
    """
    groups: dict[tuple[float, float], list[int]] = {}
    for row, answer in enumerate(answers):
        groups.setdefault((answer.temperature, answer.top_p), []).append(row)
    if len(groups) == 1:
        ((how, _),) = groups.items()
        return _pick_alike(logits, draws, *how)
    tokens = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    for how, rows in groups.items():
        tokens[rows] = _pick_alike(logits[rows], draws[rows], *how)
    return tokens


def _pick_alike(
    logits: torch.Tensor, draws: torch.Tensor, temperature: float, top_p: float
) -> torch.Tensor:
    if top_p < 1 and temperature > 0:
        logits = nucleus(logits, temperature, top_p)
    return pick(logits, draws, temperature)


def nucleus(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Logits (n, V), minus infinity for tokens outside of the nucleus (arXiv 1904.09751).

    It is the smallest set of the likeliest tokens with a probability of at least `top_p`.
    """
    ordered, places = (logits.float() / temperature).softmax(dim=1).sort(dim=1, descending=True)
    before = ordered.cumsum(dim=1) - ordered
    outside = torch.zeros_like(before, dtype=torch.bool).scatter(1, places, before >= top_p)
    # The likeliest token always stays; `before` of it is 0 up to rounding.
    outside.scatter_(1, places[:, :1], False)
    return logits.masked_fill(outside, float("-inf"))
