"""What a rater is asked next: their own queue, with an overlap and repeats for measuring people."""

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

from lorarlhf.preferences.records import Presentation, Prompt
from lorarlhf.preferences.store import Store

REPEAT_SHARE = 0.05
"""How often a pair comes again with its sides swapped, to see how far a rater agrees with itself"""
REPEAT_AFTER = 10
"""Votes that lie between a pair and its repeat."""
STALE_SECONDS = 1800.0
"""What a rater has had on the screen for so long without voting may be asked of another one."""


@dataclass(frozen=True)
class Shown:
    """An item as a rater sees it: `completions` in the order of `presentation.shown`."""

    presentation: Presentation
    prompt: Prompt
    completions: list[str]


def next_shown(
    store: Store,
    rater: str,
    *,
    purpose: str = "train",
    taste_test: int | None = None,
    repeat_share: float = REPEAT_SHARE,
) -> Shown | None:
    """What the rater has open, or the next item of the queue, which it is then shown.

    In this order: what was shown and not judged, unless somebody else was given it since; now and
    then a repeat; what is asked of every rater; what nobody has seen; what somebody else left. None
    where nothing is waiting.
    """
    with store.write():  # no two raters are given the same item of which one answer is wanted
        rater_id = store.rater(rater)
        shown = _open(store, rater_id, purpose, taste_test)
        if shown is None and taste_test is None:
            shown = _repeat(store, rater, rater_id, purpose, repeat_share)
        if shown is None:
            item = _waiting(store, rater_id, purpose, taste_test)
            if item is None:
                return None
            shown = store.present(item, rater)
        return read_shown(store, shown)


def waiting(store: Store, purpose: str = "train", taste_test: int | None = None) -> int:
    """How many items nobody has seen yet."""
    return store.rows(
        "SELECT count(*) FROM item WHERE purpose = ? AND taste_test IS ? AND presented = 0",
        (purpose, taste_test),
    )[0][0]


def read_shown(store: Store, presentation: Presentation) -> Shown:
    """Prompt and answers of a presentation, in its order."""
    rows = store.rows(
        "SELECT q.messages, c.text FROM item i JOIN prompt q ON q.id = i.prompt_id "
        "JOIN item_completion ic ON ic.item_id = i.id "
        "JOIN completion c ON c.id = ic.completion_id WHERE i.id = ? ORDER BY ic.position",
        (presentation.item_id,),
    )
    texts = [row["text"] for row in rows]
    prompt = json.loads(rows[0]["messages"])
    return Shown(presentation, prompt, [texts[position] for position in presentation.shown])


def is_shared(prompt_digest: str, share: float) -> bool:
    """Whether an item is one of the share that every rater is asked; the same prompt always is."""
    return _fraction(prompt_digest) < share


def _open(store: Store, rater_id: int, purpose: str, test: int | None) -> Presentation | None:
    rows = store.rows(
        # By the index of what is open: without being told SQLite reads all that was ever shown.
        "SELECT p.* FROM presentation p INDEXED BY open_presentation "
        "JOIN item i ON i.id = p.item_id "
        "WHERE p.rater_id = ? AND p.open = 1 AND i.purpose = ? AND i.taste_test IS ? "
        "AND (i.shared = 1 OR p.repeats IS NOT NULL OR NOT EXISTS (SELECT 1 FROM presentation q "
        "WHERE q.item_id = p.item_id AND q.rater_id != p.rater_id AND q.id > p.id)) "
        "ORDER BY p.id DESC LIMIT 1",
        (rater_id, purpose, test),
    )
    return _presentation(rows[0]) if rows else None


def _repeat(
    store: Store, rater: str, rater_id: int, purpose: str, share: float
) -> Presentation | None:
    """Now and then, an item that the rater judged some votes ago."""
    rows: list[Any] = store.rows(
        "SELECT p.id, p.item_id, p.repeats FROM presentation p JOIN item i ON i.id = p.item_id "
        "WHERE p.rater_id = ? AND p.open = 0 AND i.purpose = ? AND NOT EXISTS "
        "(SELECT 1 FROM judgement j WHERE j.presentation_id = p.id AND j.verdict = 'undone' "
        "AND NOT EXISTS (SELECT 1 FROM judgement k WHERE k.supersedes = j.id)) "
        "ORDER BY p.id DESC LIMIT ?",
        (rater_id, purpose, 2 * REPEAT_AFTER),
    )
    if len(rows) <= REPEAT_AFTER or _fraction(f"{rater} {rows[0]['id']}") >= share:
        return None
    for row in rows[REPEAT_AFTER:]:
        asked = store.rows(
            "SELECT 1 FROM presentation WHERE repeats = ? UNION ALL "
            "SELECT 1 FROM current_judgement WHERE presentation_id = ? "
            "AND verdict = 'skip'",
            (row["id"], row["id"]),
        )
        if row["repeats"] is None and not asked:
            return store.present(row["item_id"], rater, repeats=row["id"])
    return None


def _waiting(store: Store, rater_id: int, purpose: str, test: int | None) -> int | None:
    """An item for this rater: one asked of all, one that nobody has seen, or one left open."""
    stale = int(1000 * (time.time() - STALE_SECONDS))
    queries: tuple[tuple[str, tuple[Any, ...]], ...] = (
        (
            "SELECT id FROM item i WHERE purpose = ? AND taste_test IS ? AND shared = 1 "
            "AND NOT EXISTS (SELECT 1 FROM presentation p WHERE p.rater_id = ? "
            "AND p.item_id = i.id) ORDER BY id LIMIT 1",
            (purpose, test, rater_id),
        ),
        (
            "SELECT id FROM item WHERE purpose = ? AND taste_test IS ? AND presented = 0 "
            "ORDER BY id LIMIT 1",
            (purpose, test),
        ),
        (
            "SELECT i.id FROM presentation p JOIN item i ON i.id = p.item_id "
            "WHERE p.open = 1 AND i.purpose = ? AND i.taste_test IS ? AND p.rater_id != ? "
            "AND p.created_at < ? AND NOT EXISTS (SELECT 1 FROM presentation q "
            "WHERE q.item_id = i.id AND (q.open = 0 OR q.rater_id = ? OR q.created_at >= ?)) "
            "ORDER BY p.id LIMIT 1",
            (purpose, test, rater_id, stale, rater_id, stale),
        ),
    )
    for query, values in queries:
        if rows := store.rows(query, values):
            return int(rows[0][0])
    return None


def _presentation(row: Any) -> Presentation:
    return Presentation(row["id"], row["token"], row["item_id"], json.loads(row["shown"]))


def _fraction(text: str) -> float:
    """A number from 0 to 1 that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 16**8
