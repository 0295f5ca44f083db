"""The Bradley-Terry fit by Newton's method in the dual: milliseconds for a few hundred votes.

P(chosen beats rejected) = sigmoid(w . (chosen - rejected)) (Bradley and Terry 1952), with a
Gaussian prior on w. Shapes: N votes, H features. Only numpy is used.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NEWTON_STEPS = 100


def solve_dual(kernel: Array) -> Array:
    """The a (N,) that minimises sum_i log(1 + exp(-(K a)_i)) + a^T K a / 2.

    With differences D (N, H) of chosen and rejected features and K = D D^T / l2, the weights
    w = D^T a / l2 minimise sum_i log(1 + exp(-w . d_i)) + l2/2 |w|^2, in a time that hardly depends
    on H. The Newton steps follow Rasmussen and Williams 2006, algorithm 3.1, which never inverts K;
    a step that overshoots is halved.
    """
    dual, margins = np.zeros(len(kernel)), np.zeros(len(kernel))
    objective = _objective(dual, margins)
    for _ in range(NEWTON_STEPS):
        probability = 0.5 * (1 - np.tanh(margins / 2))  # that the vote goes the other way
        curvature = probability * (1 - probability)
        root = np.sqrt(curvature)
        target = curvature * margins + probability
        system = np.eye(len(kernel)) + root[:, None] * kernel * root
        newton = target - root * np.linalg.solve(system, root * (kernel @ target))
        step, change = 1.0, newton - dual
        while True:
            tried = dual + step * change
            reached = _objective(tried, kernel @ tried)
            if reached <= objective or step < 1e-6:
                break
            step /= 2
        dual, margins, gain = tried, kernel @ tried, objective - reached
        objective = reached
        if gain <= 1e-13 * (1 + abs(objective)):
            break
    return dual


def _objective(dual: Array, margins: Array) -> float:
    return float(np.logaddexp(0, -margins).sum() + dual @ margins / 2)
