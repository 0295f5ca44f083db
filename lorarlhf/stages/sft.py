"""Supervised fine-tuning of the policy by TRL's `SFTTrainer`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.setting_types import NonNegativeFloat, PositiveFloat, PositiveInt
from lorarlhf.stages.callbacks import RunCallback
from lorarlhf.stages.conversations import conversational
from lorarlhf.stages.trl.arguments import (
    Row,
    batch_arguments,
    last_losses,
    only_ours,
    scale_losses,
    trl_arguments,
)
from lorarlhf.stages.trl.checkpointing import resumable, saving
from lorarlhf.stages.trl.even_steps import together
from lorarlhf.stages.trl.oom_retry import careful


@dataclass
class SFTSettings:
    """Settings of supervised tuning; `trl` reaches every other field of TRL's `SFTConfig`."""

    epochs: PositiveFloat = 3.0  # passes over the demonstrations
    learning_rate: NonNegativeFloat = 2e-4
    batch_size: PositiveInt = 8  # demonstrations in one optimizer step
    micro_batch_size: PositiveInt = 4  # demonstrations in one forward; memory only
    max_tokens: PositiveInt = 1024  # longer demonstrations are cut by TRL
    save_steps: PositiveInt = 50  # optimizer steps between checkpoints; in code also 0: none
    plain: bool = False  # texts as they are, without the chat template
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
        run: where metrics go; the policy and the reference are saved under its adapters/.
        settings: by default those of `SFTSettings()`.
        resume: go on at the run's newest checkpoint, where it has one.

    Returns:
        a summary: rows, steps, first and last loss.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    settings = settings or SFTSettings()
    dataset = Dataset.from_list(conversational(rows, backbone, settings.plain))
    own = {
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        **batch_arguments(settings.batch_size, settings.micro_batch_size),
        "max_length": settings.max_tokens,
        **saving(settings.save_steps),
    }
    args = trl_arguments(SFTConfig, backbone, run, own, settings.trl)
    with backbone.stage("policy") as model:
        trainer = together(resumable(careful(SFTTrainer)))(
            model=model,
            args=args,
            train_dataset=dataset,
            processing_class=backbone.tokenizer,
            callbacks=[RunCallback(run, "supervised tuning", ("loss", "mean_token_accuracy"))],
        )
        only_ours(trainer)
        scale_losses(trainer)
        backbone.float32_adapters()  # TRL made them bfloat16; small steps would be lost
        trainer.train(resume)
    backbone.freeze_reference()
    for role in ("policy", "reference"):
        backbone.save(role, run.folder / "adapters" / role)
    return {"rows": len(rows), "steps": trainer.state.global_step} | last_losses(trainer)
