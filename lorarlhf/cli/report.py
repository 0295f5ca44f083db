"""The command `report`: what a project's votes look like, in words and numbers."""

from argparse import Namespace
from dataclasses import asdict
from typing import Any

from lorarlhf.cli.result import Result
from lorarlhf.evaluation.rater_report import (
    RaterReport,
    RatersReport,
    Share,
    in_words,
    raters_report,
)
from lorarlhf.preferences.records import Vote
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError

SHOWN = 10
"""Disagreements that the text lists; --json has all of them."""


def report(args: Namespace) -> Result:
    """One of `KINDS` on a project."""
    return KINDS[args.kind](args)


def _raters(args: Namespace) -> Result:
    store = Project(args.project).store()
    try:
        votes = [vote for vote in store.votes() if args.purpose in ("all", vote.purpose)]
    finally:
        store.close()
    if args.rater is not None:
        votes = [vote for vote in votes if vote.rater == args.rater]
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
    prompt = votes[0].prompt
    asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    lines = [_excerpt(asked)]
    for place, text in enumerate(votes[0].completions):
        names = [vote.rater for vote in votes if vote.verdict.ranking[0][0] == place]
        lines.append(f"{', '.join(names) or 'nobody'}: {_excerpt(text)}")
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
    for name, value in vars(one).items():
        if isinstance(value, Share):
            low, high = value.interval
            data[name] = {"count": value.count, "of": value.of, "low": low, "high": high}
        elif name == "causes":
            data[name] = [asdict(cause) for cause in value]
        else:
            data[name] = value
    return data


def _excerpt(text: str, length: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."


KINDS = {"raters": _raters}
