"""Votes from a file into a store, each once: what is there already is not added again."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorarlhf.preferences.records import Given, Prompt, Verdict
from lorarlhf.preferences.store import Store


@dataclass(frozen=True)
class Merged:
    """How many votes were added, and how many were there already."""

    added: int
    there: int


def merge_votes(store: Store, votes: Sequence[Given]) -> Merged:
    """Add the votes that are not in the store yet, all of them or none.

    A vote is there already when one with the same prompt, answers, rater, verdict and (where the
    file has one) time is, also where it was corrected or taken back here since. What stands twice
    in a file is two votes, and comes once as such.

    Args:
        votes: as `imports.read_votes` has checked them.
    """
    with store.write():  # nobody else imports the same file in between
        timed, untimed = _there(store, votes)
        fresh = []
        for vote in votes:
            known, key = untimed, _key(vote)
            if vote.created_at is not None:
                known, key = timed, (*key, vote.created_at)
            if known[key]:
                known[key] -= 1
            else:
                fresh.append(vote)
        store.add_votes(fresh)
    return Merged(len(fresh), len(votes) - len(fresh))


def _there(store: Store, votes: Sequence[Given]) -> tuple[Counter[Any], Counter[Any]]:
    """How often each vote on these prompts was ever cast, with its time and without."""
    prompts = list({_text(vote.prompt) for vote in votes})
    rows = store.rows(
        "SELECT q.messages, r.name, p.item_id, j.* FROM prompt q "
        "JOIN item i ON i.prompt_id = q.id JOIN presentation p ON p.item_id = i.id "
        "JOIN rater r ON r.id = p.rater_id JOIN judgement j ON j.presentation_id = p.id "
        "WHERE j.verdict != 'undone' AND q.messages IN (SELECT value FROM json_each(?))",
        (json.dumps(prompts),),
    )
    answers = _answers(store, sorted({row["item_id"] for row in rows}))
    timed, untimed = Counter[Any](), Counter[Any]()
    for row in rows:
        ranking = json.loads(row["ranking"] or "[]")
        said = Verdict(row["verdict"], ranking, row["strength"], row["note"], row["edited"])
        key = (row["messages"], answers[row["item_id"]], row["name"], _said(said))
        timed[(*key, row["voted_at"])] += 1
        untimed[key] += 1
    return timed, untimed


def _answers(store: Store, items: list[int]) -> dict[int, tuple[str, ...]]:
    """The texts of items by position."""
    texts: dict[int, list[str]] = {item: [] for item in items}
    rows = store.rows(
        "SELECT ic.item_id, c.text FROM item_completion ic "
        "JOIN completion c ON c.id = ic.completion_id "
        "WHERE ic.item_id IN (SELECT value FROM json_each(?)) ORDER BY ic.item_id, ic.position",
        (json.dumps(items),),
    )
    for row in rows:
        texts[row["item_id"]].append(row["text"])
    return {item: tuple(found) for item, found in texts.items()}


def _key(vote: Given) -> tuple[Any, ...]:
    texts = tuple(text for text, _ in vote.completions)
    return (_text(vote.prompt), texts, vote.rater, _said(vote.verdict))


def _said(verdict: Verdict) -> str:
    return json.dumps(
        [verdict.verdict, verdict.ranking, verdict.strength, verdict.note, verdict.edited]
    )


def _text(prompt: Prompt) -> str:
    """A prompt as the store writes it."""
    return json.dumps(prompt, ensure_ascii=False, sort_keys=True)
