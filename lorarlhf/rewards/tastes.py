"""What votes prefer along the style axes, how sure that is, and which votes show it best.

The stored votes suffice: neither a model nor torch is needed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lorarlhf.data.readers import bundled, read_rows
from lorarlhf.rewards.bradley_terry import ROWS
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
        axis: its place among the directions.
    """

    sides: tuple[str, str]
    margin: float
    deviation: float
    axis: int = 0

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
        Taste(names, float(margin), float(deviation), axis)
        for axis, (names, margin, deviation) in enumerate(
            zip(sides, margins, deviations, strict=True)
        )
    ]
    return sorted(found, key=lambda taste: -abs(taste.margin) / max(taste.deviation, 1e-12))


def clearest_votes(
    tastes: Sequence[Taste],
    directions: ArrayLike,
    chosen: NDArray[np.float32],
    rejected: NDArray[np.float32],
) -> list[int | None]:
    """For each taste the vote that shows it best; None if no vote goes its way.

    That is the vote with the largest a * |a| / |d|: d is the chosen minus the rejected answer, each
    feature divided by its deviation over all answers, and a is how far d goes along the axis
    towards the preferred end. Without the factor |a| / |d|, the cosine, the example of most tastes
    would be the same two answers, which differ in everything.

    Args:
        tastes: as `tastes_of` found them.
        directions: (K, F), as they were given to it.
        chosen, rejected: (N, F) features of the votes' answers.
    """
    if not len(chosen):
        return [None] * len(tastes)
    spread = _deviations(chosen, rejected)
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
    axes = _unit(np.asarray(directions, dtype=np.float64) * scale)
    clear = np.empty((len(chosen), len(axes)))
    for first in range(0, len(chosen), ROWS):
        rows = slice(first, first + ROWS)
        apart = (chosen[rows].astype(np.float64) - rejected[rows]) * scale
        clear[rows] = (apart @ axes.T) * np.abs(_unit(apart) @ axes.T)
    found: list[int | None] = []
    for taste in tastes:
        towards = clear[:, taste.axis] * (1 if taste.margin >= 0 else -1)
        best = int(towards.argmax())
        found.append(best if towards[best] > 0 else None)
    return found


def _deviations(*parts: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each feature over the rows of all parts, (M, F) each -> (F,)."""
    blocks = [part[first : first + ROWS] for part in parts for first in range(0, len(part), ROWS)]
    count = sum(map(len, blocks))
    mean = sum(block.sum(axis=0, dtype=np.float64) for block in blocks) / count
    return np.sqrt(sum(((block - mean) ** 2).sum(axis=0) for block in blocks) / count)


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows (M, F) of length one; rows of zeros stay zeros."""
    lengths = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def axis_sides() -> Iterator[tuple[str, str]]:
    """The names of both ends of the bundled style axes, in the order of their directions."""
    rows = read_rows(bundled("style_axes.jsonl"))
    for name in dict.fromkeys(row["axis"] for _, row in rows):
        first, _, second = name.partition(" / ")
        yield first, second
