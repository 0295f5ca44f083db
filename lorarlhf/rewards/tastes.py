"""What votes prefer along the style axes, and how sure that is. The stored votes suffice."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lorarlhf.rewards.posterior import Posterior, moderated

Z90 = 1.6448536269514722
"""95% point of the standard normal distribution: the middle 90% lies between its two signs."""


@dataclass(frozen=True)
class Taste:
    """One axis as the votes see it.

    Attributes:
        sides: its two ends.
        margin: by how much the head scores the first end's example sentences higher than the
            second's, on average.
        deviation: the standard deviation of that.
    """

    sides: tuple[str, str]
    margin: float
    deviation: float

    @property
    def preferred(self) -> str:
        """The end that scores higher."""
        return self.sides[0] if self.margin >= 0 else self.sides[1]

    @property
    def other(self) -> str:
        """The end that scores lower."""
        return self.sides[1] if self.margin >= 0 else self.sides[0]

    @property
    def chance(self) -> float:
        """That a vote goes to the preferred end, with the doubt about the head: 0.5 to 1."""
        return float(moderated(np.abs(self.margin), np.asarray(self.deviation)))

    @property
    def interval(self) -> tuple[float, float]:
        """The middle 90% of that chance, as far as the votes tell."""
        ends = np.abs(self.margin) + np.array([-Z90, Z90]) * self.deviation
        low, high = moderated(ends, np.zeros(2))
        return float(low), float(high)

    @property
    def sure(self) -> bool:
        """Whether that interval lies on one side of one half."""
        return self.interval[0] > 0.5


def tastes_of(
    posterior: Posterior, directions: ArrayLike, sides: Sequence[tuple[str, str]]
) -> list[Taste]:
    """The taste along each direction (K, F), the surest first.

    Args:
        directions: mean differences of features of the two ends (`axes.style_axes`).
        sides: the names of the ends of each.

    Raises:
        ValueError: the numbers of directions and of names differ.
    """
    rows = np.asarray(directions, dtype=np.float64)
    if len(rows) != len(sides):
        raise ValueError(f"{len(rows)} directions have {len(sides)} names")
    margins, deviations = posterior.margins(rows, np.zeros_like(rows))
    found = [
        Taste(names, float(margin), float(deviation))
        for names, margin, deviation in zip(sides, margins, deviations, strict=True)
    ]
    return sorted(found, key=lambda taste: -abs(taste.margin) / max(taste.deviation, 1e-12))
