"""TRL's configurations from a stage's settings."""

import difflib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.run import Run


@dataclass(frozen=True)
class Placement:
    """Where a training runs and writes: all that TRL's configurations need to know about it.

    Attributes:
        folder: of the run.
    """

    device: torch.device
    dtype: torch.dtype
    folder: Path
    seed: int

    @classmethod
    def of(cls, backbone: Backbone, run: Run) -> "Placement":
        """The placement of a loaded backbone and an open run."""
        return cls(backbone.device, backbone.compute_dtype, run.folder, run.about["seed"])


def trl_arguments(
    config_class: type, placement: Placement, own: dict[str, Any], extra: dict[str, Any]
) -> Any:
    """TRL's configuration: our defaults, then the stage's own settings, then the `trl:` mapping.

    Raises:
        UserError: `trl:` names a field that TRL's class does not have; suggests the nearest.
    """
    known = {field.name for field in fields(config_class)}
    for name in extra:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"trl.{name} is not a field of TRL's {config_class.__name__}.{hint}")
    on_card = placement.device.type == "cuda"
    defaults = {
        "output_dir": str(placement.folder),
        "bf16": placement.dtype == torch.bfloat16,
        "fp16": placement.dtype == torch.float16,
        "use_cpu": placement.device.type == "cpu",
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would log 0 for a loss that is not a number
        "dataloader_pin_memory": on_card,
        "gradient_checkpointing": on_card,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "seed": placement.seed,
        "ddp_find_unused_parameters": False,  # each forward uses all weights that train
    }
    return config_class(**(defaults | own | extra))


def batch_arguments(batch_size: int, micro_batch_size: int) -> dict[str, int]:
    """TRL's fields for `batch_size` rows a step, at most `micro_batch_size` of them in a forward.

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
