"""Preference tuning without a reward model: DPO and ORPO by TRL's trainers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.runtime.errors import UserError
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

METHODS = ("dpo", "orpo")


@dataclass
class DirectSettings:
    """Settings of DPO and ORPO; `trl` reaches every other field of TRL's config."""

    epochs: PositiveFloat = 1.0  # passes over the pairs
    learning_rate: NonNegativeFloat = 1e-4
    batch_size: PositiveInt = 8  # pairs in one optimizer step
    micro_batch_size: PositiveInt = 4  # pairs in one forward; memory only
    max_tokens: PositiveInt = 1024  # prompt and answer together
    beta: PositiveFloat = 0.1  # DPO: strength of the reference; ORPO: weight of the odds ratio
    save_steps: PositiveInt = 50  # optimizer steps between checkpoints; in code also 0: none
    plain: bool = False  # texts as they are, without the chat template
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
        backbone: its policy is trained; for DPO the reference is the policy as it stands now.
        rows: `prompt`, `chosen`, `rejected`.
        run: where metrics go; the policy is saved under its adapters/.
        method: `dpo` (arXiv 2305.18290) or `orpo` (arXiv 2403.07691, needs no reference).
        resume: go on at the run's newest checkpoint, where it has one.

    Returns:
        a summary: rows, steps, first and last loss, accuracy of the last log line.
    """
    if method not in METHODS:
        raise UserError(f"The method is one of {', '.join(METHODS)}, not {method}.")
    from datasets import Dataset

    settings = settings or DirectSettings()
    dataset = Dataset.from_list(conversational(rows, backbone, settings.plain))
    if method == "dpo" and backbone.has("reference"):
        backbone.model.delete_adapter("ref")  # TRL's DPO makes it anew, as a copy of the policy
    trainer_class, config_class = _trainer(method)
    own = {
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        **batch_arguments(settings.batch_size, settings.micro_batch_size),
        "max_length": settings.max_tokens,
        "beta": settings.beta,
        **saving(settings.save_steps),
    }
    args = trl_arguments(config_class, backbone, run, own, settings.trl)
    with backbone.stage("policy") as model:
        trainer = together(resumable(careful(trainer_class)))(
            model=model,
            args=args,
            train_dataset=dataset,
            processing_class=backbone.tokenizer,
            callbacks=[RunCallback(run, method.upper(), ("loss", "rewards/accuracies"))],
        )
        only_ours(trainer)
        scale_losses(trainer)
        backbone.float32_adapters()
        trainer.train(resume)
    backbone.save("policy", run.folder / "adapters" / "policy")
    accuracies = [
        row["rewards/accuracies"]
        for row in trainer.state.log_history
        if "rewards/accuracies" in row
    ]
    last = {"accuracy_last": accuracies[-1]} if accuracies else {}
    steps = {"rows": len(rows), "steps": trainer.state.global_step}
    return steps | last_losses(trainer) | last


def _trainer(method: str) -> tuple[type, type]:
    if method == "dpo":
        from trl import DPOConfig, DPOTrainer

        return DPOTrainer, DPOConfig
    # Experimental in TRL: it may move or go, so nothing else here imports it.
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return ORPOTrainer, ORPOConfig
