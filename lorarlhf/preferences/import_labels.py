"""KTO's rows as votes: answers that were called good or bad, joined in pairs on the same prompt."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lorarlhf.data.file_formats import shown
from lorarlhf.data.shapes import in_standard_shape
from lorarlhf.data.validation import as_label
from lorarlhf.preferences.fields import (
    UNNAMED,
    Row,
    RowFault,
    answer_of,
    name_of,
    need,
    prompt_of,
    refuse_encoded,
)
from lorarlhf.preferences.records import (
    BOTH_BAD,
    BOTH_GOOD,
    RANKED,
    ImportedVote,
    Prompt,
    Verdict,
)

ALONE = "answers that a rater wrote, without one that they are better than"


@dataclass(frozen=True)
class Labelled:
    """A row of KTO: an answer that was called good or bad.

    Attributes:
        vote: in our own export, the vote that the row comes from; "" elsewhere.
        written: in our own export, whether the rater wrote the answer.
    """

    prompt: Prompt
    text: str
    good: bool
    vote: str
    written: bool


def labelled(row: Row) -> Labelled:
    """A checked row. Raises `RowFault`."""
    need(row, "prompt", "completion", "label")
    refuse_encoded(row, "prompt", "completion")
    if row.get("system"):
        row = in_standard_shape(row)
    good = as_label(row["label"])
    if good is None:
        raise RowFault(f'field "label": expected true or false, found {shown(row["label"])}')
    vote = name_of(row.get("vote"), "vote", "")
    return Labelled(
        prompt_of(row["prompt"], "prompt"),
        answer_of(row["completion"], "completion"),
        good,
        vote,
        bool(vote) and as_label(row.get("written")) is True,
    )


def join(
    rows: Iterable[tuple[int, Labelled]],
) -> tuple[list[tuple[int, ImportedVote]], list[int]]:
    """The votes, each with the line of its last row, and the lines of the rows that gave none.

    Rows on one prompt (in our own export: of one vote) are joined in their order: each good answer
    with a bad one, as long as there are both, then good with good or bad with bad. A row that
    remains is a vote on a single answer, as a thumb is.
    """
    groups = defaultdict[tuple[str, str], list[tuple[int, Labelled]]](list)
    for line, row in rows:
        groups[json.dumps(row.prompt, default=str), row.vote].append((line, row))
    votes: list[tuple[int, ImportedVote]] = []
    alone = list[int]()
    for group in groups.values():
        shown_answers = [one for one in group if not one[1].written]
        edited = next(((line, row.text) for line, row in group if row.written), None)
        pairs, left = _pairs(shown_answers)
        text = edited[1] if edited else None
        votes += [(max(a[0], b[0]), _vote(a, b, text)) for a, b in pairs]
        votes += [(line, _single(row, None if pairs else text)) for line, row in left]
        alone += [edited[0]] if edited and not shown_answers else []
    return sorted(votes, key=lambda vote: vote[0]), sorted(alone)


def _pairs(
    rows: Sequence[tuple[int, Labelled]],
) -> tuple[list[tuple[tuple[int, Labelled], tuple[int, Labelled]]], list[tuple[int, Labelled]]]:
    """The pairs, and the row that remains, if one does."""
    good = [row for row in rows if row[1].good]
    bad = [row for row in rows if not row[1].good]
    both = min(len(good), len(bad))
    rest = good[both:] + bad[both:]
    same = list(zip(rest[::2], rest[1::2], strict=False))
    left = rest[-1:] if len(rest) % 2 else []
    return [*zip(good[:both], bad[:both], strict=True), *same], left


def _vote(
    one: tuple[int, Labelled], other: tuple[int, Labelled], edited: str | None
) -> ImportedVote:
    """A vote on two answers, in the order of the file."""
    first, second = (row for _, row in sorted((one, other), key=lambda row: row[0]))
    if first.good == second.good:
        verdict = Verdict(BOTH_GOOD if first.good else BOTH_BAD, edited=edited)
    else:
        verdict = Verdict(RANKED, [[0], [1]] if first.good else [[1], [0]], edited=edited)
    return ImportedVote(first.prompt, ((first.text, UNNAMED), (second.text, UNNAMED)), verdict)


def _single(row: Labelled, edited: str | None) -> ImportedVote:
    """A vote on one answer."""
    verdict = Verdict(BOTH_GOOD if row.good else BOTH_BAD, edited=edited)
    return ImportedVote(row.prompt, ((row.text, UNNAMED),), verdict)
