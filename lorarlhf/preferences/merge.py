"""Adding votes from elsewhere to a store, without adding any of them twice."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorarlhf.preferences.records import ImportedVote, Prompt, Verdict
from lorarlhf.preferences.rows import prompt_text, verdict_from_row
from lorarlhf.preferences.store import Store


@dataclass(frozen=True)
class Merged:
    """How many votes were added, and how many the store had already."""

    added: int
    there: int


def merge_votes(store: Store, votes: Sequence[ImportedVote]) -> Merged:
    """Add the votes that the store does not have yet, all of them or none.

    The store has a vote if it has one with the same prompt, answers, rater, verdict and (if the
    file gives it) time, even if that one was corrected or undone here since. If a file holds the
    same vote twice, these are two votes.

    Args:
        votes: as checked by `imports.read_votes`.
    """
    with store.write():  # so that nobody else imports the same file in between
        votes = [replace(vote, rater=store.rater_name(vote.rater)) for vote in votes]
        timed, untimed = _known_votes(store, votes)
        new = []
        for vote in votes:
            known, key = untimed, _key(vote)
            if vote.created_at is not None:
                known, key = timed, (*key, vote.created_at)
            if known[key]:
                known[key] -= 1
            else:
                new.append(vote)
        add_votes(store, new)
    return Merged(len(new), len(votes) - len(new))


def add_votes(store: Store, votes: Iterable[ImportedVote]) -> int:
    """Add votes to a store and return their number; if one does not fit, none is added.

    Raises:
        ValueError: a vote that does not fit its item.
    """
    items: dict[Any, int] = {}
    presentations: dict[tuple[int, int], int] = {}  # by item and the file's own number
    added = 0
    with store.write():
        for vote in votes:
            # Votes share an item only if its name, the prompt and the answers are the same.
            key = (vote.item, json.dumps(vote.prompt), vote.completions, vote.purpose)
            item = items.get(key) if vote.item is not None else None
            if item is None:
                item = items[key] = store.add_item(
                    vote.prompt,
                    vote.completions,
                    purpose=vote.purpose,
                    sampling=vote.sampling,
                    origin=vote.origin,
                )
            order = list(vote.shown or range(len(vote.completions)))
            repeats = presentations.get((item, vote.repeats)) if vote.repeats else None
            shown = store.present(item, vote.rater, repeats, order, imported=True)
            if vote.presentation is not None:
                presentations[item, vote.presentation] = shown.id
            store.judge(shown.token, vote.verdict, vote.milliseconds, vote.created_at)
            added += 1
    return added


def _known_votes(store: Store, votes: Sequence[ImportedVote]) -> tuple[Counter[Any], Counter[Any]]:
    """How often each vote on these prompts was ever cast, by key with its time and without."""
    prompts = list({text for vote in votes for text in _spellings(vote.prompt)})
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
        verdict = _verdict_key(verdict_from_row(row))
        prompt = _spellings(json.loads(row["messages"]))[0]
        key = (prompt, answers[row["item_id"]], row["name"], verdict)
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


def _key(vote: ImportedVote) -> tuple[Any, ...]:
    texts = tuple(text for text, _ in vote.completions)
    return (_spellings(vote.prompt)[0], texts, vote.rater, _verdict_key(vote.verdict))


def _spellings(prompt: Prompt) -> list[str]:
    """The texts that a store may have for a prompt; the first is the same for all of them.

    A text and a single message of a user are the same prompt, and some exports have only messages.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    alone = len(prompt) == 1 and prompt[0].keys() == {"role", "content"}
    if alone and prompt[0]["role"] == "user":
        return [prompt_text(prompt), prompt_text(prompt[0]["content"])]
    return [prompt_text(prompt)]


def _verdict_key(verdict: Verdict) -> str:
    return json.dumps(
        [verdict.verdict, verdict.ranking, verdict.strength, verdict.note, verdict.edited]
    )
