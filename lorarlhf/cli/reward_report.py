"""The command `report reward`: how good a run's reward model is, and what to collect."""

from argparse import Namespace
from contextlib import redirect_stderr
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorarlhf.cli.prepare import read_stage_rows
from lorarlhf.cli.project_defaults import newest_run
from lorarlhf.cli.result import Result, excerpt
from lorarlhf.cli.reward_sets import PairSet, measure_set, read_sets
from lorarlhf.cli.reward_sets import in_words as sets_in_words
from lorarlhf.data.readers import as_conversation, as_text, last_message, split_by_prompt
from lorarlhf.evaluation.cosmetics import CHANGES, Effect, effects
from lorarlhf.evaluation.rater_report import Share, same_winner_again
from lorarlhf.evaluation.reward_report import (
    Rate,
    RewardReport,
    Text,
    most_reachable,
    reward_report,
)
from lorarlhf.evaluation.reward_words import in_words, verdict
from lorarlhf.project.lineage import read_source_run
from lorarlhf.project.project import RUNS, Project, is_project
from lorarlhf.rewards.learning_curve import advice
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json
from lorarlhf.runtime.run_folder import begun_with, fingerprint
from lorarlhf.runtime.terminal import log_to_stderr
from lorarlhf.stages.table import STAGES

if TYPE_CHECKING:  # it brings torch, which most of the report does without
    from lorarlhf.backbone.base import Backbone

MISTAKES = 5
"""Mistakes that are shown with their texts."""
CHANGED = 40
"""Answers whose look is changed."""
Row = dict[str, Any]


def report_on_reward(args: Namespace) -> Result:
    """The report on a project's newest reward run, or on a run."""
    run = Path(newest_run(args.project, "reward")).expanduser()
    votes = VoteFit.load(run / "votes.safetensors")
    rows = rows_of(run, votes)
    texts = None if rows is None else [_text(row) for row in rows]
    if rows is None:
        log_to_stderr(
            f"The texts of the votes in {run} are gone: the file that it was trained from is "
            "missing or has changed. What needs texts is left out: length, examples of mistakes, "
            "and changes of the look."
        )
        if args.cosmetic:
            raise UserError(
                "--cosmetic changes the texts of answers, and they are gone. Put the file back "
                f"that {run / 'run.json'} names as data, or train a reward model again."
            )
    named = read_sets(args.pairs or [])
    found = reward_report(votes, texts, _same_again(run))
    changed: list[Effect] = []
    sets: list[PairSet] = []
    if args.cosmetic or named:
        backbone, plain = _load(run)
        changed = _cosmetic(backbone, rows, plain) if args.cosmetic and rows else []
        sets = [measure_set(backbone, file, some, plain) for file, some in named.items()]
    own = _own_accuracy(run)
    mistakes = [] if texts is None else _mistakes(found, texts)
    lines = in_words(found, changed, own, mistakes) + sets_in_words(sets)
    data = _as_data(found, texts, changed, own) | {"sets": [_set(one) for one in sets]}
    return Result(data, "\n".join(lines))


# ---- where things are


def rows_of(run: Path, votes: VoteFit) -> list[Row] | None:
    """The rows of the run's votes, in their order; None if their file is gone or has changed."""
    about = read_json(run / "run.json")
    config = about.get("config")
    config = config if isinstance(config, dict) else {}
    if not isinstance(config.get("data"), str):
        return None
    named = Path(config["data"]).expanduser()
    # A project that was moved still has the file beside the run.
    file = next((f for f in (named, run.parent / named.name) if f.is_file()), None)
    if file is None:
        return None
    try:
        with redirect_stderr(StringIO()):  # what is unusual was said when the run was trained
            rows = read_stage_rows(STAGES["reward"], str(file))
        known = about.get("rows")
        if isinstance(known, dict):
            rows = begun_with(run, rows, "rows")  # others may have been appended since
            if fingerprint(rows)["sha256"] != known.get("sha256"):
                return None
        if not config.get("eval"):
            rows, _ = split_by_prompt(rows, config["holdout"], about["seed"])
    except (UserError, KeyError):
        return None
    # Of runs from before version 0.2 there is no hash, and the votes keep only names of their
    # prompts: the same rows have the same pattern of prompts.
    prompts = [repr(row["prompt"]) for row in rows]
    pairs = set(zip(prompts, votes.groups, strict=False))
    same = len(rows) == len(votes) and len(pairs) == len(set(prompts)) == len(set(votes.groups))
    return rows if same else None


