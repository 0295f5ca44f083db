"""Accuracy on held-out pairs by number of votes, which shows whether more votes would help."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lorarlhf.rewards.vote_fit import VoteFit

COUNTS = (10, 25, 50, 100, 150, 200, 400, 800, 2000, 5000, 10_000, 20_000, 50_000)


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
        gap = fit.score(chosen) - fit.score(rejected)
        yield count, float(((gap > 0) + 0.5 * (gap == 0)).mean())
