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
from lorarlhf.preferences.blind_comparisons import finished_votes
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError

METHODS_OF_PAIRS = ("bradley-terry", "newman")
NOT_SETTLED = "{}'s model has no ranking: its iteration did not settle on these votes."
STILL_RUNS = "{} votes of the blind comparison that still runs are left out."
NAMES = {"bradley-terry": "Bradley-Terry", "newman": "Newman", "plackett-luce": "Plackett-Luce"}


def report_ranking(args: Namespace) -> Result:
    """The rankings of the models by the votes on their answers.

    Raises:
        UserError: there are no votes on different models, or neither the votes on pairs nor the
            rankings of three or more answers are connected.
    """
    store = Project(args.project).store()
    try:
        votes, running = finished_votes(store)
    finally:
        store.close()
    notes = [STILL_RUNS.format(running)] if running else []
    battles, choices = battles_of(votes), choices_of(votes)
    pairs: list[Ranking] = []
    rankings: list[Ranking] = []
    failed: list[UserError] = []
    if battles or not choices:
        try:
            pairs = rank_pairs(battles)
        except UserError as error:
            failed.append(UserError(f"From votes on pairs: {error}" if choices else str(error)))
        else:
            settled = {one.method for one in pairs}
            ties = any(battle.outcome == 0 for battle in battles)
            wanted = METHODS_OF_PAIRS if ties else METHODS_OF_PAIRS[:1]
            notes += [NOT_SETTLED.format(NAMES[name]) for name in wanted if name not in settled]
    if choices:
        try:
            rankings.append(rank_choices(choices))
        except UserError as error:
            failed.append(UserError(f"From rankings of three or more answers: {error}"))
    if failed and not pairs and not rankings:
        raise UserError("\n".join([*map(str, failed), *notes]))
    notes += map(str, failed)
    lines = [f"Chance to beat an average model (95% interval), by {_counts(battles, choices)}"]
    for some in (pairs, rankings):
        lines += ["", *_table(some)] if some else []
    if notes:
        lines += ["", *notes]
    data = {"votes": len(battles), "rankings": [_data(one) for one in (*pairs, *rankings)]}
    return Result(data | {"notes": notes}, "\n".join(lines))


def _counts(battles: list[Any], choices: list[Any]) -> str:
    prompts = len({one.group for one in (*battles, *choices)})
    ties = sum(battle.outcome == 0 for battle in battles)
    parts = [f"{len(battles)} votes on pairs ({ties} ties)"] if battles else []
    parts += [f"{len(choices)} steps of rankings"] if choices else []
    return f"{' and '.join(parts)} on {prompts} prompts"


def _table(rankings: list[Ranking]) -> list[str]:
    """Rankings of the same models beside each other, in the order of the first."""
    first = rankings[0]
    rows = [["place", "model", *(NAMES[one.method] for one in rankings), "votes"]]
    for place, name in enumerate(first.chances, start=1):
        chances = (_chance(one.chances[name]) for one in rankings)
        rows.append([str(place), name, *chances, str(first.votes[name])])
    lines = aligned(rows)
    for one in rankings:
        if one.tie is not None:
            share = one.tie / (1 + one.tie)
            lines.append(f"By Newman's model, two equal models tie in {share:.0%} of comparisons.")
    return lines


def _chance(chance: Chance) -> str:
    return f"{chance.value:.0%} ({100 * chance.low:.0f} to {chance.high:.0%})"


def _data(ranking: Ranking) -> dict[str, Any]:
    models = [
        {"model": name, "strength": ranking.strengths[name], "votes": ranking.votes[name]}
        | asdict(chance)
        for name, chance in ranking.chances.items()
    ]
    return {"method": ranking.method, "tie": ranking.tie, "models": models}
