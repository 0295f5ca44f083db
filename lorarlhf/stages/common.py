"""What the stages share: TRL's arguments, conversations from plain text, logging, progress."""

import difflib
import math
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from lorarlhf import processes
from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.reading import Reader
from lorarlhf.data import as_conversation
from lorarlhf.errors import UserError
from lorarlhf.generation import check_chat_template
from lorarlhf.runs import Run, peak_card_mb, peak_rss_mb

Row = dict[str, Any]
PATIENCE = 3
"""After how many log lines in a row whose loss is not a number a training ends."""


def trl_arguments(
    kind: type, backbone: Backbone, run: Run, own: dict[str, Any], extra: dict[str, Any]
) -> Any:
    """TRL's config of `kind`: our defaults, then the stage's own settings, then the `trl:` map.

    Raises:
        UserError: `trl:` names a field that TRL's config does not have; says the nearest.
    """
    known = {field.name for field in fields(kind)}
    for name in extra:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"trl.{name} is not a field of TRL's {kind.__name__}.{hint}")
    defaults = {
        "output_dir": str(run.folder),
        "bf16": backbone.compute_dtype == torch.bfloat16,
        "fp16": backbone.compute_dtype == torch.float16,
        "use_cpu": backbone.device.type == "cpu",
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would log 0 for a loss that is not a number
        "dataloader_pin_memory": backbone.device.type == "cuda",
        "gradient_checkpointing": backbone.device.type == "cuda",
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "seed": run.about["seed"],
        "ddp_find_unused_parameters": False,  # each forward uses all weights that train
    }
    return kind(**(defaults | own | extra))


def batch_arguments(batch_size: int, micro_batch_size: int) -> dict[str, int]:
    """TRL's words for `batch_size` rows a step, at most `micro_batch_size` of them in a forward.

    Raises:
        UserError: the processes that train together can't share the rows of a step evenly.
    """
    share, left = divmod(batch_size, processes.count())
    if left:
        raise UserError(
            f"batch_size is {batch_size}, and {processes.count()} processes share the rows of a "
            f"step: make it a multiple of {processes.count()}, or start another number of them."
        )
    micro = min(micro_batch_size, share)
    while share % micro:
        micro -= 1
    return {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": share // micro,
    }


def conversational(rows: Sequence[Row], reader: Backbone | Reader, plain: bool) -> list[Row]:
    """Plain texts as conversations, so that the chat template is used, unless `plain` is asked for.

    Only TRL's columns are kept. Raises a `UserError` where the base has no chat template.
    """
    columns = ("prompt", "completion", "chosen", "rejected", "messages", "text", "margin")
    kept = [{name: row[name] for name in columns if row.get(name) is not None} for row in rows]
    if plain:
        return kept
    made = [{name: _as_messages(name, value) for name, value in row.items()} for row in kept]
    check_chat_template(reader, [row.get("prompt", row.get("messages", "")) for row in made])
    return made


def _as_messages(name: str, value: Any) -> Any:
    if not isinstance(value, str) or name == "text":
        return value
    if name == "prompt":
        return as_conversation(value)
    return [{"role": "assistant", "content": value}]


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
        self.stage = stage  # the run's own, unless the run has several
        self.bar: tqdm | None = None
        self._peak_told = False
        self._lost, self._seen = 0, False  # log lines in a row without a loss; one with a loss

    def _tell_peak(self) -> None:
        """Once, after the first step, which begins with the longest rows."""
        self._peak_told = True
        card = peak_card_mb().get("peak_card_mb")
        taken = card or peak_rss_mb()
        self.run.about["first_step_mb"] = taken
        where = "of the card" if card else "of memory"
        say_beside_bars(f"Peak after the first step: {taken / 1e3:.1f} GB {where}.")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        total, done, quiet = state.max_steps, state.global_step, not processes.first()
        self.bar = tqdm(total=total, initial=done, desc=self.title, disable=quiet)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
        if not self._peak_told and state.is_world_process_zero:
            self._tell_peak()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Row | None = None, **kwargs: Any
    ) -> None:
        logs = logs or {}
        self._look_for_a_loss(args, logs)
        if "train_runtime" in logs or not state.is_world_process_zero:
            return  # the trainer's closing line, which run.json has; or another process's
        self.run.log({"step": state.global_step, **logs}, stage=self.stage)
        shown = {name: logs[name] for name in self.shown if name in logs}
        if self.bar is not None and shown:
            self.bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()})

    def _look_for_a_loss(self, args: Any, logs: Row) -> None:
        """Raise a `UserError` where the loss stays no number; every process sees the same one."""
        if "loss" in logs:
            found = math.isfinite(logs["loss"])
            self._seen |= found
            self._lost = 0 if found else self._lost + 1
        nothing = "train_runtime" in logs and self._lost and not self._seen
        if nothing or self._lost >= PATIENCE:
            cure = "Use a lower learning rate (--set learning_rate=...)."
            if args.fp16:
                cure = "Values overflow in float16: use --set compute_dtype=float32."
            raise UserError(f"The loss of {self.title} is not a number any more. {cure}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()


def say_beside_bars(text: str) -> None:
    """One line on standard error, above the progress bars that stand there."""
    if processes.first():
        tqdm.write(text, file=sys.stderr)


def only_ours(trainer: Any) -> None:
    """Leave printing and progress to `RunCallback`."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)


def scale_losses(trainer: Any) -> None:
    """Loss scaling and autocast for float16 on the CPU as well; call it before the training.

    accelerate makes both for cards. On the CPU it takes `fp16` for full precision without a word,
    and the smaller gradients would come out as 0.
    """
    accelerator = trainer.accelerator
    if trainer.args.fp16 and accelerator.scaler is None:
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler(accelerator.device.type)


def last_losses(trainer: Any) -> dict[str, float]:
    """The first and the last training loss of a finished trainer."""
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {"loss_first": losses[0], "loss_last": losses[-1]} if losses else {}