def _text(row: Row) -> Text:
    chosen, rejected = (as_text(row[name]) for name in ("chosen", "rejected"))
    return Text(last_message(row["prompt"]), chosen, rejected)


def _same_again(run: Path) -> Share | None:
    """How often the raters of the run's project preferred the same answer again."""
    folder = run.resolve().parent
    if folder.name != RUNS or not is_project(folder.parent):
        return None
    store = Project(folder.parent).store()
    try:
        return same_winner_again(store.votes(purpose="train"))
    finally:
        store.close()


def _own_accuracy(run: Path) -> Rate | None:
    """What the run measured on the pairs that it held out."""
    summary = read_json(run / "run.json").get("summary")
    if not isinstance(summary, dict) or not summary.get("n"):
        return None
    return Rate(float(summary["heldout_accuracy"]), int(summary["n"]))


# ---- with the base


def _load(run: Path) -> tuple["Backbone", bool]:
    """The base with the run's reward role, and whether its prompts are plain texts."""
    from lorarlhf.project.load import load_backbone
    from lorarlhf.project.settings import resolve

    source = read_source_run(run, "reward", "RUN")
    settings = resolve("score", inherited=source.settings_values())
    backbone = load_backbone(settings)
    backbone.load_role("reward", source.adapter)
    return backbone, bool(settings.own["plain"])


def _cosmetic(backbone: "Backbone", rows: list[Row], plain: bool) -> list[Effect]:
    """The effects of `CHANGES` on the scores of `CHANGED` answers, from all parts of the votes."""
    from lorarlhf.rewards.role import score_answers

    step = max(1, len(rows) // CHANGED)
    taken = [
        (row["prompt"], as_text(row[("chosen", "rejected")[n % 2]]))
        for n, row in enumerate(rows[::step][:CHANGED])
    ]
    taken = [(prompt, answer) for prompt, answer in taken if answer.strip()]
    if len(taken) < 2:
        raise UserError("--cosmetic needs two or more votes with answers that are not blank.")
    prompts = [prompt if plain else as_conversation(prompt) for prompt, _ in taken]
    answers = [answer for _, answer in taken]
    before = score_answers(backbone, prompts, answers)
    after = {
        name: score_answers(backbone, prompts, [change(answer) for answer in answers])
        for name, change in CHANGES.items()
    }
    return effects(before, after)


# ---- as text and as data


def _mistakes(found: RewardReport, texts: list[Text]) -> list[str]:
    lines = []
    for mistake in found.mistakes[:MISTAKES]:
        text = texts[mistake.place]
        lines.append(f"  {mistake.confidence:.0%} sure  {excerpt(text.prompt, 90)}")
        lines.append(f"    you chose   {excerpt(text.chosen, 90)}")
        lines.append(f"    it chose    {excerpt(text.rejected, 90)}")
    return lines


def _as_data(
    found: RewardReport, texts: list[Text] | None, changed: list[Effect], own: Rate | None
) -> Row:
    decided = verdict(found, changed)
    data = asdict(found)
    for name in ("accuracy", "same_again"):
        data[name] = _interval(getattr(found, name))
    if found.same_again is not None:
        data["same_again"]["most_reachable"] = most_reachable(found.same_again.value)
    if found.length is not None:
        for name in ("longer", "shorter_chosen", "longer_chosen"):
            data["length"][name] = _interval(getattr(found.length, name))
    if texts is not None:
        data["mistakes"] = [asdict(m) | asdict(texts[m.place]) for m in found.mistakes]
    return data | {
        "run": _interval(own),
        "cosmetic": [asdict(effect) | {"found": effect.found} for effect in changed],
        "votes_wanted": {
            "verdict": found.curve and found.curve.verdict,
            "text": advice(found.curve),
        },
        "good_enough_for_ppo": asdict(decided),
    }


def _set(one: PairSet) -> Row:
    rates = ("accuracy", "longer", "shorter_chosen")
    return asdict(one) | {name: _interval(getattr(one, name)) for name in rates}


def _interval(rate: Rate | Share | None) -> Row | None:
    if rate is None:
        return None
    low, high = rate.interval
    return {"share": rate.value, "of": rate.of, "low": low, "high": high}
