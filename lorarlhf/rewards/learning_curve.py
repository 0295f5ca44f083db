"""Would more votes help? Accuracy by number of votes, and a forecast for twice as many.

The error of a fit falls with the votes n like a + b n^-c towards what no vote can teach (Hestness
et al. 2017, arXiv 1712.00409; Viering and Loog 2021, arXiv 2103.10948, section 4). From the few
sizes that a few hundred votes allow, three free numbers would follow the noise, so c is one of
three usual values and a and b are not below 0: a curve that does not rise promises nothing.

Shapes: S sizes, N votes, G prompts, R resamples. Only numpy is used.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorarlhf.rewards.held_out import part_of, sample_of, shares_right
from lorarlhf.rewards.priors import split_groups
from lorarlhf.rewards.vote_fit import VoteFit

Array = NDArray[np.float64]

COUNTS = (10, 25, 50, 100, 150, 200, 400, 800, 2000, 5000, 10_000, 20_000, 50_000)
HALVINGS, FEWEST = 4, 4
"""Sizes at most, each half of the one before it, and the votes of the smallest one at least."""
PARTS = 3
"""Disjoint parts of the votes that are fitted at most for one size and fold."""
MIN_VOTES, MIN_PROMPTS = 20, 10
"""With fewer there is no forecast."""
POWERS = (0.25, 0.5, 1.0)
RESAMPLES = 1000
SPREAD = 1.5
"""The resamples draw other prompts to predict, but not other votes to learn from, and the folds
share most of those. Nadeau and Bengio 2003, "Inference for the generalization error", section 3,
make the deviation sqrt(1 + J n2 / n1) times as large; with J = 5 folds and n2 / n1 = 1/4 that is
1.5. benchmarks/votes_forecast.py shows how often the intervals hold."""
WORTH = 0.02
"""Twice the votes are worth it for at least two votes more in a hundred predicted right."""
LIKELY, UNLIKELY = 0.5, 0.1
"""More votes are advised if it is likely that they are worth it, and none if it is unlikely."""
NEAR, FARTHEST = 1.5, 4
"""Times the largest measured size up to which a curve's value passes for measured (the fits of
cross-validation lack a fifth of the votes), and up to which the curve is continued at all."""


def learning_curve(
    votes: VoteFit,
    chosen: NDArray[np.float32],
    rejected: NDArray[np.float32],
    counts: Sequence[int] = COUNTS,
) -> Iterator[tuple[int, float]]:
    """Fit the first n votes, for each n in `counts` up to all votes.

    Args:
        votes: in the order in which they were cast.
        chosen, rejected: (M, F) pooled states of held-out pairs.

    Yields:
        n and the share of held-out pairs whose chosen answer scores higher (ties half).
    """
    for count in [n for n in counts if n < len(votes)] + [len(votes)]:
        fit = votes.subset(range(count)).fit()
        yield count, float(shares_right(fit.score(chosen) - fit.score(rejected)).mean())


@dataclass(frozen=True)
class Point:
    """The share of votes predicted right by fits to so many votes of other prompts.

    `low` and `high` are the ends of its 95% interval, by a bootstrap over the prompts.
    """

    votes: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """The accuracy now, and with twice the votes.

    Attributes:
        points: what was measured, from few votes to many.
        votes: how many there are.
        now: the curve at so many votes.
        doubled: the curve at twice as many.
        gain: by how much it rises, and the ends of the 95% interval of that.
        chance: the share of the resamples in which it rises by `WORTH` or more.
    """

    points: list[Point]
    votes: int
    now: Point
    doubled: Point
    gain: tuple[float, float, float]
    chance: float

    @property
    def measured(self) -> int:
        """The largest number of votes that a measured fit has learned from."""
        return max(point.votes for point in self.points)

    @property
    def too_far(self) -> bool:
        """Whether there are so many more votes than were measured that the curve is a guess."""
        return self.votes > FARTHEST * self.measured

    @property
    def verdict(self) -> str:
        """`more`, `enough`, or `unclear`."""
        if self.too_far:
            return "unclear"
        if self.now.low <= 0.5:
            return "unclear"  # no better than a coin: a flat curve says nothing about later votes
        if self.chance < UNLIKELY:
            return "enough"
        return "more" if self.chance >= LIKELY else "unclear"


def forecast(votes: VoteFit, seed: int = 0, of: int | None = None) -> Forecast | None:
    """The learning curve by cross-validation over the votes' own prompts, continued.

    Each fold's votes are predicted from parts of the other folds' votes. The sizes of the parts
    halve from all of them, four fifths of the votes, downwards. Of more votes than
    `held_out.MOST`, a sample is measured and the curve is continued to all of them.

    Args:
        of: how many votes there are, if `votes` are only the newest ones.

    Returns:
        None with too few votes or prompts.
    """
    places = sample_of(votes)
    groups = [votes.groups[place] for place in places]
    if len(places) < MIN_VOTES or len(set(groups)) < MIN_PROMPTS:
        return None
    sizes, right = _measure(votes, places, np.random.default_rng(seed))
    return extrapolate(sizes, right, groups, max(of or 0, len(votes)), seed)


def _measure(
    votes: VoteFit, places: NDArray[np.int64], rng: np.random.Generator
) -> tuple[list[int], Array]:
    """Sizes, and how often fits to so many votes predict each of the votes (S, N)."""
    groups = np.array([votes.groups[place] for place in places])
    folds = split_groups(groups.tolist())
    pool = min(int((folds != fold).sum()) for fold in np.unique(folds))
    sizes = [pool >> k for k in range(HALVINGS) if pool >> k >= FEWEST]
    right = np.zeros((len(sizes), len(places)))
    for fold in np.unique(folds):
        test, others = folds == fold, _shuffled(groups, np.flatnonzero(folds != fold), rng)
        for row, size in enumerate(sizes):
            parts = [others[n * size : (n + 1) * size] for n in range(min(1 << row, PARTS))]
            for part in parts:
                fit = part_of(votes, places[part]).fit()
                margins = fit.score(votes.chosen[places[test]])
                margins -= fit.score(votes.rejected[places[test]])
                right[row, test] += shares_right(margins) / len(parts)
    return sizes, right


def _shuffled(
    groups: NDArray[np.str_], places: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Places prompt by prompt, the prompts in random order: as a rater meets them."""
    names, numbers = np.unique(groups[places], return_inverse=True)
    return places[np.argsort(rng.permutation(len(names))[numbers], kind="stable")]


