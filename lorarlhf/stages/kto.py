"""Tuning on single answers that are good or bad: KTO by TRL's `KTOTrainer`."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.data.readers import as_text, unpair
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.setting_types import (
    FractionBelow1,
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
from lorarlhf.stages.trl.kto import KTOMixin
from lorarlhf.stages.trl.trainer import loss_summary

WEIGHTS = ("desirable_weight", "undesirable_weight")
SHOWN = ("loss", "rewards/margins")


@dataclass
class KTOSettings:
    """Settings of KTO; `trl` reaches every other field of TRL's `KTOConfig`.

    The default loss compares each answer with the mean KL of a step's answers.
    `trl.loss_type: apo_zero_unpaired` has no such mean.
    """

    epochs: PositiveFloat = 3.0  # passes over the answers
    # Step size of the policy's adapter; none: by the base's width and the votes, at most 5e-4
    learning_rate: NonNegativeFloat | None = None
    batch_size: PositiveInt = 8  # answers in one optimizer step
    micro_batch_size: PositiveInt = 4  # answers in one forward; memory only
    max_tokens: PositiveInt = 1024  # prompt and answer together
    beta: PositiveFloat = 0.1  # strength of the reference
    holdout: FractionBelow1 = 0.1  # share of the prompts that decides which weights are kept
    evaluations: NonNegativeInt = 4  # how often held-out loss and health are measured; 0: never
    save_steps: PositiveInt = 50  # optimizer steps between checkpoints; in code also 0: none
    plain: bool = False  # texts as they are, without the chat template
    report_to: str = "none"  # trackers that get the metrics too, with commas between them
    trl: dict[str, Any] = field(default_factory=dict)


def train_kto(
    backbone: Backbone,
    rows: Sequence[Row],
    run: Run,
    settings: KTOSettings | None = None,
    resume: bool = False,
    eval_rows: Sequence[Row] | None = None,
) -> dict[str, Any]:
    """Train the policy on answers with a label (arXiv 2402.01306).

    Args:
        backbone: its policy is trained; the reference is the policy as it is now.
        rows: `prompt`, `completion` and `label` (true: a good answer), or preference pairs, whose
            chosen answers are good and whose rejected ones are bad.
        run: gets the metrics; the policy is saved under its adapters/.
        resume: continue from the run's newest checkpoint, if there is one.
        eval_rows: answers or pairs of other prompts that decide which weights are kept; without
            them a share of the prompts is held out.

    Returns:
        a summary: rows, good and bad answers, steps, first and last loss, the last margin (implied
        reward of good answers minus that of bad ones), the `alarms` that are on for the policy
        that is kept; with held-out answers also their number, the step whose weights are kept, and
        their loss.

    Raises:
        UserError: all answers are good or all are bad, or a forward holds a single answer.
    """
    settings = settings or KTOSettings()
    single = None if eval_rows is None else unpair(eval_rows)
    train, held = hold_out(unpair(rows), single, settings, run.about["seed"])
    made = conversational(train, backbone, settings.plain)
    test = None if held is None else conversational(held, backbone, settings.plain)
    args = arguments(Placement.of(backbone, run), settings)
    return run_kto(backbone, run, StageInputs(made, settings, args, test, resume))


def arguments(placement: Placement, settings: KTOSettings) -> Any:
    """TRL's `KTOConfig`.

    Raises:
        UserError: a forward would hold a single answer, which TRL refuses, or options that do not
            work here.
        ValueError: a value that TRL does not take.
    """
    from trl import KTOConfig

    own = {
        "num_train_epochs": settings.epochs,
        **given_rate(settings),
        **batch_arguments(settings.batch_size, settings.micro_batch_size),
        "per_device_eval_batch_size": settings.micro_batch_size,
        "max_length": settings.max_tokens,
        "beta": settings.beta,
        "train_sampling_strategy": "sequential",  # TRL pairs neighbours for the KL
        **saving(settings.save_steps),
        "report_to": settings.report_to,
    }
    args = trl_arguments(KTOConfig, placement, own, settings.trl)
    if args.loss_type != "kto":
        return args
    if args.per_device_train_batch_size < 2:
        raise UserError(
            "TRL's KTO refuses forwards of a single answer: choose a micro_batch_size of 2 or more "
            "that divides batch_size (of each process), or use --set "
            "trl.loss_type=apo_zero_unpaired."
        )
    if args.precompute_ref_log_probs:
        raise UserError(
            "KTO's mean KL is taken over a step here, which does not work with "
            "trl.precompute_ref_log_probs. Leave that out: the reference is an adapter."
        )
    if args.train_sampling_strategy != "sequential":
        raise UserError(
            "KTO's loss needs trl.train_sampling_strategy=sequential, since TRL pairs each answer "
            "with the prompt after it. The rows are shuffled by the seed before."
        )
    return args


def run_kto(backbone: Backbone, run: Run, inputs: StageInputs) -> dict[str, Any]:
    """`train_kto` from prepared inputs."""
    from trl import KTOTrainer

    good, bad = check_labels(inputs.rows)
    balance(inputs.args, good, bad, inputs.settings.trl)
    if backbone.has("reference"):
        backbone.model.delete_adapter("ref")  # TRL makes a new one, a copy of the policy
    kind = type("KTOTrainer", (KTOMixin, KTOTrainer), {})  # TRL writes the class's name into logs
    rows = shuffled(inputs.rows, inputs.args.seed)
    trainer, found = run_watched(kind, "KTO", SHOWN, backbone, run, inputs, rows)
    margins = [row[SHOWN[1]] for row in trainer.state.log_history if SHOWN[1] in row]
    last = {"margin_last": margins[-1]} if margins else {}
    counts = {"rows": len(inputs.rows), "good": good, "bad": bad}
    return counts | loss_summary(trainer) | last | found


def check_labels(rows: Sequence[Row]) -> tuple[int, int]:
    """How many answers are good, and how many bad.

    Raises:
        UserError: there are none of one kind, or columns that TRL leaves out.
    """
    refuse_template_columns(rows, "kto")
    good = sum(bool(row["label"]) for row in rows)
    bad = len(rows) - good
    if not good or not bad:
        raise UserError(
            f"KTO learns from good and bad answers, and there are {good} good and {bad} bad ones. "
            "Add answers of the other kind."
        )
    return good, bad


def balance(args: Any, good: int, bad: int, given: dict[str, Any]) -> None:
    """Weight the rarer label, so both labels count equally (arXiv 2402.01306, equation 8).

    Args:
        given: the fields of TRL's configuration that the user set; weights among them stay.
    """
    if not any(name in given for name in WEIGHTS):
        most = max(good, bad)
        args.desirable_weight, args.undesirable_weight = most / good, most / bad


def shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows in an order drawn by the seed, the longest first.

    TRL takes KTO's rows in their order, the same in every epoch, and pairs neighbours for the KL. A
    run that has memory for the longest row most likely has it for the others.
    """
    order = list(rows)
    random.Random(seed).shuffle(order)
    longest = max(range(len(order)), key=lambda place: _bytes(order[place]))
    order[0], order[longest] = order[longest], order[0]
    return order


def _bytes(row: Row) -> int:
    return len((as_text(row["prompt"]) + as_text(row["completion"])).encode())
