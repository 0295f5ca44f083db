"""How much of a store's votes a stage learns from, and what of them its loss can't use."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorarlhf.preferences.exports import training_rows
from lorarlhf.preferences.records import RANKED, Vote

STRENGTHS, NOTES = "strengths of a preference", "notes"


@dataclass(frozen=True)
class VoteUse:
    """What becomes of votes in one form of rows.

    Attributes:
        votes: all of them; used: those that give a row; rows: what they give.
        left_out: the other votes, by reason.
        parts: what the rows of the used votes carry along and only some losses use, or what they
            do not have, by kind.
    """

    votes: int
    used: int
    rows: int
    left_out: dict[str, int]
    parts: dict[str, int]

    def dropped(self, strengths: bool) -> dict[str, int]:
        """Votes and parts of votes that nothing is learned from, by reason.

        Args:
            strengths: whether the loss uses how strong a preference is.
        """
        parts = {name: n for name, n in self.parts.items() if not (strengths and name == STRENGTHS)}
        return self.left_out | parts

    def sentence(self, name: str, strengths: bool) -> str:
        """Votes used and dropped, in words, for a method of this name."""
        dropped = self.dropped(strengths)
        said = f"{name} learns from {self.used} of {self.votes} votes ({self.rows} rows)."
        if dropped:
            said += f" Not used: {'; '.join(f'{n} {why}' for why, n in dropped.items())}."
        return said

    def as_dict(self) -> dict[str, Any]:
        """Plain values, from which `VoteUse(**values)` makes it again."""
        return dict(vars(self))


def count_use(form: str, votes: Sequence[Vote]) -> VoteUse:
    """What becomes of votes in the rows that a stage learns from.

    Args:
        form: of an export: `trl`, `kto`, `demonstrations`.
    """
    export = training_rows(form, votes)
    left = sum(export.left_out.values())
    parts = export.lost + carried_along(form, votes)
    return VoteUse(
        votes=len(votes),
        used=len(votes) - left,
        rows=len(export.rows),
        left_out=dict(sorted(export.left_out.items())),
        parts=dict(sorted(parts.items())),
    )


def carried_along(form: str, votes: Sequence[Vote], strengths: bool = False) -> Counter[str]:
    """How many of the votes that give a row have a strength or a note that the loss does not use.

    Votes that give no row are counted as a whole (`Export.left_out`).

    Args:
        form: as for `count_use`, or `edits`.
        strengths: whether the loss uses how strong a preference is.
    """
    found: Counter[str] = Counter()
    for vote in votes:
        if not training_rows(form, [vote]).rows:
            continue
        verdict = vote.verdict
        strong = verdict.verdict == RANKED and verdict.strength is not None
        found[STRENGTHS] += strong and not strengths
        found[NOTES] += bool((verdict.note or "").strip())
    return +found  # without what there is none of
