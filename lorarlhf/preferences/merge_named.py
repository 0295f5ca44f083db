"""Votes that have a name of their own in the program they come from, found again in a store."""

import json
import sqlite3
from collections.abc import Sequence

from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.preferences.rows import verdict_from_row
from lorarlhf.preferences.store import Store


def verdict_key(verdict: Verdict) -> str:
    """A text that is the same for the same verdicts."""
    return json.dumps(
        [verdict.verdict, verdict.ranking, verdict.strength, verdict.note, verdict.edited]
    )


def known_by_name(store: Store, keys: Sequence[str]) -> dict[str, sqlite3.Row]:
    """The current judgement of each imported vote that has one of these names."""
    rows = store.rows(
        "SELECT p.key AS name, p.item_id AS item, r.name AS rater, c.* FROM presentation p "
        "JOIN rater r ON r.id = p.rater_id JOIN current_judgement c ON c.presentation_id = p.id "
        "WHERE p.key IN (SELECT value FROM json_each(?))",
        (json.dumps(list(keys)),),
    )
    return {row["name"]: row for row in rows}


def correct_if_changed(store: Store, vote: ImportedVote, known: sqlite3.Row) -> bool:
    """Correct a vote that was changed in its program after it was stored or corrected here.

    A vote that was undone here stays undone. One whose rater or answers have changed stays as it
    is, so that a file that a rater made can't change another rater's vote.
    """
    if vote.changed_at is None or vote.changed_at <= known["created_at"]:
        return False
    if known["rater"] != vote.rater or known["verdict"] == "undone":
        return False
    if verdict_key(verdict_from_row(known)) == verdict_key(vote.verdict):
        return False
    texts = store.rows(
        "SELECT c.text FROM item_completion ic JOIN completion c ON c.id = ic.completion_id "
        "WHERE ic.item_id = ? ORDER BY ic.position",
        (known["item"],),
    )
    if [row["text"] for row in texts] != [text for text, _ in vote.completions]:
        return False
    store.correct(known["id"], vote.verdict)
    return True
