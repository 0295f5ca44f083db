"""Preference tuning without a reward model: DPO and ORPO by TRL's trainers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.setting_types import (
    FractionBelow1,
    FractionBelowHalf,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from lorarlhf.stages.conversations import Row, conversational, refuse_template_columns
from lorarlhf.stages.held_out import hold_out
from lorarlhf.stages.inputs import StageInputs
from lorarlhf.stages.preference_run import run_watched
from lorarlhf.stages.step_size import given_rate
from lorarlhf.stages.trl.arguments import Placement, batch_arguments, trl_arguments
from lorarlhf.stages.trl.checkpointing import saving
from lorarlhf.stages.trl.dpo import DPOMixin
from lorarlhf.stages.trl.orpo import ORPOMixin
from lorarlhf.stages.trl.trainer import last_logged, loss_summary

METHODS = ("dpo", "orpo")
SHOWN = ("loss", "rewards/accuracies")


@dataclass
class DirectSettings:
    """Settings that DPO and ORPO share; `trl` reaches TRL's other fields."""

    epochs: PositiveFloat = 3.0  # passes over the pairs
    # Step size of the policy's adapter; none: by the base's width and the votes, at most 5e-4
    learning_rate: NonNegativeFloat | None = None
    batch_size: PositiveInt = 8  # pairs in one optimizer step
    micro_batch_size: PositiveInt = 4  # pairs in one forward; memory only
    max_tokens: PositiveInt = 1024  # prompt and answer together
    beta: PositiveFloat = 0.1  # strength of the reference
    holdout: FractionBelow1 = 0.1  # share of the prompts that decides which weights are kept
    evaluations: NonNegativeInt = 4  # how often held-out loss and health are measured; 0: never
    save_steps: PositiveInt = 50  # optimizer steps between checkpoints; in code also 0: none
    plain: bool = False  # texts as they are, without the chat template
    report_to: str = "none"  # trackers that get the metrics too, with commas between them
    trl: dict[str, Any] = field(default_factory=dict)


@dataclass
class ORPOSettings(DirectSettings):
    """Settings of ORPO. Its paper has a `beta` of 0.1 to 1 for tens of thousands of pairs."""

    # Weight of the odds ratio beside the likelihood of the chosen answers
    beta: PositiveFloat = 5.0


@dataclass
class DPOSettings(DirectSettings):
    """Settings of DPO. `trl.loss_type` replaces the whole loss, the SFT term included."""

    # Weight of the chosen answers' mean negative log-likelihood per token, added to the loss
    sft_weight: NonNegativeFloat = 0.2
    noise: FractionBelowHalf = 0.0  # share of wrong votes, for the robust loss; 0: the usual loss


def train_direct(
    backbone: Backbone,
    rows: Sequence[Row],
    run: Run,
    method: str = "dpo",
    settings: DirectSettings | None = None,
    resume: bool = False,
    eval_rows: Sequence[Row] | None = None,
) -> dict[str, Any]:
    """Train the policy on preference pairs.

    Args:
        backbone: its policy is trained; in DPO the reference is the policy as it is now.
        rows: `prompt`, `chosen`, `rejected`.
        run: gets the metrics; the policy is saved under its adapters/.
        method: `dpo` (arXiv 2305.18290) or `orpo` (arXiv 2403.07691, without a reference).
        settings: for DPO `DPOSettings`; plain `DirectSettings` give it TRL's own loss alone.
        resume: continue from the run's newest checkpoint, if there is one.
        eval_rows: pairs of other prompts that decide which weights are kept; without them a share
            of the prompts is held out.

    Returns:
        a summary: rows, steps, first and last loss, accuracy of the last log line, the `alarms`
        that are on for the policy that is kept; with held-out pairs also their number, the step
        whose weights are kept, and their loss.

    Raises:
        UserError: another method.
    """
    if method not in METHODS:
        raise UserError(f"The method is one of {', '.join(METHODS)}, not {method}.")
    settings = settings or (DPOSettings() if method == "dpo" else ORPOSettings())
    train, held = hold_out(rows, eval_rows, settings, run.about["seed"])
    made = conversational(train, backbone, settings.plain)
    test = None if held is None else conversational(held, backbone, settings.plain)
    placement = Placement.of(backbone, run)
    args = (dpo_arguments if method == "dpo" else orpo_arguments)(placement, settings)
    inputs = StageInputs(made, settings, args, test, resume)
    return (run_dpo if method == "dpo" else run_orpo)(backbone, run, inputs)


def dpo_arguments(placement: Placement, settings: DirectSettings) -> Any:
    """TRL's `DPOConfig`. Raises a `UserError` or `ValueError` for values it does not take."""
    from trl import DPOConfig

    own = pair_arguments(settings) | _loss(settings)
    return trl_arguments(DPOConfig, placement, own, settings.trl)


def _loss(settings: DirectSettings) -> dict[str, Any]:
    """The robust loss (arXiv 2403.00409) and the SFT term by TRL's names, as far as wanted."""
    if not isinstance(settings, DPOSettings) or "loss_type" in settings.trl:
        return {}
    own: dict[str, Any] = {}
    if settings.noise:
        own = {"loss_type": ["robust"], "label_smoothing": settings.noise}
    if settings.sft_weight:
        main = "robust" if settings.noise else "sigmoid"
        own |= {"loss_type": [main, "sft"], "loss_weights": [1.0, settings.sft_weight]}
    return own


def orpo_arguments(placement: Placement, settings: DirectSettings) -> Any:
    """TRL's `ORPOConfig`. Raises a `UserError` or `ValueError` for values it does not take."""
    # Experimental in TRL: it may move or go, so only this file imports it.
    from trl.experimental.orpo import ORPOConfig

    return trl_arguments(ORPOConfig, placement, pair_arguments(settings), settings.trl)


def pair_arguments(settings: DirectSettings) -> dict[str, Any]:
    """The settings by TRL's names."""
    return {
        "num_train_epochs": settings.epochs,
        **given_rate(settings),
        **batch_arguments(settings.batch_size, settings.micro_batch_size),
        "per_device_eval_batch_size": settings.micro_batch_size,
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
    kind = type("DPOTrainer", (DPOMixin, DPOTrainer), {})  # TRL writes the class's name into logs
    return _run(kind, "DPO", backbone, run, inputs)


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
    trainer, found = run_watched(trainer_class, title, SHOWN, backbone, run, inputs, inputs.rows)
    accuracy = last_logged(trainer, SHOWN[1])
    return {"rows": len(inputs.rows)} | loss_summary(trainer) | accuracy | found
