"""Sampling in fixed shapes, so that a card replays one CUDA graph for each token.

A step of a 32-layer model starts some 1,600 kernels, and starting them takes longer than running
them. A graph starts them all at once. For that a step must read and write the same memory each time
and never wait for the device: keys and values go to a place that the device holds, the tokens stay
on the device, and only every `READ_EVERY` steps is it read which answers have ended.

The capture itself needs a card. Everything else runs on any device, and the tests compare it with
`Sampler` on the CPU.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.limits import bucket_for
from lorarlhf.backbone.sampler import PreallocatedLayer, Sampler, pick
from lorarlhf.backbone.shape import EXPERTS
from lorarlhf.runtime.terminal import log_to_stderr

READ_EVERY = 16
"""Tokens of each answer between two looks at which answers have ended."""
WORTH = 32
"""Tokens to come from which a new graph pays: making and checking it takes seven steps."""
CHECKED = 2
"""Steps that a new graph has to take just like the code that it was captured from."""
Step = Callable[[], None]
Capture = Callable[[Step], Step]


def sampler_for(backbone: Backbone) -> type[Sampler]:
    """The sampler for whole answers on this device."""
    return GraphSampler if can_capture(backbone) and not _failures else Sampler


def can_capture(backbone: Backbone) -> bool:
    """Whether a step of this base can be a CUDA graph, as far as its configuration tells.

    A capture that fails may leave torch's memory in disorder, so none is tried where a step is
    known to wait for the device or to look at the numbers: 8-bit products, experts, rotary
    embeddings that change with the length.
    """
    config = backbone.causal.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    experts = any(getattr(config, name, None) for name in EXPERTS)
    fixed_rope = rope.get("rope_type", "default") not in ("dynamic", "longrope")
    return backbone.device.type == "cuda" and backbone.bits != 8 and not experts and fixed_rope


class GraphSampler(Sampler):
    """A `Sampler` with the same answers; one `step` is up to `READ_EVERY` tokens.

    A family whose cache keeps only a window, or more than keys and values, is sampled as by
    `Sampler`. The active role and its weights must stay as they are from the first step to the
    last.
    """

    def __init__(self, backbone: Backbone, *args: Any, **kwargs: Any) -> None:
        super().__init__(backbone, *args, **kwargs)
        self._fixed: _FixedBatch | None = None
        self._run: Step | None = None
        self._rows: list[int] = []  # what the rows of the fixed batch are, as places in `ids`
        self._capture: Capture | None = capture if backbone.device.type == "cuda" else None

    @torch.no_grad()
    def step(self) -> None:
        """Sample the first token of each answer, or the next ones up to `READ_EVERY`."""
        left = self.max_new_tokens - len(self.ids[self._open[0]])
        bucket = bucket_for(len(self._open))
        if self._fits() and left >= WORTH and (self._fixed is None or bucket < self._fixed.rows):
            self._run = None  # a graph's memory is free again before the next one takes some
            self._fixed = self._gathered(bucket, left)
            self._run = self._fixed.advance
            if self._capture is not None and not _failures:
                self._run = captured(self._run, self._fixed.state, self._capture)
        if self._fixed is None or self._run is None:
            super().step()
            return
        steps = min(READ_EVERY, left)
        for _ in range(steps):
            self._run()
        self._take(self._fixed.taken(steps))

    def _fits(self) -> bool:
        kinds = (PreallocatedLayer, _FixedLayer)
        # Other attention than the project's may take a mask of another kind.
        return (
            self._cache is not None
            and self._takes_rows
            and self.backbone.forward.packs
            and all(type(layer) in kinds for layer in self._cache.layers)
        )

    def _gathered(self, bucket: int, left: int) -> "_FixedBatch":
        """The open rows at fixed places; the rest of the bucket repeats the first of them."""
        device, before = self.backbone.device, self._fixed
        fill = [*self._open, *[self._open[0]] * (bucket - len(self._open))]
        if before is not None:
            fixed = before.shrunk([self._rows.index(place) for place in fill])
        else:
            rows = [self._open.index(place) for place in fill]
            last = torch.tensor([self.ids[place][-1:] for place in fill], device=device)
            like: Any = {"dtype": torch.float64, "device": "cpu"}
            draws = [torch.rand(left, generator=self._draws[place], **like) for place in self._open]
            fixed = _FixedBatch(
                self.backbone,
                self.temperature,
                self._cache,
                mask=torch.nn.functional.pad(self._mask[rows].bool(), (0, left)),
                last=last,
                used=self._mask.shape[1],
                draws=torch.stack([draws[row] for row in rows], dim=1),
                kept=rows,
            )
        self._rows = list(fill)
        return fixed

    def _take(self, tokens: list[list[int]]) -> None:
        """Append the new tokens (steps, rows) to their answers, each up to its stop token."""
        stops, staying = set(self.backbone.stop_ids), []
        for place in self._open:
            column = self._rows.index(place)
            new = [row[column] for row in tokens]
            end = next((n + 1 for n, token in enumerate(new) if token in stops), None)
            self.ids[place] += new[:end]
            if end is None and len(self.ids[place]) < self.max_new_tokens:
                staying.append(place)
        self._open = staying
        if not staying:
            self._cache = self._fixed = self._run = None


class _FixedLayer(DynamicLayer):
    """One layer's keys and values (B, k, S, d), written at a place that the device holds."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, place: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys: torch.Tensor = keys
        self.values: torch.Tensor = values
        self.place = place

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of one token; returns all places, written or not."""
        self.keys.index_copy_(2, self.place, key_states)
        self.values.index_copy_(2, self.place, value_states)
        return self.keys, self.values


class _FixedBatch:
    """B rows of a batch with all that a step reads and writes, at fixed places.

    Args:
        cache: a cache of other rows; its layers are replaced.
        mask: (B, S) which of the S places hold a token of the row.
        last: (B, 1) the last token of each row.
        used: how many places are written.
        draws: (steps, B) the numbers that choose the tokens to come.
        kept: for each row, its number in `cache`.

    Attributes:
        rows: B.
        state: the small tensors that a step changes; keys and values are written before they are
            read.
    """

    def __init__(
        self,
        backbone: Backbone,
        temperature: float,
        cache: Any,
        *,
        mask: torch.Tensor,
        last: torch.Tensor,
        used: int,
        draws: torch.Tensor,
        kept: list[int],
    ) -> None:
        self.backbone, self.temperature, self.cache = backbone, temperature, cache
        self.rows, self.mask, device = len(kept), mask[:, None, None].contiguous(), mask.device
        self.tokens, self.positions = last.clone(), mask.sum(dim=1, keepdim=True)
        self.draws = draws.to(device)
        self.out = torch.zeros(draws.shape, dtype=torch.long, device=device)
        self.place = torch.tensor([used], device=device)
        self.count = torch.zeros(1, dtype=torch.long, device=device)
        self.state = [self.mask, self.tokens, self.positions, self.place, self.count, self.out]

        def moved(old: torch.Tensor) -> torch.Tensor:
            # Zeros, because a masked place counts 0 times what stands there.
            new = old.new_zeros((self.rows, old.shape[1], mask.shape[1], old.shape[3]))
            new[:, :, :used] = old[kept, :, :used]
            return new

        for number, layer in enumerate(cache.layers):  # one by one, so that memory is freed
            cache.layers[number] = _FixedLayer(moved(layer.keys), moved(layer.values), self.place)

    def shrunk(self, kept: list[int]) -> "_FixedBatch":
        """Some of the rows, by number, in a batch of their own."""
        return _FixedBatch(
            self.backbone,
            self.temperature,
            self.cache,
            mask=self.mask[kept, 0, 0],
            last=self.tokens[kept],
            used=int(self.place),
            draws=self.draws[int(self.count) :, kept],
            kept=kept,
        )

    def advance(self) -> None:
        """One more token for each row."""
        self.mask.index_fill_(3, self.place, True)
        output = self.backbone.causal(
            input_ids=self.tokens,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        draws = self.draws.index_select(0, self.count)[0]
        new = pick(output.logits[:, -1], draws, self.temperature)
        self.out.index_copy_(0, self.count, new[None])
        self.tokens.copy_(new[:, None])
        for counter in (self.positions, self.place, self.count):
            counter.add_(1)

    def taken(self, steps: int) -> list[list[int]]:
        """The tokens of the last `steps` steps: (steps, B). Waits for the device."""
        end = int(self.count)
        return self.out[end - steps : end].tolist()


# ---- the graph


def captured(step: Step, state: list[torch.Tensor], capture: Capture) -> Step:
    """A step as a graph, or the step itself where a graph can't be made or does something else.

    After a failure no other is tried in this process (see `sampler_for`).

    Args:
        state: what the step changes; unchanged afterwards.
        capture: makes the graph.
    """
    before = [tensor.clone() for tensor in state]

    def results(run: Step) -> list[torch.Tensor]:
        for _ in range(CHECKED):
            run()
        after = [tensor.clone() for tensor in state]
        restore()
        return after

    def restore() -> None:
        for tensor, old in zip(state, before, strict=True):
            tensor.copy_(old)

    wanted = results(step)
    try:
        replay = capture(step)
        restore()
        found = results(replay)
    except RuntimeError as error:
        restore()
        cause = error.__context__ or error  # the end of a broken capture raises once more
        _failed(" ".join(f"{type(cause).__name__}: {cause}".split())[:200])
        return step
    if all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True)):
        return replay
    _failed("the graph gave other tokens than the code that it was made from")
    return step


def capture(step: Step) -> Step:
    """Capture a step in a CUDA graph. The step runs once before, to set up libraries."""
    stream, outer = _side_stream(), torch.cuda.current_stream()
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(outer)
    try:
        with torch.cuda.stream(stream):
            step()
        # Only this thread's calls end the capture; a progress bar's thread may do what it likes.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            step()
    finally:
        torch.cuda.set_stream(outer)  # torch leaves it out when the end of a capture fails
    outer.wait_stream(stream)
    return graph.replay


@cache
def _side_stream() -> torch.cuda.Stream:
    """One for all captures: libraries keep memory for each stream that they have seen."""
    return torch.cuda.Stream()


_failures: list[str] = []


def _failed(reason: str) -> None:
    _failures.append(reason)
    log_to_stderr(f"Answers are sampled without a CUDA graph, more slowly ({reason}).")
