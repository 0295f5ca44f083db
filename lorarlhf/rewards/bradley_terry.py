"""The Bradley-Terry fit by Newton's method: in the dual for few votes, in the primal for many.

P(chosen beats rejected) = sigmoid(w . (chosen - rejected)) (Bradley and Terry 1952), with a
Gaussian prior on w. Shapes: N votes, H features. Only numpy is used.

Both ways find the same w. A step of the dual takes a time of N^3 and the memory of N^2; a step of
the primal takes a time of N H^2 + H^3 and the memory of H^2.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NEWTON_STEPS = 100
GAIN = 1e-13
"""A step that lowers the objective by less than this share of it is the last one."""
ROUNDING = 1e-14
"""By how much of it the objective may seem to rise."""
SMALL = 1e-10
"""A step with the curvature of an earlier point is the last one only if it is that small, too."""
KEEPS = 0.3
"""A step with the curvature of an earlier point is good enough if it gains less than this share of
what the step before it gained: the next one takes it, too. Else the curvature is computed anew."""
ROWS = 2048
"""Votes whose curvature is added at once, so that the primal copies no more of them; of more votes
it is added up in float32 (`curved_gram`)."""


def solve_dual(kernel: Array, start: Array | None = None) -> Array:
    """The a (N,) that minimises sum_i log(1 + exp(-(K a)_i)) + a^T K a / 2.

    With differences D (N, H) of chosen and rejected features and K = D D^T / l2, the weights
    w = D^T a / l2 minimise sum_i log(1 + exp(-w . d_i)) + l2/2 |w|^2, in a time that hardly depends
    on H. The Newton steps follow Rasmussen and Williams 2006, algorithm 3.1, which never inverts K;
    a step that overshoots is halved.

    Args:
        kernel: K (N, N).
        start: an a (N,) to begin at, such as the solution for a similar kernel; 0 by default.
    """

    def change(dual: Array, margins: Array, anew: bool) -> Array:
        probability, curvature = slopes(margins)
        root = np.sqrt(curvature)
        target = curvature * margins + probability
        system = root[:, None] * kernel * root
        system.flat[:: len(kernel) + 1] += 1
        return target - root * np.linalg.solve(system, root * (kernel @ target)) - dual

    begin = np.zeros(len(kernel)) if start is None else start
    return _minimise(
        begin, lambda dual: kernel @ dual, change, lambda dual, margins: dual @ margins
    )


def solve_primal(differences: Array, scale: Array, start: Array | None = None) -> Array:
    """The u (H,) that minimises sum_i log(1 + exp(-d_i . (s * u))) + |u|^2 / 2.

    The weights w = s * u have a Gaussian prior with the variances s^2: this is `solve_dual` with
    the kernel D diag(s^2) D^T. A step that overshoots is halved. Near the minimum the curvature
    hardly changes, and with many votes it is what costs time, so some steps take an earlier one's:
    that changes the way to the minimum, but not the minimum.

    Args:
        differences: D (N, H), of chosen and rejected features.
        scale: s (H,), the deviation of each weight under the prior; 0 or more.
        start: a u (H,) to begin at; 0 by default.
    """

    inverse: Array = np.empty((0, 0))

    def change(point: Array, margins: Array, anew: bool) -> Array:
        nonlocal inverse
        probability, curvature = slopes(margins)
        if anew:
            system = scale[:, None] * curved_gram(differences, curvature) * scale
            system.flat[:: len(scale) + 1] += 1
            inverse = np.asarray(np.linalg.inv(system), dtype=np.float64)
        downhill: Array = scale * (probability @ differences) - point
        return np.asarray(inverse @ downhill, dtype=np.float64)

    begin = np.zeros(len(scale)) if start is None else start
    return _minimise(
        begin,
        lambda point: differences @ (scale * point),
        change,
        lambda point, _: point @ point,
        lasting=True,
    )


def _minimise(
    point: Array,
    margins_of: Callable[[Array], Array],
    change: Callable[[Array, Array, bool], Array],
    penalty: Callable[[Array, Array], Any],
    lasting: bool = False,
) -> Array:
    """Newton's method from a point; a step that overshoots is halved.

    Args:
        margins_of: the margins (N,) at a point, linear in it.
        change: Newton's step from a point and its margins, with the curvature there; or, if the
            last argument is False, with an earlier one.
        penalty: twice what the prior adds to the loss, from a point and its margins.
        lasting: whether steps may take an earlier curvature.
    """

    def objective_at(point: Array, margins: Array) -> float:
        return float(np.logaddexp(0, -margins).sum() + penalty(point, margins) / 2)

    margins = margins_of(point)
    objective = objective_at(point, margins)
    anew, before = True, np.inf
    for _ in range(NEWTON_STEPS):
        whole = change(point, margins, anew)
        along, step = margins_of(whole), 1.0
        while True:
            tried, reached_margins = point + step * whole, margins + step * along
            reached = objective_at(tried, reached_margins)
            if reached <= objective + ROUNDING * abs(objective) or step < 1e-6:
                break
            step /= 2
        gain, point, margins, objective = objective - reached, tried, reached_margins, reached
        little = gain <= GAIN * (1 + abs(objective))
        small = np.abs(whole).max(initial=0.0) <= SMALL * (1 + np.abs(point).max(initial=0.0))
        if little and (anew or small):
            break
        good = anew or little or gain <= KEEPS * before
        anew, before = not (lasting and good), gain
    return point


def slopes(margins: Array) -> tuple[Array, Array]:
    """The probability (N,) that each vote goes the other way, and the loss's curvature (N,)."""
    probability = 0.5 * (1 - np.tanh(margins / 2))
    return probability, probability * (1 - probability)


def curved_gram(differences: Array, curvature: Array) -> Array:
    """D^T diag(c) D (H, H).

    Of more than `ROWS` votes the products of each `ROWS` are computed in float32, which takes half
    the time, and summed in float64: the error is below 1e-6 of the largest eigenvalue.
    """
    kind = np.float64 if len(differences) <= ROWS else np.float32
    gram = np.zeros((differences.shape[1], differences.shape[1]))
    for first in range(0, len(differences), ROWS):
        rows = differences[first : first + ROWS]
        roots = np.sqrt(curvature[first : first + ROWS])[:, None]
        rooted = np.multiply(rows, roots, out=np.empty(rows.shape, kind))
        gram += rooted.T @ rooted  # numpy computes one half of a product with itself
    return gram
