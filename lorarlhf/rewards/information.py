"""How much a vote on a pair of answers would teach the reward head, before it is cast.

The posterior of the head (`lorarlhf.rewards.posterior`) says by how much one answer scores higher,
z ~ N(m, s^2), and the vote prefers it with probability sigmoid(z). What the vote would teach about
the weights is the expected loss of entropy (BALD; Houlsby et al. 2011, arXiv 1112.5745, equation
2), here by integration over z, so that nothing but the posterior is approximated. It is in nats,
and 0 for a pair whose difference is known exactly.

Shapes: M pairs or items, K answers of an item, F features. Only numpy is used.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lorarlhf.rewards.posterior import Posterior

Array = NDArray[np.float64]

# In standard deviations. The sum over such a grid is exact to 1e-8 as long as its steps are small
# beside the sigmoid: up to deviations of 10, which no posterior with a prior has.
_STEPS = np.linspace(-6.0, 6.0, 121)
_DENSITY = np.exp(-(_STEPS**2) / 2)
_DENSITY /= _DENSITY.sum()


def mutual_information(mean: ArrayLike, deviation: ArrayLike) -> Array:
    """The information (M,) of a vote about the weights, 0 to ln 2 nats.

    H(E p) - E H(p) with p = sigmoid(z), z ~ N(mean, deviation^2): how unsure the vote is, less how
    unsure it would be if the weights were known.

    Args:
        mean, deviation: of the margin of each pair, (M,) each.
    """
    middle, spread = np.asarray(mean, np.float64), np.asarray(deviation, np.float64)
    z = middle[..., None] + spread[..., None] * _STEPS
    p = 0.5 * (1 + np.tanh(z / 2))
    # The entropy of sigmoid(z) without differences of large numbers: log(1 + exp(z)) - p z.
    unsure_in_part: Array = (np.logaddexp(0, z) - p * z) @ _DENSITY
    whole: Array = p @ _DENSITY
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nan_to_num(whole * np.log(whole)) - np.nan_to_num(
            (1 - whole) * np.log1p(-whole)
        )
    return np.maximum(entropy - unsure_in_part, 0.0)


def expected_information(posterior: Posterior, items: Sequence[ArrayLike]) -> Array:
    """The mutual information (M,) of a vote on each item, in nats; of several answers, that of the
    pair that would teach the most.

    Args:
        items: the features of the answers of each, (K, F) with K >= 2.
    """
    if not items:
        return np.zeros(0)
    rows = [np.asarray(item) for item in items]
    pairs = [list(itertools.combinations(range(len(item)), 2)) for item in rows]
    first, second = (
        np.stack([item[pair[side]] for item, own in zip(rows, pairs, strict=True) for pair in own])
        for side in (0, 1)
    )
    found = mutual_information(*posterior.margins(first, second))
    starts = np.cumsum([0, *(len(own) for own in pairs[:-1])])
    return np.maximum.reduceat(found, starts)
