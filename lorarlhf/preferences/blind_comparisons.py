"""Blind comparisons of two models: their prompts, their votes, and who won.

Their items have the purpose `compare`. The tables call a blind comparison a `taste_test`.
"""

import json
from dataclasses import dataclass
from typing import Any

from lorarlhf.preferences.records import SKIP, Prompt, Vote
from lorarlhf.preferences.rows import now
from lorarlhf.preferences.store import Store


@dataclass(frozen=True)
class BlindComparison:
    """Two models, named by the source of their answers, and the number of prompts to compare on."""

    id: int
    first: str
    second: str
    wanted: int


def add_comparison(store: Store, first: str, second: str, wanted: int) -> BlindComparison:
    """Add a comparison of two models on so many prompts."""
    with store.write() as db:
        made = db.execute(
            "INSERT INTO taste_test (first, second, wanted, created_at) VALUES (?, ?, ?, ?)",
            (first, second, wanted, now()),
        ).lastrowid
    return BlindComparison(int(made or 0), first, second, wanted)


def comparisons(store: Store, newest: int | None = None) -> list[BlindComparison]:
    """The blind comparisons, the newest first; at most `newest` of them."""
    rows = store.rows(
        "SELECT * FROM taste_test ORDER BY id DESC LIMIT ?", (-1 if newest is None else newest,)
    )
    return [BlindComparison(row["id"], row["first"], row["second"], row["wanted"]) for row in rows]


def count_items(store: Store, comparison: int) -> int:
    """The number of prompts for which both answers are written."""
    return store.rows("SELECT count(*) FROM item WHERE taste_test = ?", (comparison,))[0][0]


def compared_prompts(store: Store, comparison: int) -> list[Prompt]:
    """The prompt of each of a comparison's items."""
    rows = store.rows(
        "SELECT q.messages FROM item i JOIN prompt q ON q.id = i.prompt_id WHERE i.taste_test = ?",
        (comparison,),
    )
    return [json.loads(row["messages"]) for row in rows]


def outcomes(store: Store, comparison: int, rater: str | None = None) -> list[float]:
    """For each vote 1 if the second model won, 0 if the first did, 0.5 for a tie; without skips.

    Args:
        rater: only this rater's votes.
    """
    rows = store.rows(
        "SELECT c.verdict, c.ranking FROM current_judgement c "
        "JOIN presentation p ON p.id = c.presentation_id JOIN item i ON i.id = p.item_id "
        "JOIN rater r ON r.id = p.rater_id "
        "WHERE i.taste_test = ? AND c.verdict NOT IN (?, 'undone') AND (? IS NULL OR r.name = ?)",
        (comparison, SKIP, rater, rater),
    )
    best: list[Any] = [json.loads(row["ranking"] or "[[0, 1]]")[0] for row in rows]
    return [sum(positions) / len(positions) for positions in best]


def finished_outcomes(store: Store, comparison: int) -> list[float]:
    """`outcomes` without the votes that `finished_votes` leaves out."""
    rows = store.rows(
        "SELECT r.name, t.id = (SELECT max(id) FROM taste_test) AND count(*) < t.wanted AS open "
        "FROM current_judgement c JOIN presentation p ON p.id = c.presentation_id "
        "JOIN rater r ON r.id = p.rater_id JOIN item i ON i.id = p.item_id "
        "JOIN taste_test t ON t.id = i.taste_test "
        "WHERE t.id = ? AND c.verdict != 'undone' GROUP BY r.id",
        (comparison,),
    )
    if not any(row["open"] for row in rows):
        return outcomes(store, comparison)
    over = [row["name"] for row in rows if not row["open"]]
    return [outcome for name in over for outcome in outcomes(store, comparison, name)]


def finished_votes(store: Store, purpose: str | None = None) -> tuple[list[Vote], int]:
    """The votes without those that raters cast in the newest comparison and have not finished.

    Until then the Compare page does not say who is ahead, so that it sways no vote. An earlier
    comparison is over: nobody is asked about it any more.

    Args:
        purpose: only items with this purpose.

    Returns:
        The votes in the order in which they were cast, and the number of votes left out.
    """
    rows = store.rows(
        "SELECT o.id, r.name FROM current_judgement c JOIN presentation p "
        "ON p.id = c.presentation_id JOIN rater r ON r.id = p.rater_id JOIN item o "
        "ON o.id = p.item_id JOIN taste_test t ON t.id = o.taste_test "
        "WHERE t.id = (SELECT max(id) FROM taste_test) AND t.wanted > ("
        "SELECT count(*) FROM current_judgement d JOIN presentation q ON q.id = d.presentation_id "
        "JOIN item e ON e.id = q.item_id WHERE e.taste_test = t.id AND q.rater_id = p.rater_id "
        "AND d.verdict != 'undone')"
    )
    running = {(row["id"], row["name"]) for row in rows}
    votes = store.votes(purpose=purpose)
    kept = [vote for vote in votes if (vote.item_id, vote.rater) not in running]
    return kept, len(votes) - len(kept)


def has_finished(store: Store, rater: str, item_id: int) -> bool:
    """Whether a rater has voted on everything in an item's comparison; True outside of one."""
    rows = store.rows(
        "SELECT t.wanted, (SELECT count(*) FROM current_judgement c "
        "JOIN presentation p ON p.id = c.presentation_id JOIN rater r ON r.id = p.rater_id "
        "JOIN item o ON o.id = p.item_id WHERE o.taste_test = t.id AND r.name = ? "
        "AND c.verdict != 'undone') AS votes "
        "FROM item i JOIN taste_test t ON t.id = i.taste_test WHERE i.id = ?",
        (rater, item_id),
    )
    return all(row["votes"] >= row["wanted"] for row in rows)
