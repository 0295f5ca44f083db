"""Priors of the reward head's fit, and how much each of them counts.

Shapes: N votes, F features, K axes, P = F + K. Only numpy is used.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorarlhf.rewards.bradley_terry import solve_dual, solve_primal

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prior:
    """The strength of the regularisation, in the units of `lorarlhf.rewards.fit.fit_head`.

    `fit_head` scales the features so that two unlabelled answers have a distance of one (root mean
    square), and the axes so that their scores have a standard deviation of one.

    Attributes:
        l2: Penalty on the squared weight; larger means smaller weights.
        axis_strength: Prior variance along each axis; 0 leaves the axes out.
    """

    l2: float
    axis_strength: float = 0.0


# Most of them rely on the axes, which is right for a preference that lies along them; the last two
# are for one that does not. Chosen on the small base for the simulated raters.
PRIORS = (
    *(Prior(l2, axis) for l2 in (1.0, 3.0, 10.0) for axis in (0.003, 0.01, 0.03)),
    *(Prior(0.3), Prior(1.0)),
)
PRIORS_WITHOUT_AXES = (Prior(0.3), Prior(1.0), Prior(3.0))
FOLDS = 5
MIN_GROUPS = 10
"""With fewer prompts cross-validation is too noisy, so the priors' masses are their shares."""
MIN_SHARE = 0.01
"""Priors with a smaller share are left out."""
SCALE_DEVIATION = 0.7
"""A factor of two is one deviation."""
MOST_WEIGHED = 4000
"""The votes by which priors are weighted at most: with as many the prior hardly matters any more,
and every prior is fitted once a fold."""
BEGIN_WITH = 8
"""A fit to many votes begins at the fit to a part of them: to so many votes for each weight."""
FEWEST_SPREAD = 20
"""Groups below which a sample of whole groups says too little of the others."""


@dataclass(frozen=True)
class Blend:
    """Priors with their shares, and how well their average predicts held-out votes.

    Attributes:
        priors: (prior, share); the shares add up to 1.
        cv_accuracy: Share of held-out votes predicted right (ties half); None if there are
            too few votes to measure it.
        cv_loss: Mean -log P of held-out votes, ln 2 = 0.693 for guessing; None likewise.
        scale: Margins times this give the best probabilities of held-out votes (see `best_scale`).
    """

    priors: tuple[tuple[Prior, float], ...]
    cv_accuracy: float | None = None
    cv_loss: float | None = None
    scale: float = 1.0


class VoteMatrix:
    """Votes as differences of features, and the fits to them.

    Args:
        columns: (N, P) chosen minus rejected: F scaled features, then the scores along K axes.
        width: F.
    """

    def __init__(self, columns: Array, width: int) -> None:
        self.columns, self.width = columns, width
        self._few = len(columns) <= columns.shape[1]  # then the dual is smaller than the primal
        if self._few:
            features, along = columns[:, :width], columns[:, width:]
            self._gram, self._axis_gram = features @ features.T, along @ along.T

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def has_axes(self) -> bool:
        """Whether there are scores along axes."""
        return self.columns.shape[1] > self.width

    def part(self, wanted: NDArray[np.bool_]) -> "VoteMatrix":
        """Some of the votes."""
        return VoteMatrix(self.columns[wanted], self.width)

    def fits(self, priors: Sequence[Prior]) -> list[Array]:
        """The weights (P,) of the columns under each prior, each exact to rounding.

        Each begins at the solution of the prior before it, which is near.
        """
        found: list[Array] = []
        start: Array | None = None
        for prior in priors:
            variance = self.variance(prior)
            if self._few:
                kernel = self._gram / prior.l2 + prior.axis_strength * self._axis_gram
                start = solve_dual(kernel, start)
                found.append(variance * (start @ self.columns))
            else:
                scale = np.sqrt(variance)
                weights = self._from_some(scale) if start is None else start
                # In the units of this prior.
                begin = np.divide(weights, scale, out=np.zeros_like(weights), where=scale > 0)
                start = scale * solve_primal(self.columns, scale, begin)
                found.append(start)
        return found

    def _from_some(self, scale: Array) -> Array:
        """Weights (P,) to begin at, from a part of the votes, which takes little time."""
        every = len(self) // (BEGIN_WITH * len(scale))
        if every < 2:
            return np.zeros(len(scale))
        wider = scale * np.sqrt(every)  # each vote stands for as many
        return np.asarray(wider * solve_primal(self.columns[::every], wider), dtype=np.float64)

    def variance(self, prior: Prior) -> Array:
        """Of each weight (P,) under a prior."""
        variance = np.full(self.columns.shape[1], prior.axis_strength)
        variance[: self.width] = 1 / prior.l2
        return variance


