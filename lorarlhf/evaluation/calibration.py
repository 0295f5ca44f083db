"""Is what is called 80% sure right in 80% of the cases? The calibration of probabilities.

Of a vote between two answers, give the chance of the answer that is predicted to win and whether it
did, or the chance of the answer on one side of the screen and whether that side won. The chance of
the chosen answer would not do: each of its outcomes is 1, whatever was predicted.

Only numpy is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorarlhf.evaluation.win_rate import wilson_interval

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """The predictions whose probability is from `low` to below `high` (in the last bin, to 1).

    Attributes:
        low, high: the ends of the bin.
        count: the predictions in it, one or more.
        predicted: the mean of their probabilities.
        observed: the share that came true.
        interval: Wilson's 95% interval of that share.
    """

    low: float
    high: float
    count: int
    predicted: float
    observed: float
    interval: tuple[float, float]


def calibration_curve(
    probabilities: Sequence[float] | Array, outcomes: Sequence[float] | Array, bins: int = 10
) -> list[Bin]:
    """What came true of predictions that were about equally sure.

    Args:
        probabilities: N numbers from 0 to 1, N >= 1.
        outcomes: N values: 1 where it came true, 0 where it did not; a tie is 0.5.
        bins: how many parts of equal width the range from 0 to 1 has.

    Returns:
        The bins that have predictions, from the lowest probability to the highest.

    Raises:
        ValueError: no predictions, different lengths, numbers outside 0 to 1, or no bin.
    """
    chances = np.asarray(probabilities, dtype=np.float64)
    happened = np.asarray(outcomes, dtype=np.float64)
    if chances.ndim != 1 or chances.shape != happened.shape or not len(chances):
        raise ValueError("there is one outcome for each probability, and one or more of them")
    for values in (chances, happened):
        if not ((values >= 0) & (values <= 1)).all():  # NaN is refused too
            raise ValueError("probabilities and outcomes are numbers from 0 to 1")
    if bins < 1:
        raise ValueError(f"the number of bins is 1 or more, not {bins}")
    edges = np.arange(bins + 1) / bins
    place = np.minimum(np.searchsorted(edges, chances, side="right") - 1, bins - 1)
    curve = []
    for number in np.unique(place):
        inside = place == number
        count, observed = int(inside.sum()), float(happened[inside].mean())
        curve.append(
            Bin(
                float(edges[number]),
                float(edges[number + 1]),
                count,
                float(chances[inside].mean()),
                observed,
                wilson_interval(observed, count),
            )
        )
    return curve


def expected_calibration_error(
    probabilities: Sequence[float] | Array, outcomes: Sequence[float] | Array, bins: int = 10
) -> float:
    """The mean distance of predicted and observed shares, each bin weighted by its count.

    0 is perfect. Chance alone makes it larger than 0, the more so the fewer predictions there are.
    Source: Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning";
    Guo et al. 2017 (arXiv 1706.04599), equation 3. Arguments and errors as in `calibration_curve`.
    """
    curve = calibration_curve(probabilities, outcomes, bins)
    total = sum(part.count for part in curve)
    return sum(part.count * abs(part.observed - part.predicted) for part in curve) / total
