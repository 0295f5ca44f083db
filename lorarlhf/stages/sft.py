"""Supervised fine-tuning of the policy by TRL's `SFTTrainer`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.setting_types import NonNegativeFloat, PositiveFloat, PositiveInt
from lorarlhf.stages.assistant_turns import assistant_tokens
from lorarlhf.stages.callbacks import RunCallback
from lorarlhf.stages.conversations import Row, conversational
from lorarlhf.stages.inputs import StageInputs
from lorarlhf.stages.step_size import fill_in_sft_rate, given_rate
from lorarlhf.stages.trl.arguments import Placement, batch_arguments, trl_arguments
from lorarlhf.stages.trl.checkpointing import saving
from lorarlhf.stages.trl.trainer import loss_summary, run_trl_trainer


@dataclass
class SFTSettings:
    """Settings of supervised tuning; `trl` reaches every other field of TRL's `SFTConfig`."""

    epochs: PositiveFloat = 3.0  # passes over the demonstrations
    # Step size of the policy's adapter; none: by the base's width, at most 1e-3
    learning_rate: NonNegativeFloat | None = None
    batch_size: PositiveInt = 8  # demonstrations in one optimizer step
    micro_batch_size: PositiveInt = 4  # demonstrations in one forward; memory only
    max_tokens: PositiveInt = 1024  # longer demonstrations are cut by TRL
    save_steps: PositiveInt = 50  # optimizer steps between checkpoints; in code also 0: none
    plain: bool = False  # texts as they are, without the chat template
    assistant_only: bool = True  # of messages, learn the assistant's turns and not the others
    report_to: str = "none"  # trackers that get the metrics too, with commas between them
    trl: dict[str, Any] = field(default_factory=dict)


def train_sft(
    backbone: Backbone,
    rows: Sequence[Row],
    run: Run,
    settings: SFTSettings | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train the policy on demonstrations and make it the reference.

    Args:
        backbone: its policy is trained.
        rows: `prompt` and `completion`, or `messages`, or `text`.
        run: gets the metrics; policy and reference are saved under its adapters/.
        settings: by default those of `SFTSettings()`.
        resume: continue from the run's newest checkpoint, if there is one.

    Returns:
        a summary: rows, `learning_rate` at the start, steps, first and last loss.
    """
    settings = settings or SFTSettings()
    made = conversational(rows, backbone, settings.plain)
    args = arguments(Placement.of(backbone, run), settings)
    return run_sft(backbone, run, StageInputs(made, settings, args, resume=resume))


def arguments(placement: Placement, settings: SFTSettings) -> Any:
    """TRL's `SFTConfig`. Raises a `UserError` or `ValueError` for values it does not take."""
    from trl import SFTConfig

    own = {
        "num_train_epochs": settings.epochs,
        **given_rate(settings),
        **batch_arguments(settings.batch_size, settings.micro_batch_size),
        "max_length": settings.max_tokens,
        **saving(settings.save_steps),
        "report_to": settings.report_to,
    }
    return trl_arguments(SFTConfig, placement, own, settings.trl)


def run_sft(backbone: Backbone, run: Run, inputs: StageInputs) -> dict[str, Any]:
    """`train_sft` from prepared inputs."""
    from datasets import Dataset
    from trl import SFTTrainer

    rows, settings = list(inputs.rows), inputs.settings
    if (
        "messages" in rows[0]
        and settings.assistant_only
        and not settings.trl.get("assistant_only_loss")
    ):
        rows = [
            part for row in rows for part in assistant_tokens(backbone.encoder, row["messages"])
        ]
    fill_in_sft_rate(inputs.args, settings, backbone.hidden_size, rows)
    trainer = run_trl_trainer(
        SFTTrainer,
        backbone,
        "policy",
        inputs.args,
        resume=inputs.resume,
        train_dataset=Dataset.from_list(rows),
        callbacks=[RunCallback(run, "supervised tuning", ("loss", "mean_token_accuracy"))],
    )
    backbone.freeze_reference()
    for role in ("policy", "reference"):
        backbone.save(role, run.folder / "adapters" / role)
    found = {"rows": len(inputs.rows), "learning_rate": inputs.args.learning_rate}
    return found | loss_summary(trainer)
