"""Votes as the rows of a data set, in TRL's preference shape, with counts of all votes.

Notes and raters' names are left out unless they are asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorarlhf.export.cards.vote_facts import VoteFacts, vote_facts
from lorarlhf.preferences.export_result import Export
from lorarlhf.preferences.exports import to_pairs
from lorarlhf.preferences.records import Vote
from lorarlhf.preferences.single_answers import in_pairs
from lorarlhf.runtime.files import Row

TRAIN = "train.jsonl"


@dataclass(frozen=True)
class Dataset:
    """Votes in the data set's rows.

    Attributes:
        rows: `prompt`, `chosen`, `rejected`, `group`, `weight`, and further columns.
        left_out: the votes that give no row, and what the rows do not have, by reason.
        facts: the counts of all votes, those left out too.
        sources: how many of the answers each model wrote.
    """

    rows: list[Row]
    left_out: dict[str, int]
    facts: VoteFacts
    sources: dict[str, int]
    with_notes: bool
    with_raters: bool


def make_dataset(
    votes: Sequence[Vote], with_notes: bool = False, with_raters: bool = False
) -> Dataset:
    """The rows of a data set from votes, with its counts.

    Args:
        with_notes: whether the raters' notes become a column, empty where there is none.
        with_raters: whether the raters' names become a column.
    """
    made = Export()
    sources: dict[str, int] = {}
    for vote in in_pairs(votes):
        export = to_pairs([vote])
        more: Row = {"note": (vote.verdict.note or "").strip()} if with_notes else {}
        more |= {"rater": vote.rater} if with_raters else {}
        made.rows += [row | more for row in export.rows]
        made.left_out += export.left_out
        made.lost += export.lost
        for source in vote.sources:
            sources[source] = sources.get(source, 0) + 1
    if any("margin" in row for row in made.rows):  # all rows of a file have the same columns
        made.rows = [row | {"margin": row.get("margin", 0.0)} for row in made.rows]
    rows = [_in_utf8(row) for row in made.rows]
    return Dataset(rows, made.missing(), vote_facts(votes), sources, with_notes, with_raters)


def _in_utf8(value: Any) -> Any:
    """A row whose texts have no lone surrogates: Arrow, which reads data sets, refuses them."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {key: _in_utf8(one) for key, one in value.items()}
    return [_in_utf8(one) for one in value] if isinstance(value, list) else value
