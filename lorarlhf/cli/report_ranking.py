"""`report ranking`: the models of a project's votes, ranked."""

from argparse import Namespace
from dataclasses import asdict
from typing import Any

from lorarlhf.cli.result import Result
from lorarlhf.evaluation.eval_results import aligned
from lorarlhf.evaluation.ranking import (
    Chance,
    Ranking,
    battles_of,
    choices_of,
    rank_choices,
    rank_pairs,
)
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError

TITLES = {
    "bradley-terry": "Bradley-Terry, a tie as half a win for each",
    "newman": "Newman, with a chance of ties of its own",
    "plackett-luce": "Plackett-Luce, from rankings of three or more answers",
}


def report_ranking(args: Namespace) -> Result:
    """The rankings of the models by the votes on their answers.

    Raises:
        UserError: there are no votes on different models, or the comparisons are not connected.
    """
    store = Project(args.project).store()
    try:
        votes = store.votes()
    finally:
        store.close()
    battles, choices = battles_of(votes), choices_of(votes)
    found: list[Ranking] = []
    notes: list[str] = []
    if battles or not choices:
        found += rank_pairs(battles)
    if choices:
        try:
            found.append(rank_choices(choices))
        except UserError as error:
            if not found:
                raise
            notes.append(f"From rankings of three or more answers: {error}")
    lines = [f"Chance to beat an average model, ties as half, by {_counts(battles, choices)}"]
    for ranking in found:
        lines += ["", TITLES[ranking.method], *_table(ranking)]
    if notes:
        lines += ["", *notes]
    data = {"votes": len(battles), "rankings": [_data(one) for one in found], "notes": notes}
    return Result(data, "\n".join(lines))


def _counts(battles: list[Any], choices: list[Any]) -> str:
    prompts = len({one.group for one in (*battles, *choices)})
    ties = sum(battle.outcome == 0 for battle in battles)
    parts = [f"{len(battles)} votes on pairs ({ties} ties)"] if battles else []
    parts += [f"{len(choices)} steps of rankings"] if choices else []
    return f"{' and '.join(parts)} on {prompts} prompts"


def _table(ranking: Ranking) -> list[str]:
    rows = [["place", "model", "chance (95% interval)", "votes"]]
    for place, (name, chance) in enumerate(ranking.chances.items(), start=1):
        rows.append([str(place), name, _chance(chance), str(ranking.votes.get(name, 0))])
    lines = aligned(rows)
    if ranking.tie is not None:
        share = ranking.tie / (1 + ranking.tie)
        lines.append(f"Two models of equal strength tie in {share:.0%} of comparisons.")
    return lines


def _chance(chance: Chance) -> str:
    return f"{chance.value:.0%} ({100 * chance.low:.0f} to {chance.high:.0%})"


def _data(ranking: Ranking) -> dict[str, Any]:
    models = [
        {"model": name, "strength": ranking.strengths[name], "votes": ranking.votes.get(name, 0)}
        | asdict(chance)
        for name, chance in ranking.chances.items()
    ]
    return {"method": ranking.method, "tie": ranking.tie, "models": models}
