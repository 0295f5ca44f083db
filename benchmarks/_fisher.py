"""A measure of what a vote would teach the reward head, beside the one that the Rate page uses.

`ask_next.py` compares both.
"""

import numpy as np


def fisher_gain(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Half of the gain (M,) in the log determinant of the information matrix, in nats.

    With the earlier votes and the prior in it (the past-aware D-optimal design of Shen, Sun and Ton
    2025, arXiv 2502.04354), for one pair at a time: log det(A + p(1-p) x x^T) - log det A =
    log(1 + p(1-p) x^T A^-1 x), with the difference x of the features, A the precision of the
    posterior and p = sigmoid(mean); x^T A^-1 x is the variance of the margin.

    Args:
        mean, deviation: of the margin of each pair, (M,) each.
    """
    p = 0.5 * (1 + np.tanh(mean / 2))
    return 0.5 * np.log1p(p * (1 - p) * deviation**2)
