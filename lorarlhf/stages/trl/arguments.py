"""What the stages share: TRL's arguments, conversations from plain text, logging, progress."""

import difflib
from dataclasses import fields
from typing import Any

import torch
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from lorarlhf.backbone.base import Backbone
from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.run import Run

Row = dict[str, Any]


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
    count = distributed.world_size()
    share, left = divmod(batch_size, count)
    if left:
        raise UserError(
            f"batch_size is {batch_size}, and {count} processes share the rows of a step: make it "
            f"a multiple of {count}, or start another number of them."
        )
    micro = min(micro_batch_size, share)
    while share % micro:
        micro -= 1
    return {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": share // micro,
    }


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
