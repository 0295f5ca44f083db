"""Preference tuning without a reward model: DPO and ORPO by TRL's trainers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.setting_types import NonNegativeFloat, PositiveFloat, PositiveInt
from lorarlhf.stages.callbacks import RunCallback
from lorarlhf.stages.conversations import Row, conversational, refuse_template_columns
from lorarlhf.stages.inputs import StageInputs
from lorarlhf.stages.trl.arguments import Placement, batch_arguments, trl_arguments
from lorarlhf.stages.trl.checkpointing import saving
from lorarlhf.stages.trl.orpo import ORPOMixin
from lorarlhf.stages.trl.trainer import last_logged, loss_summary, run_trl_trainer

METHODS = ("dpo", "orpo")


@dataclass
class DirectSettings:
    """Settings of DPO and ORPO; `trl` reaches every other field of TRL's configuration."""

    epochs: PositiveFloat = 1.0  # passes over the pairs
    learning_rate: NonNegativeFloat = 1e-4
    batch_size: PositiveInt = 8  # pairs in one optimizer step
    micro_batch_size: PositiveInt = 4  # pairs in one forward; memory only
    max_tokens: PositiveInt = 1024  # prompt and answer together
    beta: PositiveFloat = 0.1  # DPO: strength of the reference; ORPO: weight of the odds ratio
    save_steps: PositiveInt = 50  # optimizer steps between checkpoints; in code also 0: none
    plain: bool = False  # texts as they are, without the chat template
    report_to: str = "none"  # trackers that get the metrics too, with commas between them
    trl: dict[str, Any] = field(default_factory=dict)


def train_direct(
    backbone: Backbone,
    rows: Sequence[Row],
    run: Run,
    method: str = "dpo",
    settings: DirectSettings | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train the policy on preference pairs.

    Args:
        backbone: its policy is trained; in DPO the reference is the policy as it is now.
        rows: `prompt`, `chosen`, `rejected`.
        run: gets the metrics; the policy is saved under its adapters/.
        method: `dpo` (arXiv 2305.18290) or `orpo` (arXiv 2403.07691, without a reference).
        resume: continue from the run's newest checkpoint, if there is one.

    Returns:
        a summary: rows, steps, first and last loss, accuracy of the last log line.

    Raises:
        UserError: another method.
    """
    if method not in METHODS:
        raise UserError(f"The method is one of {', '.join(METHODS)}, not {method}.")
    settings = settings or DirectSettings()
    made = conversational(rows, backbone, settings.plain)
    placement = Placement.of(backbone, run)
    args = (dpo_arguments if method == "dpo" else orpo_arguments)(placement, settings)
    inputs = StageInputs(made, settings, args, resume=resume)
    return (run_dpo if method == "dpo" else run_orpo)(backbone, run, inputs)


def dpo_arguments(placement: Placement, settings: DirectSettings) -> Any:
    """TRL's `DPOConfig`. Raises a `UserError` or `ValueError` for values it does not take."""
    from trl import DPOConfig

    return trl_arguments(DPOConfig, placement, pair_arguments(settings), settings.trl)


def orpo_arguments(placement: Placement, settings: DirectSettings) -> Any:
    """TRL's `ORPOConfig`. Raises a `UserError` or `ValueError` for values it does not take."""
    # Experimental in TRL: it may move or go, so only this file imports it.
    from trl.experimental.orpo import ORPOConfig

    return trl_arguments(ORPOConfig, placement, pair_arguments(settings), settings.trl)


def pair_arguments(settings: DirectSettings) -> dict[str, Any]:
    """The settings by TRL's names."""
    return {
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        **batch_arguments(settings.batch_size, settings.micro_batch_size),
        "max_length": settings.max_tokens,
        "beta": settings.beta,
        **saving(settings.save_steps),
        "report_to": settings.report_to,
    }


def run_dpo(backbone: Backbone, run: Run, inputs: StageInputs) -> dict[str, Any]:
    """DPO from prepared inputs."""
    from trl import DPOTrainer

    if backbone.has("reference"):
        backbone.model.delete_adapter("ref")  # TRL makes a new one, a copy of the policy
    return _run(DPOTrainer, "DPO", backbone, run, inputs)


def check_orpo_rows(rows: Sequence[Row]) -> None:
    """Refuse columns that TRL's ORPO leaves out. Raises a `UserError`."""
    refuse_template_columns(rows, "orpo")


def run_orpo(backbone: Backbone, run: Run, inputs: StageInputs) -> dict[str, Any]:
    """ORPO from prepared inputs."""
    from trl.experimental.orpo import ORPOTrainer

    # TRL writes the class's name into logs, so it stays.
    kind = type("ORPOTrainer", (ORPOMixin, ORPOTrainer), {})
    return _run(kind, "ORPO", backbone, run, inputs)


def _run(
    trainer_class: type, title: str, backbone: Backbone, run: Run, inputs: StageInputs
) -> dict[str, Any]:
    from datasets import Dataset

    trainer = run_trl_trainer(
        trainer_class,
        backbone,
        "policy",
        inputs.args,
        resume=inputs.resume,
        train_dataset=Dataset.from_list(list(inputs.rows)),
        callbacks=[RunCallback(run, title, ("loss", "rewards/accuracies"))],
    )
    backbone.save("policy", run.folder / "adapters" / "policy")
    accuracy = last_logged(trainer, "rewards/accuracies")
    return {"rows": len(inputs.rows)} | loss_summary(trainer) | accuracy
