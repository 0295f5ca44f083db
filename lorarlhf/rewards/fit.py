"""The reward head from few votes: a strongly regularised Bradley-Terry fit on frozen features.

Few votes can't determine hundreds of weights, so the Gaussian prior matters: it is wide along the
style axes, by which people often vote (`lorarlhf.rewards.axes`), and narrow elsewhere. The model is
linear and folds into one weight vector and a bias.

Shapes: N votes, F features, K axes, M unlabelled answers. Only numpy is used.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lorarlhf.rewards.bradley_terry import ROWS
from lorarlhf.rewards.priors import Blend, VoteMatrix, blend_priors

Array = NDArray[np.float64]
Matrix = NDArray[np.floating]
"""Of float32 or float64."""


@dataclass(frozen=True)
class HeadFit:
    """A linear head: score = features @ weight + bias, with mean 0 over the background.

    Attributes:
        weight: (F,) float32.
        bias: A number.
        blend: The priors whose fits are averaged.
    """

    weight: NDArray[np.float32]
    bias: float
    blend: Blend

    def score(self, features: ArrayLike) -> Array:
        """Features (..., F) -> scores (...)."""
        return np.asarray(features, dtype=np.float64) @ self.weight.astype(np.float64) + self.bias


@dataclass(frozen=True)
class VoteSpace:
    """The space in which the fit sees answers: scaled features, then scores along the axes.

    Attributes:
        mean: (F,) of the background.
        scale: (F,) factors by which two answers of the background have a distance of one.
        directions: (K, F) for scaled features, with a deviation of one over the background.
    """

    mean: Array
    scale: Array
    directions: Array

    def columns(self, features: ArrayLike) -> Array:
        """Answers (M, F) -> (M, P), as far as they are from the average answer."""
        scaled = (np.asarray(features, dtype=np.float64) - self.mean) * self.scale
        return np.concatenate([scaled, scaled @ self.directions.T], axis=1)

    def votes(self, plus: Matrix, minus: Matrix) -> VoteMatrix:
        """Differences of the answers of each vote, (N, F) each."""
        width = len(self.scale)
        columns = np.empty((len(plus), width + len(self.directions)))
        for first in range(0, len(plus), ROWS):
            rows = slice(first, first + ROWS)
            scaled = columns[rows, :width]
            np.multiply(plus[rows] - minus[rows], self.scale, out=scaled)
            columns[rows, width:] = scaled @ self.directions.T
        return VoteMatrix(columns, width)

    def head(self, weights: Array, blend: Blend) -> HeadFit:
        """The head for plain features that scores as weights (P,) of the columns do."""
        width = len(self.scale)
        weight = weights[:width] + weights[width:] @ self.directions
        folded = (weight * self.scale).astype(np.float32)
        return HeadFit(folded, float(-(self.mean @ folded.astype(np.float64))), blend)


def fit_head(
    chosen: ArrayLike,
    rejected: ArrayLike,
    groups: Sequence[Hashable],
    *,
    background: Sequence[ArrayLike],
    axes: ArrayLike | None = None,
    blend: Blend | None = None,
) -> HeadFit:
    """Fit a head to votes.

    Args:
        chosen, rejected: (N, F) features of the answers, N >= 1.
        groups: N labels, one for each prompt; see `blend_priors`.
        background: parts (M, F) of the features of unlabelled answers, one answer or more (those
            voted on may be used). They set the scale of each feature and the zero of the score.
        axes: (K, F) directions, in the units of the features, along which the prior is wide.
        blend: The blend to use; None to weight the priors by cross-validation.

    Raises:
        ValueError: shapes that do not match, no votes, or numbers that are not finite.
    """
    space, votes = in_vote_space(chosen, rejected, background=background, axes=axes)
    if len(votes) != len(groups):
        raise ValueError("chosen, rejected and groups have one row for each vote, at least one")
    if blend is None:
        blend = blend_priors(votes, groups)
    fits = votes.fits([prior for prior, _ in blend.priors])
    shares = np.array([share for _, share in blend.priors])
    return space.head(shares @ np.stack(fits), blend)


def in_vote_space(
    chosen: ArrayLike,
    rejected: ArrayLike,
    *,
    background: Sequence[ArrayLike],
    axes: ArrayLike | None = None,
) -> tuple[VoteSpace, VoteMatrix]:
    """The space of a fit, and the votes in it; arguments and errors as in `fit_head`."""
    plus, minus, *parts = (_matrix(x) for x in (chosen, rejected, *background))
    if plus.shape != minus.shape or not len(plus):
        raise ValueError("chosen, rejected and groups have one row for each vote, at least one")
    if any(part.shape[1] != plus.shape[1] for part in parts) or not sum(map(len, parts)):
        raise ValueError("the background has one or more rows of the same width as the votes")
    mean, scale = _mean_and_scale(parts)
    space = VoteSpace(mean, scale, _axis_directions(axes, parts, scale))
    return space, space.votes(plus, minus)


def _matrix(values: ArrayLike) -> Matrix:
    matrix = np.asarray(values)
    if matrix.dtype not in (np.float32, np.float64):
        matrix = matrix.astype(np.float64)
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise ValueError(f"features are finite and have two dimensions, not {matrix.shape}")
    return matrix


def _blocks(parts: Sequence[Matrix]) -> Iterator[Matrix]:
    """All rows in blocks, so that no caller copies them all at once."""
    for part in parts:
        for first in range(0, len(part), ROWS):
            yield part[first : first + ROWS]


def _mean_and_scale(parts: Sequence[Matrix]) -> tuple[Array, Array]:
    """The mean (F,), and factors (F,) by which two answers have a distance of one.

    The factors are inverse deviations, so that all features weigh alike.
    """
    count = sum(map(len, parts))
    mean = sum(block.sum(axis=0, dtype=np.float64) for block in _blocks(parts)) / count
    squares = np.zeros(len(mean))
    for block in _blocks(parts):
        apart = block - mean  # float64, as the mean is
        squares += np.einsum("ij,ij->j", apart, apart)
    deviation = np.sqrt(squares / count)
    # A feature that never varies has no information; neither has any feature of a single answer.
    largest = max(float(max(block.max(), -block.min())) for block in _blocks(parts))
    alive = deviation > 1e-6 * max(largest, 1e-30)
    if not alive.any():
        size = float(np.sqrt((mean**2).mean())) or 1.0
        return mean, np.full(len(mean), 1 / (size * np.sqrt(2 * len(mean))))
    inverse = np.where(alive, 1 / np.where(alive, deviation, 1.0), 0.0)
    return mean, inverse / np.sqrt(2 * alive.sum())


def _axis_directions(axes: ArrayLike | None, parts: Sequence[Matrix], scale: Array) -> Array:
    """(K, F) directions for scaled features, along which the background has a deviation of one."""
    if axes is None:
        return np.zeros((0, len(scale)))
    given = _matrix(axes) * scale
    if given.shape[1] != len(scale):
        raise ValueError("the axes have the same width as the features")
    wanted = (given * scale).T  # of the features themselves; `std` takes the mean away
    along = np.concatenate([block.astype(np.float64) @ wanted for block in _blocks(parts)])
    spread, length = along.std(axis=0), np.sqrt((given**2).sum(axis=1))
    # If the background has no spread (a single answer, or equal ones), the length is used.
    spread = np.where(spread > 1e-9 * length, spread, length)
    return given / np.where(spread > 0, spread, 1.0)[:, None]
