"""Bradley-Terry by Newton's method in the dual: milliseconds for some hundred votes.

P(chosen beats rejected) = sigmoid(w . (chosen - rejected)) (Bradley and Terry 1952), a Gaussian
prior on w. Shapes: N votes, H features. Only numpy is used.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

NEWTON_STEPS = 100


def fit_bradley_terry(
    differences: ArrayLike, l2: float, sample_weights: ArrayLike | None = None
) -> Array:
    """The w that minimises sum_i s_i log(1 + exp(-w . d_i)) + l2/2 |w|^2.

    Args:
        differences: (N, H), the chosen answer's features minus the rejected one's.
        l2: Above 0, so that there is one solution even where the votes can be separated.
        sample_weights: (N,) weights s_i, not negative; all 1 by default.

    Returns:
        (H,) weights. Newton's method runs in the N x N dual, w = D^T a, so that the time hardly
        depends on H.

    Raises:
        ValueError: another shape, l2 <= 0 or a negative weight.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 2:
        raise ValueError(f"differences have the shape (votes, features), not {d.shape}")
    if not l2 > 0:
        raise ValueError(f"l2 is above 0, not {l2}")
    s = np.ones(len(d)) if sample_weights is None else np.asarray(sample_weights, dtype=np.float64)
    if s.shape != (len(d),) or (s < 0).any():
        raise ValueError("sample_weights has one number a vote, none of them negative")
    return d.T @ solve_dual(d @ d.T / l2, s) / l2


def solve_dual(kernel: Array, sample_weights: Array) -> Array:
    """The a (N,) that minimises sum_i s_i log(1 + exp(-(K a)_i)) + a^T K a / 2.

    Newton's steps in the form of Rasmussen and Williams 2006, algorithm 3.1, which never inverts K;
    a step that overshoots is halved.
    """
    dual, margins = np.zeros(len(kernel)), np.zeros(len(kernel))
    objective = _objective(dual, margins, sample_weights)
    for _ in range(NEWTON_STEPS):
        probability = 0.5 * (1 - np.tanh(margins / 2))  # of the vote going the other way
        curvature = sample_weights * probability * (1 - probability)
        root = np.sqrt(curvature)
        target = curvature * margins + sample_weights * probability
        system = np.eye(len(kernel)) + root[:, None] * kernel * root
        newton = target - root * np.linalg.solve(system, root * (kernel @ target))
        step, change = 1.0, newton - dual
        while True:
            tried = dual + step * change
            reached = _objective(tried, kernel @ tried, sample_weights)
            if reached <= objective or step < 1e-6:
                break
            step /= 2
        dual, margins, gain = tried, kernel @ tried, objective - reached
        objective = reached
        if gain <= 1e-13 * (1 + abs(objective)):
            break
    return dual


def _objective(dual: Array, margins: Array, sample_weights: Array) -> float:
    return float(sample_weights @ np.logaddexp(0, -margins) + dual @ margins / 2)
