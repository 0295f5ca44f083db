"""The newest round on the Train page: its card, and whether its policy is kept or dropped."""

from lorarlhf.project.project import Project
from lorarlhf.project.rounds import (
    DROPPED,
    KEPT,
    ROUNDS,
    Round,
    decide,
    not_decided,
    rounds,
    too_few_votes,
    unfinished,
    votes_worth_it,
)
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.lock import hold
from lorarlhf_ui.rounds import round_card_html

IN_USE = "Wait until the round that runs has ended."
LABELS = {KEPT: "Keep", DROPPED: "Drop"}


def round_html(project: Project) -> str:
    """The card of the newest round, with what can be decided about it."""
    return round_card_html(project) + _buttons(next(iter(rounds(project)), None))


def _buttons(newest: Round | None) -> str:
    if newest is None:
        return ""
    possible = [verdict for verdict in LABELS if verdict != newest.verdict]
    can_keep = newest.finished and newest.has_policy
    possible = [verdict for verdict in possible if can_keep or verdict == DROPPED]
    shown = "".join(
        f'<button type="button" data-do="{LABELS[verdict].lower()}" data-round="{newest.number}">'
        f"{LABELS[verdict]} round {newest.number}</button>"
        for verdict in possible
    )
    return f'<p class="line">{shown}</p>' if shown else ""


def check_round(project: Project) -> None:
    """See that there is a round to continue, or that a new one may begin.

    Raises:
        UserError: the last one is not decided, or there are too few new votes; it says how many are
            needed, and how many are worth it.
    """
    if unfinished(project) is not None:
        return
    if open_question := not_decided(project):
        raise UserError(f"{open_question}. Keep or drop it first.")
    if lack := too_few_votes(project):
        raise UserError(f"{lack}{votes_worth_it(project)}")


def decide_round(project: Project, number: object, verdict: str) -> None:
    """Keep or drop the round with a number.

    Raises:
        UserError: there is none, it is not finished and can't be kept, or a round runs.
    """
    with hold(project.folder / ROUNDS, IN_USE):
        for one in rounds(project):
            if one.number == number:
                decide(project, one, verdict)
                return
    raise UserError("The server does not know this round. Reload the page.")
