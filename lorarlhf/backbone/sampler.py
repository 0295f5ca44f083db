"""Sample tokens for a batch of prompts. Their shared prefix is run once; finished answers leave.

Tokens are drawn from exactly the softmax at the given temperature: no top-p, no top-k, no
repetition penalty, and nothing from the base's generation config. Otherwise PPO's KL could become
negative (trl issues 1005 and 925). On a CPU the weights may be merged with the adapter
(`kernels/merged.py`), which rounds differently.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.devices import give_back_memory
from lorarlhf.backbone.kernels.packing import common_prefix
from lorarlhf.backbone.limits import softmax_rows
from lorarlhf.backbone.trunk import position_ids

TRIM_EVERY = 16
"""Steps between two trims of a CPU's heap, in which dequantised weights leave holes: 15 MB for each
step of a model of 1B."""


class Sampler:
    """Answers of the active role to some prompts, one token each at every `step`.

    (`GraphSampler` takes several at a time.)

    The random numbers of an answer depend only on its own seed: not on the other answers of the
    batch, on earlier draws or on the device. (In 16 bit, other shapes round differently.)

    Args:
        prompt_ids: a prompt for each answer, not empty.
        seeds: one for each answer.
        temperature: 0 takes the likeliest token.

    Attributes:
        ids: the tokens of each answer so far, the stop token included.

    Raises:
        ValueError: the number of seeds is not the number of prompts.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompt_ids: Sequence[Sequence[int]],
        *,
        seeds: Sequence[int],
        max_new_tokens: int,
        temperature: float,
    ) -> None:
        self.backbone, self.prompts = backbone, prompt_ids
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.ids: list[list[int]] = [[] for _ in prompt_ids]
        self._draws = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        if len(self._draws) != len(self.ids):
            raise ValueError(f"{len(self.ids)} prompts, but {len(self._draws)} seeds")
        self._open = list(range(len(self.ids)))  # rows of the batch, as places in `ids`
        self._ended: set[int] = set()
        self._steps = 0
        self._cache: Any = None
        self._takes_rows = (
            False  # whether the cache can repeat and drop rows; hybrid families' can't
        )
        self._mask = torch.empty(0, device=backbone.device)

    @property
    def done(self) -> bool:
        """Whether all answers have ended."""
        return not self._open

    @torch.no_grad()
    def step(self) -> None:
        """Sample one more token for each answer that has not ended."""
        self._trim()
        logits = self._first() if self._cache is None else self._next()
        tokens = pick(logits, self._drawn(), self.temperature).tolist()
        stops, staying = self.backbone.stop_ids, []
        for row, (place, token) in enumerate(zip(self._open, tokens, strict=True)):
            if place in self._ended:
                continue
            self.ids[place].append(token)
            if token not in stops and len(self.ids[place]) < self.max_new_tokens:
                staying.append(row)
            else:
                self._ended.add(place)
        if len(staying) < len(self._open) and (self._takes_rows or not staying):
            self._leave(staying)

    def _trim(self) -> None:
        self._steps += 1
        if self._steps % TRIM_EVERY == 0:
            give_back_memory()

    def _drawn(self) -> torch.Tensor:
        like: Any = {"dtype": torch.float64, "device": "cpu"}
        return torch.stack([torch.rand((), generator=self._draws[i], **like) for i in self._open])

    def _leave(self, staying: list[int]) -> None:
        self._open = [self._open[row] for row in staying]
        if not staying:
            self._cache = None
            return
        rows = torch.tensor(staying, device=self._mask.device)
        self._cache.batch_select_indices(rows)
        self._mask = self._mask[rows]

    def _first(self) -> torch.Tensor:
        """Logits (B, V) after the prompts: runs their shared prefix once, then the rest of each."""
        prompts = self.prompts
        capacity = max(map(len, prompts)) + self.max_new_tokens
        self._cache = preallocated_cache(self.backbone.causal.config, capacity)
        needed = ("batch_select_indices", "batch_repeat_interleave")
        self._takes_rows = all(hasattr(x, name) for x in self._cache.layers for name in needed)
        shared = 0
        # A sliding layer would keep only its window of the prefix.
        if self._takes_rows and not any(self._cache.is_sliding):
            shared = common_prefix(prompts, min(map(len, prompts)) - 1)
        if shared:
            prefix = torch.tensor([prompts[0][:shared]], device=self.backbone.device)
            self._mask = torch.ones_like(prefix)
            self._forward(prefix)
            self._cache.batch_repeat_interleave(len(prompts))
        rest = [ids[shared:] for ids in prompts]
        ids, mask = pad_left(rest, self.backbone.pad_id, self.backbone.device)
        self._mask = torch.cat([mask.new_ones((len(ids), shared)), mask], dim=1)
        return self._forward(ids)

    def _next(self) -> torch.Tensor:
        last = [[self.ids[place][-1]] for place in self._open]
        self._mask = torch.cat([self._mask, self._mask.new_ones((len(last), 1))], dim=1)
        return self._forward(torch.tensor(last, device=self.backbone.device))

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        output = self.backbone.causal(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=position_ids(self._mask)[:, -ids.shape[1] :],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


class PreallocatedLayer(DynamicLayer):
    """One layer's keys and values (B, k, S, d), allocated at once for all tokens to come.

    transformers' own layer copies everything for each new token. On a card the freed pieces, each
    a little larger than the last, could not be reused.

    Args:
        capacity: number of tokens expected. Beyond it everything is copied once, as transformers
            does.
    """

    def __init__(self, capacity: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.capacity = capacity
        self._buffers: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the keys and values of new tokens; returns all of them."""
        before = self.get_seq_length()
        now = before + key_states.shape[-2]
        if not self._buffers or self._buffers[0].shape[-2] < now:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            new, tokens = (key_states, value_states), max(now, self.capacity)
            buffers = [x.new_empty((*x.shape[:-2], tokens, x.shape[-1])) for x in new]
            for buffer, old in zip(buffers, (self.keys, self.values), strict=True):
                if before and old is not None:
                    buffer[..., :before, :] = old
            self._buffers = buffers
        self._buffers[0][..., before:now, :] = key_states
        self._buffers[1][..., before:now, :] = value_states
        self.keys, self.values = (buffer[..., :now, :] for buffer in self._buffers)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        super().batch_repeat_interleave(repeats)
        self._buffers = []

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self._buffers = []


def preallocated_cache(config: Any, capacity: int) -> DynamicCache:
    """A family's own cache, in which the layers that keep all tokens are preallocated."""
    cache = DynamicCache(config=config)
    cache.layers = [
        PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer
        for layer in cache.layers
    ]
    return cache


def pick(logits: torch.Tensor, draws: torch.Tensor, temperature: float) -> torch.Tensor:
    """Inverse-CDF sampling: tokens (n,) from softmax(logits / temperature) at `draws` (n,).

    Args:
        logits: (n, V).
        draws: uniform numbers in [0, 1). A draw selects the token in whose interval of the
            cumulative distribution it lies.
        temperature: 0 takes the likeliest token.
    """
    if temperature == 0:
        return logits.argmax(dim=1)
    rows = softmax_rows(logits.shape[1], logits.device.type)
    parts = zip(logits.split(rows), draws.split(rows), strict=True)
    return torch.cat([_pick(some, own, temperature) for some, own in parts])


def _pick(logits: torch.Tensor, draws: torch.Tensor, temperature: float) -> torch.Tensor:
    # A float32 sum over 100,000 tokens would lose the rare ones; Apple's GPU and most cards of
    # Intel have no float64.
    exact = torch.float32 if logits.device.type in ("mps", "xpu") else torch.float64
    sums = (logits.float() / temperature).softmax(dim=1).cumsum(dim=1, dtype=exact)
    below = torch.nextafter(sums[:, -1:], torch.zeros_like(sums[:, -1:]))
    ends = torch.minimum(draws.to(sums.device, exact)[:, None] * sums[:, -1:], below)
    return torch.searchsorted(sums, ends, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)


def row_seeds(seed: int, rows: Sequence[int]) -> list[int]:
    """A seed for each row of a batch, made from the seed of the whole."""
    return [hash((seed, row)) % 2**62 for row in rows]


def pad_left(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of ids -> ids (B, P) padded on the left, and their mask (B, P)."""
    width = max(len(row) for row in rows)
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
