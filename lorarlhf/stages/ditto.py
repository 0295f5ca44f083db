"""Tuning on edited answers alone: DITTO by TRL's `SFTTrainer` and `DPOTrainer`.

A command of its own and no setting of `dpo`, since its rows are single answers: what the edit is
compared with is sampled while it trains.
"""

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import generate
from lorarlhf.data.readers import as_text
from lorarlhf.preferences.edit_pairs import draw_pairs, edit_pairs
from lorarlhf.runtime import checkpoints, distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_jsonl
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.run_folder import ROUNDS
from lorarlhf.runtime.setting_types import NonNegativeFloat, PositiveFloat, PositiveInt
from lorarlhf.stages.callbacks import log_beside_bars
from lorarlhf.stages.conversations import Row, conversational
from lorarlhf.stages.ditto_callbacks import KeepReference, RoundCallback
from lorarlhf.stages.inputs import StageInputs
from lorarlhf.stages.step_size import fill_in_ditto_rates, given_rate
from lorarlhf.stages.trl.arguments import Placement, batch_arguments, trl_arguments
from lorarlhf.stages.trl.trainer import last_logged, loss_summary, run_trl_trainer

TRAINED = ("policy", "reference")
STATE, TENSORS = "state.json", "state.safetensors"
Answers = list[list[str]]  # of one policy, those to each prompt


