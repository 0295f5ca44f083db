"""Adding votes from elsewhere to a store, without adding any of them twice."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorarlhf.preferences.merge_named import correct_if_changed, known_by_name, verdict_key
from lorarlhf.preferences.records import ImportedVote, Prompt
from lorarlhf.preferences.rows import prompt_text, verdict_from_row
from lorarlhf.preferences.store import Store


@dataclass(frozen=True)
class Merged:
    """How many were added, how many the store had already, and how many it had otherwise.

    Attributes:
        changed: votes that were changed in the program they come from, and now are here.
    """

    added: int
    there: int
    changed: int = 0


def merge_votes(store: Store, votes: Sequence[ImportedVote]) -> Merged:
    """Add the votes that the store does not have yet, all of them or none.

    The store has a vote if it has one with the same prompt, answers, rater, verdict and (if the
    file gives it) time, even if that one was corrected or undone here since. If a file holds the
    same vote twice, these are two votes. A vote with a name of its own in another program is known
    by that name, and corrected if it was changed there after it came here.

    Args:
        votes: as checked by `imports.read_votes`.
    """
    with store.write():  # so that nobody else imports the same file in between
        votes = [replace(vote, rater=store.rater_name(vote.rater)) for vote in votes]
        named = known_by_name(store, [vote.key for vote in votes if vote.key])
        timed, untimed = _known_votes(store, votes)
        new, changed = [], 0
        for vote in votes:
            if vote.key in named:
                changed += correct_if_changed(store, vote, named[vote.key])
                continue
            known, key = untimed, _key(vote)
            if vote.created_at is not None:
                known, key = timed, (*key, vote.created_at)
            if known[key]:
                known[key] -= 1
            else:
                new.append(vote)
        add_votes(store, new)
    return Merged(len(new), len(votes) - len(new) - changed, changed)


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
                    alone=True,
                )
            order = list(vote.shown or range(len(vote.completions)))
            repeats = presentations.get((item, vote.repeats)) if vote.repeats else None
            how: Any = {"imported": True, "key": vote.key}
            shown = store.present(item, vote.rater, repeats, order, **how)
            if vote.presentation is not None:
                presentations[item, vote.presentation] = shown.id
            store.judge(shown.token, vote.verdict, vote.milliseconds, vote.created_at)
            added += 1
    return added


def _known_votes(store: Store, votes: Sequence[ImportedVote]) -> tuple[Counter[Any], Counter[Any]]:
    """How often each vote on these prompts was ever cast, by key with its time and without."""
    prompts = list({text for vote in votes for text in prompt_spellings(vote.prompt)})
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
        verdict = verdict_key(verdict_from_row(row))
        prompt = prompt_spellings(json.loads(row["messages"]))[0]
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
    return (prompt_spellings(vote.prompt)[0], texts, vote.rater, verdict_key(vote.verdict))


def prompt_spellings(prompt: Prompt) -> list[str]:
    """The texts that a store may have for a prompt; the first is the same for all of them.

    A text and a single message of a user are the same prompt, and some exports have only messages.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    alone = len(prompt) == 1 and prompt[0].keys() == {"role", "content"}
    if alone and prompt[0]["role"] == "user":
        return [prompt_text(prompt), prompt_text(prompt[0]["content"])]
    return [prompt_text(prompt)]