def extrapolate(
    sizes: Sequence[int], right: Array, groups: Sequence[str], votes: int, seed: int = 0
) -> Forecast:
    """Continue a measured curve to `votes` and to twice as many.

    The intervals are those of a bootstrap over the prompts: each resample draws prompts with
    replacement and fits the curve to their votes, at `SPREAD` times their distance.

    Args:
        sizes: S numbers of votes.
        right: (S, N) how often fits to so many votes predicted each vote, from 0 to 1.
        groups: N prompts.
    """
    weights = _resampled_prompts(groups, np.random.default_rng(seed))  # (1 + R, N)
    accuracy = (weights @ right.T) / weights.sum(axis=1, keepdims=True)  # (1 + R, S)
    accuracy = np.clip(accuracy[0] + SPREAD * (accuracy - accuracy[0]), 0, 1)
    counts = np.array(sizes, dtype=np.float64)
    at_once = power_law(counts, 1 - accuracy, np.array([votes, 2.0 * votes]))
    now, doubled = (1 - at_once).T
    points = [_point(size, column) for size, column in zip(sizes, accuracy.T, strict=True)]
    ends = (_point(votes, now), _point(2 * votes, doubled))
    rise = doubled - now
    low, high = np.percentile(rise[1:], [2.5, 97.5])
    gain, chance = (float(rise[0]), float(low), float(high)), float((rise[1:] >= WORTH).mean())
    return Forecast(sorted(points, key=lambda point: point.votes), votes, *ends, gain, chance)


def _point(votes: int, values: Array) -> Point:
    """The first value with the middle 95% of the others."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return Point(votes, float(values[0]), float(low), float(high))


def _resampled_prompts(groups: Sequence[str], rng: np.random.Generator) -> Array:
    """How often each vote counts (1 + R, N): once each, then as prompts are drawn."""
    _, numbers = np.unique(np.array(groups), return_inverse=True)
    count = int(numbers.max()) + 1
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return np.concatenate([np.ones((1, count)), drawn])[:, numbers]


def power_law(counts: Array, errors: Array, asked: Array) -> Array:
    """Fit a + b n^-c to each row of errors (R, S) at counts (S,); its values at `asked` (A,).

    Least squares with a, b >= 0 for each c of `POWERS`; the c with the smallest squares counts.

    Returns:
        (R, A).
    """
    best, least = np.zeros((len(errors), len(asked))), np.full(len(errors), np.inf)
    mean = errors.mean(axis=1)
    for power in POWERS:
        falling = counts**-power
        apart = falling - falling.mean()
        b = np.maximum(errors @ apart / (apart @ apart), 0.0) if len(counts) > 1 else 0 * mean
        a = mean - b * falling.mean()
        without = errors @ falling / (falling @ falling)  # b if there is no a
        b, a = np.where(a < 0, without, b), np.maximum(a, 0.0)
        squares = ((a[:, None] + b[:, None] * falling - errors) ** 2).sum(axis=1)
        better = squares < least
        least = np.where(better, squares, least)
        best[better] = (a[:, None] + b[:, None] * asked**-power)[better]
    return best


# ---- in words


def advice(found: Forecast | None) -> str:
    """Whether to vote on, and what to expect of it."""
    first = headline(found)
    if found is None:
        return f"{first} {MIN_VOTES} votes on {MIN_PROMPTS} prompts are the least."
    then, now = found.doubled, found.now
    if found.too_far:
        return (
            f"{first} Only fits to up to {found.measured:,} votes were measured, too few to say "
            f"what {found.votes:,} do."
        )
    if now.low <= 0.5:
        return f"{first} The reward model may predict them no better than a coin."
    near = found.votes <= NEAR * found.measured
    is_now = f"it is {now.accuracy:.0%}" if near else f"it is about {now.accuracy:.0%} by the curve"
    return (
        f"{first} With twice as many, {then.accuracy:.0%} of new votes would be predicted right "
        f"({then.low:.0%} to {then.high:.0%}); now {is_now}."
    )


def headline(found: Forecast | None) -> str:
    """Whether to vote on, in one sentence; not whether what was learned is good enough."""
    if found is None:
        return "Too few votes to tell whether more would help."
    if found.verdict == "unclear":
        return "It can't be told yet whether more votes would help."
    if found.verdict == "more":
        return f"About {_rounded(found.votes):,} more votes are worth it."
    return "Enough votes: twice as many would hardly help."


def _rounded(count: int) -> int:
    """To two figures, or to tens where that is coarser."""
    unit = max(10, 10 ** (len(str(count)) - 2))
    return max(unit, round(count / unit) * unit)