@dataclass
class DittoSettings:
    """Settings of DITTO; `trl` reaches every other field of TRL's `DPOConfig`."""

    rounds: PositiveInt = 3  # times that the policy answers and is tuned
    steps: PositiveInt = 10  # optimizer steps in a round
    answers: PositiveInt = 4  # answers of the policy to each prompt, in each round
    sft_epochs: NonNegativeFloat = 3.0  # passes over the edited answers before the first round
    # Step size of those passes; none: by the base's width, at most 1e-3
    sft_learning_rate: NonNegativeFloat | None = None
    # Step size in the rounds; none: by the base's width and the pairs of all rounds, at most 5e-4
    learning_rate: NonNegativeFloat | None = None
    batch_size: PositiveInt = 8  # pairs in one optimizer step
    micro_batch_size: PositiveInt = 4  # pairs in one forward; memory only
    max_tokens: PositiveInt = 1024  # prompt and answer together
    max_new_tokens: PositiveInt = 128  # longest answer that is sampled
    temperature: PositiveFloat = 1.0  # temperature of those answers
    beta: PositiveFloat = 0.05  # strength of the reference
    plain: bool = False  # texts as they are, without the chat template
    report_to: str = "none"  # trackers that get the metrics too, with commas between them
    trl: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Progress:
    """What is done, as a checkpoint holds it.

    Attributes:
        rounds: finished ones.
        steps: optimizer steps so far, the supervised ones included.
        levels: the answers of each policy so far, the base's first.
        losses: of the rounds, with the accuracy on the last pairs.
        seconds: how long was sampled and trained so far.
    """

    rounds: int = 0
    steps: int = 0
    levels: list[Answers] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def train_ditto(
    backbone: Backbone,
    rows: Sequence[Row],
    run: Run,
    settings: DittoSettings | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train the policy on edited answers (DITTO, arXiv 2406.00888, algorithm 1).

    The policy answers each prompt as it is, for the base's level. Supervised tuning on the edits
    follows, and its result becomes the reference. In each round the policy answers again, and DPO
    trains it on pairs that the order edit > newest policy > ... > base gives
    (`preferences.edit_pairs`). Unlike in the paper the base is a level of the order, too, and each
    round has an optimizer of its own.

    Args:
        backbone: its policy is trained; it becomes the reference after the supervised part.
        rows: `prompt`, `completion` (the edit), and in `worse` other answers that the edit is
            better than, for example those that the rater saw.
        run: gets the metrics; policy and reference are saved under its adapters/, and the pairs of
            round N in rounds/N/pairs.jsonl.
        resume: continue after the last finished round, if there is one.

    Returns:
        a summary: rows, rounds, steps, first and last loss of the rounds, accuracy of the last log
        line, and both learning rates.

    Raises:
        UserError: every answer of the policy is blank or equal to the edit.
    """
    settings = settings or DittoSettings()
    made = conversational(rows, backbone, settings.plain)
    args = arguments(Placement.of(backbone, run), settings)
    return run_ditto(backbone, run, StageInputs(made, settings, args, resume=resume))


def arguments(placement: Placement, settings: DittoSettings) -> Any:
    """TRL's `DPOConfig` of a round. Raises a `UserError` or `ValueError` for wrong values."""
    from trl import DPOConfig

    own = {
        "num_train_epochs": 1,  # the rows of a round are as many as its steps take
        **given_rate(settings),
        **batch_arguments(settings.batch_size, settings.micro_batch_size),
        "max_length": settings.max_tokens,
        "beta": settings.beta,
        "report_to": settings.report_to,
    }
    args = trl_arguments(DPOConfig, placement, own, settings.trl)
    if args.precompute_ref_log_probs:
        raise UserError(
            "DITTO's reference is the policy after the supervised part, which "
            "trl.precompute_ref_log_probs would miss. Leave that out: the reference is an adapter."
        )
    return args


def run_ditto(backbone: Backbone, run: Run, inputs: StageInputs) -> dict[str, Any]:
    """`train_ditto` from prepared inputs."""
    rows, seed = list(inputs.rows), inputs.args.seed
    rates = fill_in_ditto_rates(inputs.args, inputs.settings, backbone.hidden_size, rows)
    settings = replace(inputs.settings, **rates)
    inputs = replace(inputs, settings=settings)
    done = _restore(backbone, run.folder) if inputs.resume else None
    stopped = False
    if done is None:
        done = _Progress()
        seen = [row.get("worse") or [] for row in rows]
        base = _sample(backbone, rows, settings, seed, done)
        done.levels = [[[*a, *b] for a, b in zip(seen, base, strict=True)]]
        if settings.sft_epochs:
            stopped = _supervise(backbone, run, inputs, done)
        backbone.freeze_reference()
        _save(backbone, run.folder, done)
    while done.rounds < settings.rounds and not _is_over(run, done):
        if stopped:  # by Ctrl-C in the last step of a part, which is saved
            raise KeyboardInterrupt
        number = done.rounds + 1
        done.levels.append(_sample(backbone, rows, settings, seed + number, done))
        done.rounds = number
        stopped = _tune(backbone, run, inputs, done)
        _save(backbone, run.folder, done)
    for role in TRAINED:
        backbone.save(role, run.folder / "adapters" / role)
    found = {"rows": len(rows), "rounds": done.rounds, "steps": done.steps} | done.losses
    used = {"learning_rate": inputs.args.learning_rate}
    return found | used | {"sft_learning_rate": settings.sft_learning_rate}


def _is_over(run: Run, done: _Progress) -> bool:
    """Whether the minutes of the run are over, those of sampling included."""
    if run.minutes is None or not distributed.any_process(done.seconds >= 60 * run.minutes):
        return False
    log_beside_bars(
        f"The {run.minutes:g} minutes of training are over: DITTO ends after round {done.rounds}."
    )
    return True


def _sample(
    backbone: Backbone, rows: list[Row], settings: DittoSettings, seed: int, done: _Progress
) -> Answers:
    """Answers of the policy to each prompt, the same in every process; adds to the seconds."""
    began = time.monotonic()
    count, longest = settings.answers, settings.max_new_tokens
    if (context := backbone.encoder.context) is not None:  # the rows are known to fit into it
        longest = min(longest, context - max(len(backbone.encode(r["prompt"])) for r in rows))
    prompts = [row["prompt"] for row in rows for _ in range(count)]

    def texts() -> list[str]:
        sampled = generate(
            backbone,
            prompts,
            max_new_tokens=longest,
            temperature=settings.temperature,
            seed=seed,
            max_prompt_tokens=settings.max_tokens,
        )
        return [answer.text for answer in sampled]

    flat = distributed.broadcast_from_main(texts)
    done.seconds += time.monotonic() - began
    return [flat[at : at + count] for at in range(0, len(flat), count)]


def _supervise(backbone: Backbone, run: Run, inputs: StageInputs, done: _Progress) -> bool:
    """Supervised tuning on the edits; returns whether Ctrl-C was pressed in its last step."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    settings = inputs.settings
    own = {
        "num_train_epochs": settings.sft_epochs,
        "learning_rate": settings.sft_learning_rate,
        **batch_arguments(settings.batch_size, settings.micro_batch_size),
        "max_length": settings.max_tokens,
        "report_to": settings.report_to,
    }
    shared = {n: settings.trl[n] for n in settings.trl if n.startswith("gradient_checkpointing")}
    args = trl_arguments(SFTConfig, Placement.of(backbone, run), own, shared)
    trainer = run_trl_trainer(
        SFTTrainer,
        backbone,
        "policy",
        _in_round(args, run, 0),
        train_dataset=Dataset.from_list([_without(row, "worse") for row in inputs.rows]),
        callbacks=[RoundCallback(run, "DITTO, supervised", ("loss",), done)],
    )
    done.steps = trainer.state.global_step
    return bool(trainer.interrupted)


def _tune(backbone: Backbone, run: Run, inputs: StageInputs, done: _Progress) -> bool:
    """One round of DPO, with the policy after the supervised part as the reference.

    Returns:
        whether Ctrl-C was pressed in its last step.
    """
    from datasets import Dataset
    from trl import DPOTrainer

    settings, args = inputs.settings, _in_round(inputs.args, run, done.rounds)
    pairs = _pairs(inputs, done)
    if distributed.is_main():
        write_jsonl(Path(args.output_dir) / "pairs.jsonl", pairs)
    reference = KeepReference(backbone)
    backbone.model.delete_adapter("ref")  # TRL makes a new one
    title = f"DITTO, round {done.rounds} of {settings.rounds}"
    shown = ("loss", "rewards/accuracies")
    trainer = run_trl_trainer(
        DPOTrainer,
        backbone,
        "policy",
        args,
        train_dataset=Dataset.from_list(pairs),
        callbacks=[RoundCallback(run, title, shown, done), reference],
    )
    found = loss_summary(trainer)
    done.steps += found.pop("steps")
    if "loss_first" in done.losses:
        found.pop("loss_first", None)
    done.losses |= found | last_logged(trainer, "rewards/accuracies")
    return bool(trainer.interrupted)


def _pairs(inputs: StageInputs, done: _Progress) -> list[Row]:
    """The rows of a round for TRL.

    Raises:
        UserError: no answer differs from the edit.
    """
    settings = inputs.settings
    found = [
        edit_pairs(as_text(row["completion"]), [level[place] for level in done.levels])
        for place, row in enumerate(inputs.rows)
    ]
    seed = inputs.args.seed + done.rounds
    drawn = draw_pairs(found, settings.steps * settings.batch_size, seed)
    if not drawn:
        raise UserError(
            "There is nothing to compare the edited answers with: all answers of the policy are "
            "blank or equal to them. Raise --set answers=N or --set temperature=N."
        )
    return [
        _without(inputs.rows[place], "worse", "completion")
        | {"chosen": _answer(better, settings.plain), "rejected": _answer(worse, settings.plain)}
        for place, (better, worse) in drawn
    ]


def _answer(text: str, plain: bool) -> Any:
    return text if plain else [{"role": "assistant", "content": text}]


def _without(row: Row, *names: str) -> Row:
    return {name: value for name, value in row.items() if name not in names}


def _in_round(args: Any, run: Run, number: int) -> Any:
    """TRL's configuration for one round, whose trackers get a run of their own."""
    args = copy.deepcopy(args)
    args.output_dir = str(run.folder / ROUNDS / str(number))
    args.run_name = f"{args.run_name}-round-{number}"
    return args


# ---- checkpoints: one after the supervised part, and one after each round


def _save(backbone: Backbone, folder: Path, done: _Progress) -> None:
    if distributed.is_main():
        target = folder / "checkpoints" / f"{checkpoints.PREFIX}{done.steps}"
        scratch = checkpoints.make_scratch(target)
        tensors = {
            f"{role}.{number}": weight.detach().cpu().contiguous()
            for role in TRAINED
            for number, weight in enumerate(backbone.parameters_of(role))
        }
        save_file(tensors, scratch / TENSORS)
        (scratch / STATE).write_text(json.dumps(asdict(done)), encoding="utf-8")
        checkpoints.publish(scratch, target)
        checkpoints.keep_newest(folder / "checkpoints", 2)
    distributed.barrier()


def _restore(backbone: Backbone, folder: Path) -> _Progress | None:
    """Load the newest checkpoint's policy and reference; None if there is no checkpoint.

    Raises:
        UserError: its adapters have another shape than the policy.
    """
    place = distributed.broadcast_from_main(
        lambda: checkpoints.newest_intact(folder / "checkpoints")
    )
    if place is None:
        return None
    checkpoints.check_visible(place)
    saved = load_file(place / TENSORS)
    backbone.freeze_reference()
    for role in TRAINED:
        for number, weight in enumerate(backbone.parameters_of(role)):
            kept = saved.get(f"{role}.{number}")
            if kept is None or kept.shape != weight.shape:
                raise UserError(
                    f"The checkpoint {place} has adapters of another shape than this run: resume "
                    "it with the settings that it was started with."
                )
            weight.data.copy_(kept)
    return _Progress(**json.loads((place / STATE).read_text(encoding="utf-8")))
