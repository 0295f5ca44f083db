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

_HELD_OUT = "held-out rows are measured by evaluations, and in ppo by eval_steps"
_HUB = "nothing is uploaded; a run's adapters are plain PEFT folders"
_TOKENIZER = "the tokenizer and the chat template of the base decide that; see chat_template"
_WEIGHTS = "the base is loaded by base, bits and compute_dtype"
MANAGED = {
    "output_dir": "a run's folder is named by --out",
    "logging_dir": "a run's metrics are in its folder, which --out names",
    "overwrite_output_dir": "an earlier run in the folder is kept beside the new one",
    "resume_from_checkpoint": "a stopped run is continued by --resume",
    "ignore_data_skip": "a resumed run continues with the next row",
    "save_strategy": "checkpoints are written every save_steps steps",
    "save_steps": "set save_steps without trl.",
    "save_total_limit": "a stage keeps its two newest checkpoints, and ppo has save_total_limit",
    "save_only_model": "a checkpoint has all that --resume needs",
    "load_best_model_at_end": "what lowers the held-out loss is kept, and ppo has kl_budget",
    "eval_strategy": _HELD_OUT,
    "do_eval": _HELD_OUT,
    "push_to_hub": _HUB,
    "hub_model_id": _HUB,
    "hub_token": _HUB,
    "seed": "set seed without trl., or --seed",
    "bf16": "set compute_dtype",
    "fp16": "set compute_dtype",
    "use_cpu": "set device=cpu",
    "auto_find_batch_size": "a forward that runs out of memory is repeated in smaller parts",
    "model_init_kwargs": _WEIGHTS,
    "trust_remote_code": _WEIGHTS,
    "chat_template_path": "set chat_template=FILE",
    "eos_token": _TOKENIZER,
    "pad_token": _TOKENIZER,
}
"""Fields of TRL's configurations that would contradict this package, and what to do instead."""

PIP_NAMES = {"azure_ml": "azureml-mlflow", "comet_ml": "comet-ml", "flyte": "flytekit"}
"""The packages of trackers that have another name on PyPI."""


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
        UserError: `trl:` names a field that TRL's class does not have, suggesting the nearest, or
            one of `MANAGED`; or `report_to` names a service that can't be used.
    """
    known = {field.name for field in fields(config_class)}
    for name in extra:
        if name in MANAGED:
            raise UserError(f"trl.{name} can't be set: {MANAGED[name]}.")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"trl.{name} is not a field of TRL's {config_class.__name__}.{hint}")
    on_card = placement.device.type in ("cuda", "xpu")
    defaults = {
        "output_dir": str(placement.folder),
        "bf16": placement.dtype == torch.bfloat16,
        "fp16": placement.dtype == torch.float16,
        "use_cpu": placement.device.type == "cpu",
        "disable_tqdm": True,
        "report_to": "none",  # whatever is installed
        "project": "lorarlhf",  # of trackers that have projects
        "run_name": placement.folder.resolve().name,
        "save_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would log 0 for a loss that is not a number
        "dataloader_pin_memory": on_card,
        "gradient_checkpointing": on_card,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "seed": placement.seed,
        "ddp_find_unused_parameters": False,  # each forward uses all weights that train
    }
    given = defaults | own | extra
    if isinstance(given["report_to"], str):
        given["report_to"] = [name.strip() for name in given["report_to"].split(",")]
    made = config_class(**given)
    _check_services(made.report_to)
    if made.n_gpu > 1:  # the Trainer would copy the model to each card that it sees
        made._n_gpu = 1
    return made


def _check_services(names: str | list[str]) -> None:
    """See that metrics can be sent to the named services, before anything is loaded."""
    from transformers.integrations import integration_utils

    known = integration_utils.INTEGRATION_TO_CALLBACK
    packages = {"azure_ml": "azureml", "comet_ml": "comet", "flyte": "flytekit"}
    for name in [names] if isinstance(names, str) else names:
        if name == "none":
            continue
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(sorted(known))}."
            raise UserError(f"report_to names {name}, which is no service of transformers. {hint}")
        if not getattr(integration_utils, f"is_{packages.get(name, name)}_available")():
            package = PIP_NAMES.get(name, name)
            raise UserError(
                f"report_to names {name}, which is not installed. Install it with `pip install "
                f"{package}`, or leave report_to out: the metrics are in the run's folder either "
                "way."
            )


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
