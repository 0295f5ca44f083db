"""`Export`: the rows that votes become, and the counts of what they leave out."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from lorarlhf.preferences.records import Vote

Row = dict[str, Any]
SKIPPED = "skipped"
WRITTEN = "answers that raters wrote, which are in demonstrations and in own"


@dataclass
class Export:
    """Votes as rows.

    Attributes:
        left_out: the number of votes that gave no row, by reason.
        lost: the number of parts of votes that the rows do not have, by kind.
    """

    rows: list[Row] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    def leave_out(self, vote: Vote, reason: str) -> None:
        """Count a vote that gives no row, and the answer that its rater wrote."""
        self.left_out[reason] += 1
        if (vote.verdict.edited or "").strip():
            self.lost[WRITTEN] += 1

    def missing(self) -> dict[str, int]:
        """All that is not in the rows, by reason."""
        return dict(sorted((self.left_out + self.lost).items()))

    def summary(self, votes: int, stage: str, also: Counter[str] | None = None) -> str:
        """How many rows `votes` give, and what is not used.

        Args:
            also: what was left out before, and what the rows carry along unused.
        """
        left = self.left_out + self.lost + (also or Counter())
        reasons = "; ".join(f"{count} {reason}" for reason, count in sorted(left.items()))
        rest = f" Not used: {reasons}." if reasons else ""
        return f"{votes} votes give {len(self.rows)} rows for {stage}.{rest}"
