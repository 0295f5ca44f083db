"""The command `report`: what a project's votes look like, prefer and teach."""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lorarlhf.cli.project_defaults import newest_run
from lorarlhf.cli.report_ranking import report_ranking
from lorarlhf.cli.result import Result, excerpt
from lorarlhf.cli.reward_report import report_on_reward, rows_of
from lorarlhf.data.readers import as_text, last_message
from lorarlhf.evaluation.rater_report import (
    RaterReport,
    RatersReport,
    Share,
    in_words,
    raters_report,
)
from lorarlhf.preferences.records import Vote
from lorarlhf.project.lineage import read_source_run
from lorarlhf.project.project import Project
from lorarlhf.rewards.tastes import Taste, axis_sides, clearest_votes, tastes_of
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf.runtime.errors import UserError

SHOWN = 10
"""Disagreements that the text lists; --json has all of them."""


def report(args: Namespace) -> Result:
    """One of `KINDS` on a project."""
    for kind, options in OPTIONS.items():
        for name in options:
            if kind != args.kind and getattr(args, name) is not None:
                raise UserError(f"--{name} belongs to `lorarlhf report {kind}`.")
    return KINDS[args.kind](args)


# ---- raters


def _raters(args: Namespace) -> Result:
    store = Project(args.project).store()
    purpose = args.purpose or "train"
    try:
        votes = store.votes(
            rater=args.rater and store.rater_name(args.rater),
            purpose=None if purpose == "all" else purpose,
        )
    finally:
        store.close()
    if not votes:
        whose = f" of {args.rater}" if args.rater is not None else ""
        raise UserError(
            f"{args.project} has no votes{whose} to report on. Rate some answers with "
            f"`lorarlhf ui {args.project}`, or look at `lorarlhf votes {args.project}`."
        )
    found = raters_report(votes)
    lines = in_words(found)
    for disagreement in found.disagreements[:SHOWN]:
        lines.append("")
        lines += [f"  {line}" for line in _disagreement(disagreement.votes)]
    return Result(_as_data(found), "\n".join(lines).strip())


def _disagreement(votes: tuple[Vote, ...]) -> list[str]:
    lines = [excerpt(last_message(votes[0].prompt), 100)]
    for place, text in enumerate(votes[0].completions):
        names = [vote.rater for vote in votes if vote.verdict.ranking[0][0] == place]
        lines.append(f"{', '.join(names) or 'nobody'}: {excerpt(text, 100)}")
    return lines


def _as_data(found: RatersReport) -> dict[str, Any]:
    return {
        "together": _rater(found.together),
        "raters": [_rater(one) for one in found.raters],
        "agreement": asdict(found.agreement),
        "disagreements": [
            {
                "item": one.votes[0].item_id,
                "prompt": one.votes[0].prompt,
                "answers": one.votes[0].completions,
                "preferred": {vote.rater: vote.verdict.ranking[0][0] for vote in one.votes},
            }
            for one in found.disagreements
        ],
    }


def _rater(one: RaterReport) -> dict[str, Any]:
    data: dict[str, Any] = {}
    named = vars(one) | {"hurried": one.hurried, "contradictory": one.contradictory}
    for name, value in named.items():
        if isinstance(value, Share):
            low, high = value.interval
            data[name] = {"count": value.count, "of": value.of, "low": low, "high": high}
        elif name == "causes":
            data[name] = [asdict(cause) for cause in value]
        else:
            data[name] = value
    return data


# ---- tastes


def _tastes(args: Namespace) -> Result:
    run = Path(newest_run(args.project, "reward")).expanduser()
    votes = VoteFit.load(run / "votes.safetensors")
    directions, sides = votes.axes, list(axis_sides())
    if directions is None or len(directions) != len(sides):
        raise UserError(
            f"{run} was made without the style axes of this version (its pooling is `last`, or it "
            "is older). Train a reward model again with `lorarlhf reward`."
        )
    if args.axis is not None:
        own = _own_axis(run, *args.axis)
        directions, sides = np.concatenate([directions, own[None]]), [*sides, tuple(args.axis)]
    found = tastes_of(votes.posterior(), directions, sides)
    examples = _examples(run, votes, found, directions)
    width = max(len(_taste(taste)) for taste in found)
    lines = [f"What {len(votes)} votes prefer between two answers that differ like the examples:"]
    for taste, example in zip(found, examples, strict=True):
        low, high = taste.interval
        sure = "sure" if taste.sure else "not clear yet"
        chance = f"{taste.chance:.0%} ({low:.0%} to {high:.0%})"
        lines.append(f"  {_taste(taste):{width}}  {chance:20}  {sure}")
        if taste.sure and example is not None:
            lines.append(f"      chosen: {excerpt(example['chosen'], 100)}")
            lines.append(f"      over:   {excerpt(example['rejected'], 100)}")
    data = [
        {"preferred": taste.preferred, "other": taste.other, "chance": taste.chance}
        | {"low": taste.interval[0], "high": taste.interval[1], "sure": taste.sure}
        | {"example": example}
        for taste, example in zip(found, examples, strict=True)
    ]
    return Result(data, "\n".join(lines))


def _examples(
    run: Path, votes: VoteFit, found: list[Taste], directions: np.ndarray
) -> list[dict[str, str] | None]:
    """For each taste the vote that shows it best, as texts; None where there is none."""
    rows = rows_of(run, votes)
    if rows is None:
        return [None] * len(found)
    places = clearest_votes(found, directions, votes.chosen, votes.rejected)
    return [None if place is None else _example(rows[place]) for place in places]


def _example(row: dict[str, Any]) -> dict[str, str]:
    answers = {name: as_text(row[name]) for name in ("chosen", "rejected")}
    return {"prompt": last_message(row["prompt"])} | answers


def _taste(taste: Taste) -> str:
    return f"{excerpt(taste.preferred, 40)} over {excerpt(taste.other, 40)}"


def _own_axis(run: Path, first: str, second: str) -> "np.ndarray":
    """The direction (F,) from one text to another that a person wrote."""
    from lorarlhf.project.load import load_backbone
    from lorarlhf.project.settings import resolve
    from lorarlhf.rewards.axes import NEUTRAL_PROMPT
    from lorarlhf.rewards.features import answer_features

    source = read_source_run(run, "reward", "RUN")
    backbone = load_backbone(resolve("score", inherited=source.settings_values()))
    rows = answer_features(backbone, [NEUTRAL_PROMPT] * 2, [first, second])
    return rows[0] - rows[1]


KINDS = {
    "raters": _raters,
    "tastes": _tastes,
    "reward": report_on_reward,
    "ranking": report_ranking,
}
OPTIONS = {"raters": ("rater", "purpose"), "tastes": ("axis",), "reward": ("cosmetic", "pairs")}
