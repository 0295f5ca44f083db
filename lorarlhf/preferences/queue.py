"""What a rater is asked next: a queue for each rater, with shared items and repeats.

Shared items show how far raters agree, and repeats how far a rater agrees with themselves.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorarlhf.preferences.records import Presentation, Prompt
from lorarlhf.preferences.rows import presentation_from_row
from lorarlhf.preferences.store import Store

REPEAT_SHARE = 0.05
"""How often a pair is asked again with its sides swapped."""
REPEAT_AFTER = 10
"""The number of votes between a pair and its repeat."""
STALE_SECONDS = 1800.0
"""An item that a rater has left open for this long may be asked of another rater."""


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
    comparison: int | None = None,
    repeat_share: float = REPEAT_SHARE,
    first: Sequence[int] = (),
) -> Shown | None:
    """The item that the rater has open, or else the next one of the queue, which is then presented.

    In this order: an item that was shown and not judged, unless somebody else got it since;
    sometimes a repeat; an item for every rater; an item that nobody has seen; an item that somebody
    else left open. None if there is nothing to ask.

    Args:
        repeat_share: how often a pair is asked again.
        first: the numbers of items that nobody has seen, those to be asked first in front; the
            others follow in the order in which they were made. Numbers of other items are ignored.
    """
    with store.write():  # so that two raters do not get the same unshared item
        rater_id = store.rater(rater)
        shown = _open(store, rater_id, purpose, comparison)
        if shown is None and comparison is None:
            shown = _repeat(store, rater, rater_id, purpose, repeat_share)
        if shown is None:
            item = _waiting(store, rater_id, purpose, comparison, first)
            if item is None:
                return None
            shown = store.present(item, rater)
        return read_shown(store, shown)


def waiting(store: Store, purpose: str = "train", comparison: int | None = None) -> int:
    """The number of items that nobody has seen yet."""
    return store.rows(
        "SELECT count(*) FROM item WHERE purpose = ? AND taste_test IS ? AND presented = 0",
        (purpose, comparison),
    )[0][0]


def unseen(store: Store, most: int) -> list[tuple[int, Prompt, list[str]]]:
    """Items to train on that nobody has seen: the number, the prompt and the answers of each.

    Of more than `most`, as many at random, so that those which nobody chose do not stay alone.
    """
    rows = store.rows(
        "SELECT i.id, q.messages, c.text FROM item i JOIN prompt q ON q.id = i.prompt_id "
        "JOIN item_completion ic ON ic.item_id = i.id "
        "JOIN completion c ON c.id = ic.completion_id WHERE i.id IN (SELECT id FROM item WHERE "
        "purpose = 'train' AND taste_test IS NULL AND presented = 0 ORDER BY random() LIMIT ?) "
        "ORDER BY i.id, ic.position",
        (most,),
    )
    items: dict[int, tuple[int, Prompt, list[str]]] = {}
    for row in rows:
        known = items.setdefault(row["id"], (row["id"], json.loads(row["messages"]), []))
        known[2].append(row["text"])
    return list(items.values())


def read_shown(store: Store, presentation: Presentation) -> Shown:
    """The prompt and the answers of a presentation, in its order."""
    rows = store.rows(
        "SELECT q.messages, c.text FROM item i JOIN prompt q ON q.id = i.prompt_id "
        "JOIN item_completion ic ON ic.item_id = i.id "
        "JOIN completion c ON c.id = ic.completion_id WHERE i.id = ? ORDER BY ic.position",
        (presentation.item_id,),
    )
    texts = [row["text"] for row in rows]
    prompt = json.loads(rows[0]["messages"])
    return Shown(presentation, prompt, [texts[position] for position in presentation.shown])


def open_answers(store: Store, rater: str) -> list[str]:
    """The answers of all items that were shown to a rater and not judged."""
    rows = store.rows(
        "SELECT DISTINCT c.text FROM presentation p INDEXED BY open_presentation "
        "JOIN rater r ON r.id = p.rater_id "
        "JOIN item_completion ic ON ic.item_id = p.item_id "
        "JOIN completion c ON c.id = ic.completion_id WHERE r.name = ? AND p.open = 1",
        (rater,),
    )
    return [row["text"] for row in rows]


def is_shared(prompt_digest: str, share: float) -> bool:
    """Whether every rater is asked an item; it depends on the digest of its prompt alone."""
    return _fraction(prompt_digest) < share


def _open(store: Store, rater_id: int, purpose: str, comparison: int | None) -> Presentation | None:
    rows = store.rows(
        # Without this hint SQLite reads every presentation of the rater.
        "SELECT p.* FROM presentation p INDEXED BY open_presentation "
        "JOIN item i ON i.id = p.item_id "
        "WHERE p.rater_id = ? AND p.open = 1 AND i.purpose = ? AND i.taste_test IS ? "
        "AND (i.shared = 1 OR p.repeats IS NOT NULL OR NOT EXISTS (SELECT 1 FROM presentation q "
        "WHERE q.item_id = p.item_id AND q.rater_id != p.rater_id AND q.id > p.id)) "
        "ORDER BY p.id DESC LIMIT 1",
        (rater_id, purpose, comparison),
    )
    return presentation_from_row(rows[0]) if rows else None


def _repeat(
    store: Store, rater: str, rater_id: int, purpose: str, share: float
) -> Presentation | None:
    """Sometimes, an item that the rater judged some votes ago."""
    rows: list[Any] = store.rows(
        "SELECT p.id, p.item_id, p.repeats FROM presentation p JOIN item i ON i.id = p.item_id "
        "WHERE p.rater_id = ? AND p.open = 0 AND i.purpose = ? AND EXISTS "  # no answer alone
        "(SELECT 1 FROM item_completion ic WHERE ic.item_id = i.id AND ic.position = 1) "
        "AND NOT EXISTS "
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


def _waiting(
    store: Store, rater_id: int, purpose: str, comparison: int | None, first: Sequence[int]
) -> int | None:
    """An item for this rater: a shared one, one that nobody has seen, or one left open."""
    stale = int(1000 * (time.time() - STALE_SECONDS))
    queries: tuple[tuple[str, tuple[Any, ...]], ...] = (
        (
            "SELECT id FROM item i WHERE purpose = ? AND taste_test IS ? AND shared = 1 "
            "AND NOT EXISTS (SELECT 1 FROM presentation p WHERE p.rater_id = ? "
            "AND p.item_id = i.id) ORDER BY id LIMIT 1",
            (purpose, comparison, rater_id),
        ),
        (
            # Somebody else may have got an item of `first` since the list was made.
            "SELECT i.id FROM json_each(?) f JOIN item i ON i.id = f.value WHERE i.purpose = ? "
            "AND i.taste_test IS ? AND i.presented = 0 ORDER BY f.key LIMIT 1",
            (json.dumps(list(first)), purpose, comparison),
        ),
        (
            "SELECT id FROM item WHERE purpose = ? AND taste_test IS ? AND presented = 0 "
            "ORDER BY id LIMIT 1",
            (purpose, comparison),
        ),
        (
            "SELECT i.id FROM presentation p JOIN item i ON i.id = p.item_id "
            "WHERE p.open = 1 AND i.purpose = ? AND i.taste_test IS ? AND p.rater_id != ? "
            "AND p.created_at < ? AND NOT EXISTS (SELECT 1 FROM presentation q "
            "WHERE q.item_id = i.id AND (q.open = 0 OR q.rater_id = ? OR q.created_at >= ?)) "
            "ORDER BY p.id LIMIT 1",
            (purpose, comparison, rater_id, stale, rater_id, stale),
        ),
    )
    for query, values in queries:
        if rows := store.rows(query, values):
            return int(rows[0][0])
    return None


def _fraction(text: str) -> float:
    """A number from 0 to 1 that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 16**8
