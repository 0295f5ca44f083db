"""Votes that another program sends one by one: a thumb on an answer, a choice between two answers.

The other program names its answers, for example by `chatcmpl-...`. A vote of the same rater on the
same named answers is one vote: sent again it changes nothing, and another verdict replaces it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorarlhf.preferences.records import BOTH_BAD, BOTH_GOOD, RANKED, UNDONE, Prompt, Verdict
from lorarlhf.preferences.rows import prompt_digest, verdict_from_row
from lorarlhf.preferences.store import Store

NEW, SAME, CHANGED, TAKEN_BACK = "new", "same", "changed", "taken back"
NOTHING = "nothing"


@dataclass(frozen=True)
class NamedAnswer:
    """An answer that another program can name.

    Attributes:
        name: the same for the same answer, and for no other one.
        source: who wrote it, as in `Store.add_item`; sampling: how.
    """

    name: str
    prompt: Prompt
    text: str
    source: str
    sampling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """What became of a vote.

    Attributes:
        outcome: `new`, `same`, `changed`, `taken back`, or `nothing`, if there was none to take
            back.
        vote: its number in the store; None if none stands.
    """

    outcome: str
    vote: int | None


def give_thumb(
    store: Store, answer: NamedAnswer, rater: str, good: bool | None, note: str | None = None
) -> Given:
    """Store a thumb on a single answer: good, bad, or None to take it back."""
    verdict = None if good is None else Verdict(BOTH_GOOD if good else BOTH_BAD, note=note)
    return _give(store, [answer], rater, verdict)


def give_choice(
    store: Store, better: NamedAnswer, worse: NamedAnswer, rater: str, note: str | None = None
) -> Given:
    """Store that one answer is better than another one to the same prompt.

    Raises:
        ValueError: the prompts differ, or the answers are one.
    """
    if better.prompt != worse.prompt:
        raise ValueError("the two answers are to different prompts")
    if better.name == worse.name or better.text == worse.text:
        raise ValueError("the two answers are the same")
    # In an order of their own, so that a choice the other way round is on the same item.
    answers = sorted((better, worse), key=lambda answer: answer.name)
    ranking = [[answers.index(better)], [answers.index(worse)]]
    return _give(store, answers, rater, Verdict(RANKED, ranking, note=note))


def _give(
    store: Store, answers: Sequence[NamedAnswer], rater: str, verdict: Verdict | None
) -> Given:
    origin = {"named": [answer.name for answer in answers]}
    with store.write():  # so that the same vote sent twice at once is one, too
        rater = store.rater_name(rater)
        item = _item(store, answers[0].prompt, origin)
        before = None if item is None else _vote_on(store, item, rater)
        if before is None:
            if verdict is None:
                return Given(NOTHING, None)
            item = item or store.add_item(
                answers[0].prompt,
                [(answer.text, answer.source) for answer in answers],
                sampling=[answer.sampling for answer in answers],
                origin=origin,
                alone=True,
            )
            # `imported`: it was not cast on the pages, whose Undo leaves it alone.
            shown = store.present(item, rater, shown=range(len(answers)), imported=True)
            return Given(NEW, store.judge(shown.token, verdict))
        stood = before["verdict"] != UNDONE
        if verdict is None:
            if stood:
                store.correct(before["id"], None)
            return Given(TAKEN_BACK if stood else NOTHING, None)
        if stood and verdict_from_row(before) == verdict:
            return Given(SAME, before["id"])
        return Given(CHANGED if stood else NEW, store.correct(before["id"], verdict))


def _item(store: Store, prompt: Prompt, origin: dict[str, Any]) -> int | None:
    """The item that was made for these named answers."""
    rows = store.rows(
        "SELECT i.id FROM prompt q JOIN item i ON i.prompt_id = q.id "
        "WHERE q.digest = ? AND i.origin = ?",
        (prompt_digest(prompt), json.dumps(origin)),
    )
    return rows[0]["id"] if rows else None


def _vote_on(store: Store, item: int, rater: str) -> Any:
    """The row of the rater's vote on an item as it stands, also if it was taken back."""
    rows = store.rows(
        "SELECT c.* FROM presentation p JOIN rater r ON r.id = p.rater_id "
        "JOIN current_judgement c ON c.presentation_id = p.id "
        "WHERE p.item_id = ? AND r.name = ? ORDER BY c.id DESC LIMIT 1",
        (item, rater),
    )
    return rows[0] if rows else None
