"""Progress, metrics and the check of the loss, for every trainer."""

import math
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.machine import peak_card_mb, peak_rss_mb
from lorarlhf.runtime.run import Run

Row = dict[str, Any]

PATIENCE = 3
"""The training ends after this many log lines in a row whose loss is not a number."""


class RunCallback(TrainerCallback):
    """Writes each log line to `metrics.jsonl` and moves one progress bar."""

    def __init__(
        self,
        run: Run,
        title: str,
        shown: Sequence[str] = ("loss",),
        stage: str | None = None,
    ) -> None:
        self.run, self.title, self.shown = run, title, tuple(shown)
        self.stage = stage  # None: the run's own stage
        self.bar: tqdm | None = None
        self._peak_logged = False
        self._lost, self._seen = 0, False  # log lines in a row without a loss; one with a loss

    def _log_peak(self) -> None:
        """Log the peak memory once, after the first step, which has the longest rows."""
        self._peak_logged = True
        card = peak_card_mb().get("peak_card_mb")
        taken = card or peak_rss_mb()
        self.run.about["first_step_mb"] = taken
        where = "of the card" if card else "of memory"
        log_beside_bars(f"Peak after the first step: {taken / 1e3:.1f} GB {where}.")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        total, done, quiet = state.max_steps, state.global_step, not distributed.is_main()
        self.bar = tqdm(total=total, initial=done, desc=self.title, disable=quiet)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
        if not self._peak_logged and state.is_world_process_zero:
            self._log_peak()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Row | None = None, **kwargs: Any
    ) -> None:
        logs = logs or {}
        self._look_for_a_loss(args, logs)
        if "train_runtime" in logs or not state.is_world_process_zero:
            return  # the trainer's closing line, which run.json has; or another process's
        self.run.log({"step": state.global_step, **logs}, stage=self.stage)
        shown = {name: logs[name] for name in self.shown if math.isfinite(logs.get(name, math.nan))}
        if self.bar is not None and shown:
            self.bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()})

    def _look_for_a_loss(self, args: Any, logs: Row) -> None:
        """Raise a `UserError` if the loss stays NaN or infinite; all processes see the same one."""
        if "loss" in logs:
            found = math.isfinite(logs["loss"])
            self._seen |= found
            self._lost = 0 if found else self._lost + 1
        nothing = "train_runtime" in logs and self._lost and not self._seen
        if nothing or self._lost >= PATIENCE:
            fix = "Use a lower learning rate (--set learning_rate=...)."
            if args.fp16:
                fix = "Values overflow in float16: use --set compute_dtype=float32."
            raise UserError(f"The loss of {self.title} is not a number any more. {fix}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()


def log_beside_bars(text: str) -> None:
    """Print one line on standard error, above any progress bars."""
    if distributed.is_main():
        tqdm.write(text, file=sys.stderr)
