"""Which answers are sampled next: requests join a running batch, and models take turns.

Requests begin in the order in which they came, as far as there are rows and adapters for them. One
that has to wait holds up those behind it, so none waits for ever.
"""

from collections import deque
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.devices import give_back_memory
from lorarlhf.backbone.kernels.lora_linear import cast_adapters
from lorarlhf.backbone.oom import free_memory, is_out_of_memory
from lorarlhf.backbone.open_batch import OpenBatch
from lorarlhf.backbone.roles import GUESTS, lora_layers
from lorarlhf.rewards.role import score_answers
from lorarlhf.serve.errors import ApiError
from lorarlhf.serve.work import Work, rows_of

BASE = "base"
SLOTS = ("policy", *GUESTS)
"""The roles that hold adapters of policies; so many of them are kept."""
TOKENS_PER_TURN = 4
NO_MEMORY = "There is not enough memory for this answer beside the others. Ask for a shorter one."

Send = Callable[[int, str, Any], None]


class Scheduler:
    """Samples the answers of all requests.

    Args:
        send: sends a message about a request: its number, what happened, and a value.
        rows: how many answers are written at once, at most.

    Attributes:
        waiting: requests that have not begun, the first one first.
        running: the others, by their model.
    """

    def __init__(self, backbone: Backbone, send: Send, rows: int) -> None:
        self.backbone, self.send, self.rows = backbone, send, rows
        self.waiting: deque[Work] = deque()
        self.running: dict[str, list[Work]] = {}
        self._batches: dict[str, list[OpenBatch]] = {}
        self._slots: dict[str, str] = {}  # the adapter in each slot, the one used last at the end
        self._reward = ""
        self._turn: deque[str] = deque()  # models with running answers

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.waiting or self._turn)

    def add(self, work: Work) -> None:
        """Queue a request."""
        self.waiting.append(work)

    def stop(self, number: int) -> None:
        """End a request that nobody waits for any more; nothing is sent about it."""
        self.waiting = deque(work for work in self.waiting if work.number != number)
        for works in self.running.values():
            for work in [work for work in works if work.number == number]:
                work.stop()  # its answers leave their batch at its next step
                works.remove(work)
        self._forget_empty()

    def abandon(self, error: Exception) -> None:
        """End all requests after an error that nobody expected."""
        for work in [*self.waiting, *chain.from_iterable(self.running.values())]:
            self.send(work.number, "failed", error)
        self.waiting.clear()
        self.running, self._batches = {}, {}
        self._turn.clear()

    def step(self) -> None:
        """Let requests begin, then sample some tokens with the model whose turn it is."""
        self._admit()
        if not self._turn:
            return
        model = self._turn[0]
        self._turn.rotate(-1)
        self._sample(model)
        self._forget_empty()

    # ---- beginning

    def _admit(self) -> None:
        """Let waiting requests begin: those of one model share their first forward."""
        while self.waiting:
            model = self.waiting[0].model
            free = self.rows - sum(map(rows_of, self.running.values()))
            first: list[Work] = []
            while self.waiting and self.waiting[0].model == model:
                needed = len(self.waiting[0].answers)
                if needed > free and (first or self.running):
                    break
                free -= needed
                first.append(self.waiting.popleft())
            if not first:
                return
            if not self._begin(model, first):
                self.waiting.extendleft(reversed(first))
                return

    def _begin(self, model: str, works: list[Work]) -> bool:
        """Run the prompts of requests for one model; False if its adapter has no place yet."""
        try:
            slot = self._slot(model)
        except Exception as error:  # the adapter can't be loaded; other models go on
            for work in works:
                self.send(work.number, "failed", error)
            return True
        if slot is None:
            return False
        for work in works:
            self.send(work.number, "begun", None)
        self.running.setdefault(model, []).extend(works)
        batch = OpenBatch(self.backbone, [answer for work in works for answer in work.answers])
        self._batches.setdefault(model, [])
        if model not in self._turn:
            self._turn.appendleft(model)
        self._advance(model, [batch], 1)
        if not batch.done:
            self._join(model, batch)
        self._finish(model)
        self._forget_empty()
        return True

    def _join(self, model: str, batch: OpenBatch) -> None:
        """Let a batch that has begun join one of the same model, or be one of its own."""
        for other in self._batches[model]:
            try:
                if other.join(batch):
                    return
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                break
        else:
            self._batches[model].append(batch)
            return
        for lost in (batch, other):  # the cache of either may be half in the other
            self._fail(model, lost)

    def _slot(self, model: str) -> str | None:
        """The role that has a model's adapter, loaded if need be; None while no place is free."""
        if model == BASE:
            return BASE
        found = next((slot for slot, folder in self._slots.items() if folder == model), None)
        if found is None:
            used = self._slots.items()
            unused = [slot for slot in SLOTS if slot not in self._slots]
            idle = [slot for slot, folder in used if folder not in self.running]
            if not unused and not idle:
                return None
            found = (unused or idle)[0]
            self._slots.pop(found, None)  # also if loading fails
            self.backbone.load_role(found, model)
        self._slots.pop(found, None)
        self._slots[found] = model  # at the end: used last
        return found

    # ---- sampling

    def _sample(self, model: str) -> None:
        batches = self._batches[model]
        self._advance(model, batches, TOKENS_PER_TURN)
        self._finish(model)

    def _advance(self, model: str, batches: list[OpenBatch], tokens: int) -> None:
        """Sample some tokens of each batch, and send what was written."""
        slot = BASE if model == BASE else self._slot(model)
        assert slot is not None  # it is in use
        layers = lora_layers(self.backbone.model) if tokens > 1 else []
        failed: list[OpenBatch] = []
        with (
            torch.no_grad(),
            self.backbone.role(slot),
            cast_adapters(layers, self.backbone.compute_dtype),
        ):
            for batch in batches:
                for _ in range(tokens):
                    try:
                        batch.step()
                    except RuntimeError as error:
                        if not is_out_of_memory(error):
                            raise
                        failed.append(batch)
                        break
                    self._look(model)
                    if batch.done:
                        break
        for batch in failed:  # outside of `except`, which holds the tensors
            self._fail(model, batch)

    def _look(self, model: str) -> None:
        for work in self.running.get(model, []):
            pieces = work.look()
            if any(pieces):
                self.send(work.number, "pieces", pieces)

    def _fail(self, model: str, batch: OpenBatch) -> None:
        """End the requests of a batch for which memory ran out."""
        lost = {id(answer) for answer in batch.answers}
        for work in list(self.running[model]):
            if any(id(answer) in lost for answer in work.answers):
                self.running[model].remove(work)
                work.stop()
                self.send(work.number, "failed", ApiError(503, NO_MEMORY, code="out_of_memory"))
        batch.leave()
        free_memory()

    # ---- ending

    def _finish(self, model: str) -> None:
        """Send the results of requests whose answers are all written."""
        works = self.running.get(model, [])
        for work in [work for work in works if work.done]:
            works.remove(work)
            try:
                if work.reward:
                    self._pick(work)
                self.send(work.number, "done", work.result())
            except Exception as error:  # the reward role, or its memory; others go on
                self.send(work.number, "failed", error)

    def _pick(self, work: Work) -> None:
        """Let the reward role pick the best of the candidates."""
        if self._reward != work.reward:
            self._reward = ""
            self.backbone.load_role("reward", work.reward)
            self._reward = work.reward
        texts = work.candidates()
        work.pick(score_answers(self.backbone, [work.prompt] * len(texts), texts))

    def _forget_empty(self) -> None:
        """Forget batches without answers, and models without batches."""
        for model in list(self.running):
            kept = [batch for batch in self._batches.get(model, []) if not batch.done]
            self._batches[model] = kept
            if not self.running[model] and not kept:
                del self.running[model], self._batches[model]
                if model in self._turn:
                    self._turn.remove(model)
                give_back_memory()
