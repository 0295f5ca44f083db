"""Progress, metrics and the check of the loss, for every trainer."""

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import readable_rows
from lorarlhf.runtime.machine import peak_card_mb, peak_rss_mb
from lorarlhf.runtime.run import Run

Row = dict[str, Any]

PATIENCE = 3
"""The training ends after this many log lines in a row whose loss is not a number."""


class RunCallback(TrainerCallback):
    """Writes each log line to `metrics.jsonl` and moves one progress bar.

    Where the run has a budget of minutes, it ends the training after the step in which they are
    over, and each log line has the `trained_seconds`, so that a resumed run goes on with what is
    left. `run.json` says how long was trained.
    """

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
        self._began = 0.0

    def _log_peak(self) -> None:
        """Log the peak memory once, after the first step, which has the longest rows."""
        self._peak_logged = True
        card = peak_card_mb().get("peak_card_mb")
        taken = card or peak_rss_mb()
        self.run.about["first_step_mb"] = taken
        where = "of the card" if card else "of memory"
        log_beside_bars(f"Peak after the first step: {taken / 1e3:.1f} GB {where}.")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.monotonic() - trained_seconds(self.run)
        total, done, quiet = state.max_steps, state.global_step, not distributed.is_main()
        self.bar = tqdm(total=total, initial=done, desc=self.title, disable=quiet)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
        if not self._peak_logged and state.is_world_process_zero:
            self._log_peak()
        budget = self.run.minutes
        # All processes have to stop after the same step, whose clocks differ.
        if budget is not None and distributed.any_process(self._trained() >= 60 * budget):
            control.should_training_stop = control.should_save = True
            # Where the best weights are kept, only measured ones can be the best.
            control.should_evaluate |= args.eval_strategy != "no"
            log_beside_bars(
                f"The {budget:g} minutes of training are over: {self.title} ends after step "
                f"{state.global_step}."
            )

    def _trained(self) -> float:
        """Seconds of training so far, with those before a stop."""
        return time.monotonic() - self._began

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Row | None = None, **kwargs: Any
    ) -> None:
        logs = logs or {}
        self._look_for_a_loss(args, logs)
        if "train_runtime" in logs or not state.is_world_process_zero:
            return  # the trainer's closing line, which run.json has; or another process's
        row = {"step": state.global_step, **logs}
        if self.run.minutes is not None:
            row["trained_seconds"] = self._trained()
        self.run.log(row, stage=self.stage)
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
        self.run.about["trained_seconds"] = round(self._trained(), 1)
        if self.bar is not None:
            self.bar.close()


def trained_seconds(run: Run) -> float:
    """How long a run with a budget had trained at the last line of its log; 0 without a log."""
    file = run.folder / "metrics.jsonl"
    if run.minutes is None or not file.exists():
        return 0.0
    return max((row.get("trained_seconds", 0.0) for row in readable_rows(file)), default=0.0)


def log_beside_bars(text: str) -> None:
    """Print one line on standard error, above any progress bars."""
    if distributed.is_main():
        tqdm.write(text, file=sys.stderr)
