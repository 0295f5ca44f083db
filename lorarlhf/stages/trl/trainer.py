"""One way to run TRL's trainers on the shared backbone."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.structure import no_input_gradients
from lorarlhf.runtime.run_folder import TENSORBOARD
from lorarlhf.stages.trl.checkpointing import CheckpointingMixin
from lorarlhf.stages.trl.even_steps import EvenStepsMixin
from lorarlhf.stages.trl.oom_retry import OOMRetryMixin

KNOWN_TRL = "1.16."
"""The version whose private function `labelled_positions_only` replaces."""
MIXINS = (EvenStepsMixin, CheckpointingMixin, OOMRetryMixin)


def run_trl_trainer(
    trainer_class: type,
    backbone: Backbone,
    role: str,
    args: Any,
    *,
    resume: bool = False,
    **named: Any,
) -> Any:
    """Train a role with one of TRL's trainers; returns the trainer when it is done.

    Args:
        trainer_class: TRL's; it gets even steps, checkpoints and retries after out of memory.
        role: whose adapter trains.
        args: TRL's configuration.
        resume: continue from the run's newest checkpoint, if there is one.
        named: handed to the trainer: datasets, callbacks, a collator, another `model`.

    Raises:
        KeyboardInterrupt: Ctrl-C, after the checkpoint was written.
    """
    # TRL writes the class's name into logs, so it stays.
    kind = type(trainer_class.__name__, (*MIXINS, trainer_class), {})
    checkpointing = args.gradient_checkpointing_kwargs
    with (
        backbone.stage(role) as model,
        no_input_gradients(named.get("model", model), checkpointing),
    ):
        trainer = kind(
            **{"model": model, "args": args, "processing_class": backbone.tokenizer, **named}
        )
        remove_library_output(trainer)
        scale_losses(trainer)
        # TRL made trainable weights of a 4-bit base bfloat16; small steps would be lost.
        backbone.float32_adapters()
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
        reentrant = (checkpointing or {}).get("use_reentrant")  # then the trunk has gradients
        remembering = nullcontext() if reentrant else backbone.forward.remembered_trunk()
        with speed_ups(backbone), remembering:
            trainer.train(resume)
    return trainer


@contextmanager
def speed_ups(backbone: Backbone) -> Iterator[None]:
    """What makes TRL's trainers faster on the shared base, with the same results."""
    # Weights are kept dequantised, since a training reads them again and again. TRL's LM head takes
    # the plain weight, and the reward role has none.
    with (
        backbone.dequantised(backbone.split, backward=True, head=False),
        backbone.dequantised(head=False),
        labelled_positions_only(),
    ):
        yield


@contextmanager
def labelled_positions_only() -> Iterator[None]:
    """Let TRL's fused LM head compute only the positions that have a label on every device.

    TRL does so on devices with Triton. On others it also computes the prompts and the padding, and
    then throws those away, which makes a step of DPO on the CPU 1.4 times as long. The rest
    of what TRL does without Triton stays. Other versions of TRL than `KNOWN_TRL` are left as they
    are, and take that time, and memory that the estimate does not count.
    """
    import trl
    from trl.trainer import utils

    name = "_use_triton"  # in this module it decides nothing else
    before = getattr(utils, name, None)
    if before is None or not trl.__version__.startswith(KNOWN_TRL):
        yield
        return
    setattr(utils, name, lambda device: True)
    try:
        yield
    finally:
        setattr(utils, name, before)


def remove_library_output(trainer: Any) -> None:
    """Leave printing and progress to `RunCallback`, and TensorBoard's files in the run's folder."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    for callback in trainer.callback_handler.callbacks:
        # Its own default is a folder with the name of this machine.
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(Path(trainer.args.output_dir) / TENSORBOARD)


def scale_losses(trainer: Any) -> None:
    """Switch on loss scaling and autocast for float16 on the CPU too; call it before training.

    accelerate does both on cards. On the CPU it silently takes `fp16` for full precision, and the
    smaller gradients would come out as 0.
    """
    accelerator = trainer.accelerator
    if trainer.args.fp16 and accelerator.scaler is None:
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler(accelerator.device.type)


def loss_summary(trainer: Any) -> dict[str, Any]:
    """Of a finished trainer: steps taken, first and last training loss."""
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    summary: dict[str, Any] = {"steps": trainer.state.global_step}
    return summary | ({"loss_first": losses[0], "loss_last": losses[-1]} if losses else {})


def last_logged(trainer: Any, name: str) -> dict[str, float]:
    """`accuracy_last`-like: the value of a metric in the last log line that has it."""
    values = [row[name] for row in trainer.state.log_history if name in row]
    return {"accuracy_last": values[-1]} if values else {}
