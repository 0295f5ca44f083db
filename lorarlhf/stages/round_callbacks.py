"""Callbacks of DITTO's parts: steps and seconds counted over all of them, and one reference."""

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Protocol

from transformers import TrainerCallback

from lorarlhf.backbone.base import Backbone
from lorarlhf.runtime.run import Run
from lorarlhf.stages.callbacks import Row, RunCallback


class Progress(Protocol):
    """What is done before a part: its round, and all steps and seconds so far."""

    rounds: int
    steps: int
    seconds: float


class RoundCallback(RunCallback):
    """`RunCallback` with the round, and with steps and seconds counted over all parts.

    Args:
        done: gets the seconds of the part.
    """

    def __init__(self, run: Run, title: str, shown: Sequence[str], done: Progress) -> None:
        super().__init__(run, title, shown)
        self.done, self.before = done, done.steps
        self._peak_logged = done.rounds > 1  # as that of the first round

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._began = time.monotonic() - self.done.seconds

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_end(args, state, control, **kwargs)
        self.done.seconds = self._trained()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Row | None = None, **kwargs: Any
    ) -> None:
        counted = SimpleNamespace(
            global_step=self.before + state.global_step,
            is_world_process_zero=state.is_world_process_zero,
        )
        super().on_log(args, counted, control, (logs or {}) | {"round": self.done.rounds})


class KeepReference(TrainerCallback):
    """Puts the reference back, where TRL's trainer has made it a copy of the policy."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.weights = [w.detach().clone() for w in backbone.parameters_of("reference")]

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        ours = self.backbone.parameters_of("reference")
        for weight, kept in zip(ours, self.weights, strict=True):
            weight.data.copy_(kept)