def blend_priors(
    votes: VoteMatrix, groups: Sequence[Hashable], priors: Sequence[Prior] | None = None
) -> Blend:
    """Weight priors by how well their fits predict held-out votes.

    A prior's share is proportional to its mass (see `prior_masses`) times exp(-its summed held-out
    loss) (pseudo-Bayesian model averaging; Yao et al. 2018, arXiv 1704.02030, section 3.4).
    Picking the best prior instead would be a matter of luck, since with 50 votes the losses of
    similar priors hardly differ. All votes of a group (a prompt) are on the same side of a split.
    Of more than `MOST_WEIGHED` votes, a sample is taken (`spread_groups`).

    Args:
        votes: N votes.
        groups: N labels.
        priors: the priors to weight; by default `PRIORS` or `PRIORS_WITHOUT_AXES`.
    """
    tried = tuple(priors or (PRIORS if votes.has_axes else PRIORS_WITHOUT_AXES))
    if len(set(groups)) < MIN_GROUPS:
        masses = prior_masses(tried).tolist()
        return Blend(tuple(zip(tried, masses, strict=True)))
    if len(votes) > MOST_WEIGHED:
        taken = spread_groups(groups, MOST_WEIGHED)
        votes = votes.part(taken)
        groups = [group for group, wanted in zip(groups, taken, strict=True) if wanted]
    folds = split_groups(groups)
    margins = np.empty((len(tried), len(votes)))
    for fold in np.unique(folds):
        held_out = votes.columns[folds == fold]
        for place, weights in enumerate(votes.part(folds != fold).fits(tried)):
            margins[place, folds == fold] = held_out @ weights
    losses = np.logaddexp(0, -margins).sum(axis=1)
    shares = prior_masses(tried) * np.exp(losses.min() - losses)
    shares[shares < MIN_SHARE * shares.sum()] = 0
    shares /= shares.sum()
    average = shares @ margins
    return Blend(
        tuple((p, float(share)) for p, share in zip(tried, shares, strict=True) if share),
        cv_accuracy=float(np.mean((average > 0) + 0.5 * (average == 0))),
        cv_loss=float(np.logaddexp(0, -average).mean()),
        scale=best_scale(average),
    )


def best_scale(margins: Array) -> float:
    """The factor by which the margins (N,) of held-out votes predict them best, as a sigmoid.

    In benchmarks/calibration.py votes are predicted better than the fit's own sigmoid says,
    probably because narrow priors make its margins too small. One factor mends it and changes no
    order (temperature scaling; Guo et al. 2017, arXiv 1706.04599, section 4.2). Its logarithm has a
    Gaussian prior of deviation `SCALE_DEVIATION`, which keeps it near 1 where there are few votes.
    """
    logs = np.linspace(-2.0, 2.0, 81)
    losses = [np.logaddexp(0, -np.exp(log) * margins).sum() for log in logs]
    return float(np.exp(logs[np.argmin(losses + (logs / SCALE_DEVIATION) ** 2 / 2)]))


def prior_masses(priors: Sequence[Prior]) -> Array:
    """What each prior counts before any vote (n,): half for those with axes, half for the others.

    A taste may or may not lie along the axes. If each prior counted the same, the more numerous
    ones with axes would win while there are too few votes to tell.
    """
    along = np.array([prior.axis_strength > 0 for prior in priors])
    same_kind = np.where(along, along.sum(), (~along).sum())
    return np.asarray(1 / same_kind / len(np.unique(along)), dtype=np.float64)


def split_groups(groups: Sequence[Hashable], folds: int = FOLDS) -> NDArray[np.int64]:
    """The fold of each vote, 0 to folds - 1; groups stay together, folds have similar sizes."""
    return _places(groups) % folds


def spread_groups(groups: Sequence[Hashable], most: int) -> NDArray[np.bool_]:
    """Which votes (N,) to take so that there are about `most` of N: every so manieth group.

    Where these would be fewer than `FEWEST_SPREAD` groups, since each has many votes, it is every
    so manieth vote instead.
    """
    places = _places(groups)
    step = len(groups) / most
    taken = _every(places, step)
    if len(np.unique(places[taken])) < FEWEST_SPREAD:
        return _every(np.arange(len(places)), step)
    return taken


def _every(numbers: NDArray[np.int64], step: float) -> NDArray[np.bool_]:
    """Which of the numbers 0, 1, 2, ... are the first ones in their multiple of a step."""
    return np.floor(numbers / step) != np.floor((numbers - 1) / step)


def _places(groups: Sequence[Hashable]) -> NDArray[np.int64]:
    """The number of each vote's group, in the order in which they come."""
    numbers = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups], dtype=np.int64)
