"""Statistics of a store: votes by kind and by rater, agreement, and prompts asked."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from lorarlhf.preferences.records import Prompt
from lorarlhf.preferences.rows import prompt_digest
from lorarlhf.preferences.store import Store

FEWEST_OVERLAPS = 20
"""Pairs of votes on the same answers that are needed before agreement is reported: with fewer, its
interval covers nearly everything."""


@dataclass(frozen=True)
class VoteCount:
    """The number of votes with the same verdict, rater and purpose."""

    verdict: str
    rater: str
    purpose: str
    votes: int


@dataclass(frozen=True)
class RaterCount:
    """A rater with the number of current votes."""

    name: str
    votes: int
    can_log_in: bool
    role: str = "rater"  # at the pages; see `accounts`


def count_votes(store: Store) -> list[VoteCount]:
    """The current votes, without undone ones, counted by verdict, rater and purpose."""
    rows = store.rows(
        "SELECT c.verdict, r.name AS rater, i.purpose, count(*) AS votes FROM current_judgement c "
        "JOIN presentation p ON p.id = c.presentation_id JOIN rater r ON r.id = p.rater_id "
        "JOIN item i ON i.id = p.item_id WHERE c.verdict != 'undone' GROUP BY 1, 2, 3"
    )
    return [VoteCount(*row) for row in rows]


def count_by_rater(store: Store) -> list[RaterCount]:
    """All raters by name, with the number of their votes and whether they have a password."""
    rows = store.rows(
        "SELECT r.name, count(c.id) AS votes, r.password IS NOT NULL AS can_log_in, "
        "r.role FROM rater r "
        "LEFT JOIN presentation p ON p.rater_id = r.id LEFT JOIN current_judgement c "
        "ON c.presentation_id = p.id AND c.verdict != 'undone' GROUP BY r.id ORDER BY r.name"
    )
    return [
        RaterCount(row["name"], row["votes"], bool(row["can_log_in"]), row["role"]) for row in rows
    ]


def agreement(store: Store) -> dict[str, int]:
    """`pairs` of two raters' votes on the same two answers, and in how many both vote the `same`.

    A vote counts as the first answer, the second or neither. Skips and repeats are left out.
    """
    rows = store.rows(
        "WITH vote AS (SELECT p.item_id, p.rater_id, CASE c.verdict WHEN 'ranked' THEN "
        "json_extract(c.ranking, '$[0][0]') ELSE 'neither' END AS choice FROM current_judgement c "
        "JOIN presentation p ON p.id = c.presentation_id WHERE p.repeats IS NULL "
        "AND c.verdict NOT IN ('skip', 'undone') AND (SELECT count(*) FROM item_completion ic "
        "WHERE ic.item_id = p.item_id) = 2) "
        "SELECT count(*) AS pairs, coalesce(sum(a.choice = b.choice), 0) AS same FROM vote a "
        "JOIN vote b ON a.item_id = b.item_id AND a.rater_id < b.rater_id"
    )
    return {"pairs": rows[0]["pairs"], "same": rows[0]["same"]}


def self_agreement(store: Store) -> dict[str, int]:
    """`repeats` of pairs that a rater was asked again, and how many got the `same` verdict."""
    rows = store.rows(
        "SELECT count(*) AS repeats, coalesce(sum(a.verdict = b.verdict "
        "AND a.ranking IS b.ranking), 0) AS same FROM presentation p "
        "JOIN current_judgement b ON b.presentation_id = p.id "
        "JOIN current_judgement a ON a.presentation_id = p.repeats "
        "WHERE a.verdict NOT IN ('skip', 'undone') AND b.verdict NOT IN ('skip', 'undone') "
        "AND (SELECT count(*) FROM item_completion ic WHERE ic.item_id = p.item_id) = 2"
    )
    return {"repeats": rows[0]["repeats"], "same": rows[0]["same"]}


def count_asked(store: Store, prompts: Sequence[Prompt]) -> list[int]:
    """How many items for training each of these prompts has."""
    digests = [prompt_digest(prompt) for prompt in prompts]
    rows = store.rows(
        "SELECT q.digest, count(*) AS asked FROM item i JOIN prompt q ON q.id = i.prompt_id "
        "WHERE i.purpose = 'train' AND i.prompt_id IN "
        "(SELECT id FROM prompt WHERE digest IN (SELECT value FROM json_each(?))) GROUP BY q.id",
        (json.dumps(digests),),
    )
    asked = {row["digest"]: row["asked"] for row in rows}
    return [asked.get(digest, 0) for digest in digests]


def count_to_train_on(store: Store, rater: str, most: int) -> int:
    """How many votes of a rater, or imported ones, there are to train on; `most` at most.

    It stops counting there, since this happens at every vote.
    """
    rows = store.rows(
        "SELECT count(*) FROM (SELECT 1 FROM judgement j "
        "JOIN presentation p ON p.id = j.presentation_id JOIN rater r ON r.id = p.rater_id "
        "JOIN item i ON i.id = p.item_id WHERE i.purpose = 'train' "
        "AND j.verdict NOT IN ('skip', 'undone') AND (r.name = ? OR p.imported = 1) "
        "AND NOT EXISTS (SELECT 1 FROM judgement k WHERE k.supersedes = j.id) LIMIT ?)",
        (rater, most),
    )
    return rows[0][0]


def count_ordered_pairs(store: Store, rater: str) -> int:
    """How many pairs of answers the votes of a rater, or imported ones, order for training.

    A ranking orders several, a tie none, an edited answer is better than each of the best, and a
    good and a bad single answer to one prompt are a pair, as in `exports.better_and_worse` and
    `single_answers.in_pairs`. Unlike there, pairs with an empty answer or two equal ones count.
    """
    rows = store.rows(
        "SELECT j.verdict, j.ranking, coalesce(j.edited, '') != '' AS edited, "
        "(SELECT count(*) FROM item_completion ic WHERE ic.item_id = i.id) AS answers, "
        "count(*) AS votes FROM judgement j JOIN presentation p ON p.id = j.presentation_id "
        "JOIN rater r ON r.id = p.rater_id JOIN item i ON i.id = p.item_id "
        "WHERE i.purpose = 'train' AND j.verdict NOT IN ('skip', 'undone') "
        "AND (r.name = ? OR p.imported = 1) "
        "AND NOT EXISTS (SELECT 1 FROM judgement k WHERE k.supersedes = j.id) GROUP BY 1, 2, 3, 4",
        (rater,),
    )
    thumbs = store.rows(
        "SELECT coalesce(sum(pairs), 0) FROM (SELECT min(sum(j.verdict = 'both_good'), "
        "sum(j.verdict = 'both_bad')) AS pairs FROM judgement j "
        "JOIN presentation p ON p.id = j.presentation_id JOIN rater r ON r.id = p.rater_id "
        "JOIN item i ON i.id = p.item_id WHERE i.purpose = 'train' "
        "AND j.verdict IN ('both_good', 'both_bad') AND coalesce(j.edited, '') = '' "
        "AND (r.name = ? OR p.imported = 1) "
        "AND NOT EXISTS (SELECT 1 FROM judgement k WHERE k.supersedes = j.id) "
        "AND NOT EXISTS (SELECT 1 FROM item_completion ic WHERE ic.item_id = i.id "
        "AND ic.position = 1) GROUP BY i.prompt_id, p.rater_id)",
        (rater,),
    )
    return sum(row["votes"] * _ordered_pairs(row) for row in rows) + int(thumbs[0][0])


def _ordered_pairs(row: Any) -> int:
    """How many pairs one vote orders."""
    tiers = [len(tier) for tier in json.loads(row["ranking"] or "[]")]
    beaten_by_edit = (tiers[0] if tiers else row["answers"]) if row["edited"] else 0
    if tiers:
        tiers.append(row["answers"] - sum(tiers))  # those left out are below all others
    return beaten_by_edit + sum(upper * lower for upper, lower in combinations(tiers, 2))


def newest_judgement(store: Store) -> int | None:
    """The id of the newest judgement, undone or not: the votes are unchanged while it is the same.

    None in a store without votes. Ids only grow, since judgements are never changed or deleted.
    """
    return store.rows("SELECT max(id) FROM judgement")[0][0]


@dataclass(frozen=True)
class PairVotes:
    """Votes for training that name a better answer, on so many prompts.

    Attributes:
        newest: the number of the newest vote; 0 without any.
    """

    votes: int
    prompts: int
    newest: int


def count_pair_votes(store: Store, after: int = 0) -> PairVotes:
    """The current votes for training that name a better answer, by a ranking or by writing it.

    A single answer that is called good and one that is called bad are one such vote, as in
    `single_answers.in_pairs`. Unlike there, equal answers count.

    Args:
        after: only votes with a larger number. A corrected vote gets a new number.
    """
    (row,) = store.rows(
        "WITH vote AS (SELECT c.id, c.verdict, i.prompt_id, p.rater_id, "
        "coalesce(c.edited, '') != '' AS edited, EXISTS (SELECT 1 FROM item_completion ic "
        "WHERE ic.item_id = i.id AND ic.position = 1) AS several "
        "FROM current_judgement c JOIN presentation p ON p.id = c.presentation_id "
        "JOIN item i ON i.id = p.item_id "
        "WHERE i.purpose = 'train' AND c.verdict NOT IN ('skip', 'undone')), "
        "single AS (SELECT prompt_id, max(id) AS newest, "
        "min(sum(verdict = 'both_good'), sum(verdict = 'both_bad')) "
        "- min(sum(verdict = 'both_good' AND id <= :after), "
        "sum(verdict = 'both_bad' AND id <= :after)) AS votes "
        "FROM vote WHERE NOT several AND NOT edited GROUP BY prompt_id, rater_id), "
        "found AS (SELECT prompt_id, id AS newest, 1 AS votes FROM vote "
        "WHERE id > :after AND (verdict = 'ranked' OR edited) "
        "UNION ALL SELECT prompt_id, newest, votes FROM single WHERE votes > 0) "
        "SELECT coalesce(sum(votes), 0), count(DISTINCT prompt_id), coalesce(max(newest), 0) "
        "FROM found",
        {"after": after},
    )
    return PairVotes(*row)
