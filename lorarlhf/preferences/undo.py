"""Undo: taking back a rater's vote and showing its item again."""

import json

from lorarlhf.preferences.records import UNDONE, Presentation
from lorarlhf.preferences.rows import open_presentation
from lorarlhf.preferences.store import Store


def undo(
    store: Store,
    rater: str,
    *,
    purpose: str = "train",
    comparison: int | None = None,
    expected: int | None = None,
) -> Presentation | None:
    """Undo a rater's last vote and show its item again; None if there is no vote to undo.

    Args:
        purpose, comparison: only votes of this purpose, and of this blind comparison.
        expected: the id of the vote that the rater wants to undo, even if it was corrected since.
            If it is undone already (a second click), its item is shown and no other vote changes.
    """
    with store.write():
        if expected is None:
            expected = last_vote(store, rater, purpose, comparison)
        found = store.rows(
            "SELECT p.id, c.id AS vote, c.verdict FROM judgement j "
            "JOIN presentation p ON p.id = j.presentation_id "
            "JOIN current_judgement c ON c.presentation_id = p.id "
            "JOIN rater r ON r.id = p.rater_id JOIN item i ON i.id = p.item_id "
            "WHERE j.id = ? AND j.verdict != 'undone' AND r.name = ? AND i.purpose = ? "
            "AND (?4 IS NULL OR i.taste_test = ?4)",
            (expected, rater, purpose, comparison),
        )
        if not found:
            return None
        if found[0]["verdict"] != UNDONE:
            store.correct(found[0]["vote"], None)
        return present_again(store, found[0]["id"])


def present_again(store: Store, presentation_id: int) -> Presentation:
    """Show an item once more, to the same rater and with the same sides."""
    with store.write() as db:
        (row,) = store.rows(
            "SELECT p.*, r.name FROM presentation p JOIN rater r ON r.id = p.rater_id "
            "WHERE p.id = ?",
            (presentation_id,),
        )
        opened = open_presentation(db, row["item_id"], row["rater_id"], row["repeats"])
        if opened is not None:  # a second click
            return opened
        order = json.loads(row["shown"])
        return store.present(row["item_id"], row["name"], row["repeats"], order)


def typed_before(store: Store, presentation: Presentation) -> dict[str, str]:
    """The note, the better answer and the strength of the vote on this item that was taken back.

    Empty if the rater's last vote on the item stands, or if there was none.
    """
    rows = store.rows(
        "SELECT j.verdict, old.note, old.edited, old.strength FROM presentation now "
        "JOIN presentation p ON p.item_id = now.item_id AND p.rater_id = now.rater_id "
        "JOIN judgement j ON j.presentation_id = p.id "
        "LEFT JOIN judgement old ON old.id = j.supersedes "
        "WHERE now.id = ? ORDER BY j.id DESC LIMIT 1",
        (presentation.id,),
    )
    if not rows or rows[0]["verdict"] != UNDONE:
        return {}
    return {name: rows[0][name] or "" for name in ("note", "edited", "strength")}


def last_vote(
    store: Store, rater: str, purpose: str = "train", comparison: int | None = None
) -> int | None:
    """The id of the vote that the rater cast last, as it stands; None if there is none.

    The order is that of the rows, since clocks are set back. Imported votes do not count.
    """
    rows = store.rows(
        "SELECT c.id FROM judgement j JOIN presentation p ON p.id = j.presentation_id "
        "JOIN rater r ON r.id = p.rater_id JOIN item i ON i.id = p.item_id "
        "JOIN current_judgement c ON c.presentation_id = p.id "
        "WHERE j.supersedes IS NULL AND p.imported = 0 AND c.verdict != 'undone' "
        "AND r.name = ? AND i.purpose = ? AND (?3 IS NULL OR i.taste_test = ?3) "
        "ORDER BY j.id DESC LIMIT 1",
        (rater, purpose, comparison),
    )
    return rows[0]["id"] if rows else None
