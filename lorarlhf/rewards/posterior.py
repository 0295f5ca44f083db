"""How sure the reward head is: the Laplace approximation of its fit, in closed form.

Around the weights that the fit found, the posterior is a Gaussian whose precision is the curvature
of the loss plus the prior's (MacKay 1992, "The evidence framework applied to classification
networks", section 3). A score is linear in the weights, so it is a Gaussian too. The fit averages
over several priors, and the posterior is the mixture of theirs: its variance counts what each of
them is unsure of, and how far they differ.

Shapes: N votes, F features, K axes, P = F + K, M answers. Only numpy is used.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lorarlhf.rewards.bradley_terry import curved_gram, slopes
from lorarlhf.rewards.fit import VoteSpace
from lorarlhf.rewards.priors import Blend, Prior, VoteMatrix

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Part:
    """The posterior under one prior.

    Attributes:
        share: of this prior in the blend.
        weights: (P,) where it has its peak.
        deviation: (P,) of each weight under the prior.
        root: (N,) the square roots of the votes' curvature; None for the system of the weights.
        inverse: that of the lower Cholesky factor: of the votes' system (N, N), I + r D V D^T r, or
            of the weights' (P, P), I + s D^T C D s.
    """

    share: float
    weights: Array
    deviation: Array
    root: Array | None
    inverse: Array

    @classmethod
    def of(cls, votes: VoteMatrix, prior: Prior, share: float, weights: Array) -> "_Part":
        deviation = np.sqrt(votes.variance(prior))
        _, curvature = slopes(votes.columns @ weights)
        root = np.sqrt(curvature) if len(votes) <= len(deviation) else None  # the smaller system
        if root is not None:
            scaled = root[:, None] * votes.columns * deviation
            system = scaled @ scaled.T
        else:
            system = deviation[:, None] * curved_gram(votes.columns, curvature) * deviation
        system.flat[:: len(system) + 1] += 1
        inverse = np.asarray(np.linalg.inv(np.linalg.cholesky(system)), dtype=np.float64)
        return cls(share, weights, deviation, root, inverse)

    def moments(self, votes: VoteMatrix, columns: Array) -> tuple[Array, Array]:
        """Mean and variance (M,) of what answers or differences score, columns (M, P)."""
        scaled = columns * self.deviation
        if self.root is None:
            variance = ((self.inverse @ scaled.T) ** 2).sum(axis=0)
        else:
            along = self.root[:, None] * (votes.columns @ (scaled * self.deviation).T)
            variance = (scaled**2).sum(axis=1) - ((self.inverse @ along) ** 2).sum(axis=0)
        return columns @ self.weights, np.maximum(variance, 0.0)

    def covariance(self, votes: VoteMatrix, directions: Array) -> Array:
        """Of the weights of the scaled features alone, (F, F); those along axes are folded in."""
        width = directions.shape[1]

        def folded(rows: Array) -> Array:
            """Rows (..., P) over the columns as rows (..., F) over the scaled features."""
            return rows[:, :width] + rows[:, width:] @ directions

        if self.root is None:
            half = folded(self.inverse * self.deviation)
            return half.T @ half
        variance = self.deviation**2
        along = directions * np.sqrt(variance[width:, None])
        learned = self.inverse @ folded(self.root[:, None] * votes.columns * variance)
        return np.diag(variance[:width]) + along.T @ along - learned.T @ learned


class Posterior:
    """What the votes say about scores, and how surely.

    Args:
        space: in which the fit saw the votes.
        votes: all of them.
        blend: the priors with their shares.

    Attributes:
        scale: that of the blend, for probabilities; scores and margins are without it.
    """

    def __init__(self, space: VoteSpace, votes: VoteMatrix, blend: Blend) -> None:
        self._space, self._votes, self.scale = space, votes, blend.scale
        priors = [prior for prior, _ in blend.priors]
        self._parts = [
            _Part.of(votes, prior, share, weights)
            for (prior, share), weights in zip(blend.priors, votes.fits(priors), strict=True)
        ]

    def scores(self, features: ArrayLike) -> tuple[Array, Array]:
        """Scores of answers and their standard deviations, (M, F) -> two of (M,).

        A deviation is that of the answer's distance from the average answer, whose score is 0.
        """
        return self._moments(self._space.columns(features))

    def margins(self, first: ArrayLike, second: ArrayLike) -> tuple[Array, Array]:
        """By how much the first answers score higher, and the deviations; (M, F) -> two of (M,)."""
        return self._moments(self._space.columns(first) - self._space.columns(second))

    def win_probability(self, first: ArrayLike, second: ArrayLike) -> Array:
        """The chance (M,) that a vote prefers the first answer, with the doubt about the weights.

        sigmoid(m / sqrt(1 + pi s^2 / 8)) approximates the mean of the sigmoid over N(m, s^2)
        (MacKay 1992, equation 10): the less the votes say, the nearer to one half. Both m and s are
        multiplied by `scale` first, by which held-out votes are predicted best.
        """
        mean, deviation = self.margins(first, second)
        return moderated(self.scale * mean, self.scale * deviation)

    def folded(self) -> tuple[Array, Array]:
        """Deviations without the votes: an offset (F,) and a factor (F, F).

        The deviation of an answer with features x is the length of factor @ (x - offset), so that
        one matrix product gives those of many answers.
        """
        space = self._space
        width = len(space.scale)
        heads = [p.weights[:width] + p.weights[width:] @ space.directions for p in self._parts]
        shares = np.array([part.share for part in self._parts])
        apart = np.stack(heads) - shares @ np.stack(heads)
        covariance = (apart.T * shares) @ apart
        for part in self._parts:
            covariance += part.share * part.covariance(self._votes, space.directions)
        return space.mean, np.linalg.cholesky(covariance).T * space.scale

    def _moments(self, columns: Array) -> tuple[Array, Array]:
        mean, square = np.zeros(len(columns)), np.zeros(len(columns))
        for part in self._parts:
            middle, variance = part.moments(self._votes, columns)
            mean += part.share * middle
            square += part.share * (variance + middle**2)
        return mean, np.sqrt(np.maximum(square - mean**2, 0.0))


def moderated(mean: Array, deviation: Array) -> Array:
    """The mean of the sigmoid over N(mean, deviation^2), approximately; see `win_probability`."""
    return 0.5 * (1 + np.tanh(mean / np.sqrt(1 + np.pi * deviation**2 / 8) / 2))
