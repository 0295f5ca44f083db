"""Votes on made-up features, by a known linear rule."""

import numpy as np

from lorarlhf.rewards.vote_fit import VoteFit


def planted(
    count: int, width: int, wrong: float = 0.0, seed: int = 0, a_prompt: int = 2
) -> VoteFit:
    """Votes for the answer that lies further along one direction, the same for all seeds.

    Args:
        wrong: the share of votes for the other answer.
        a_prompt: votes on one prompt.
    """
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, 2, width)).astype(np.float32)
    better = rows @ truth(width)
    order = np.argsort(better, axis=1) ^ (rng.random((count, 1)) < wrong)
    chosen, rejected = (rows[np.arange(count), order[:, side]] for side in (1, 0))
    votes = VoteFit()
    votes.add_all(chosen, rejected, [n // a_prompt for n in range(count)])
    return votes


def truth(width: int) -> np.ndarray:
    """The direction of the rule (width,)."""
    return np.random.default_rng(12345).normal(size=width)


def planted_rows(
    seed: int, votes: int, truth: np.ndarray, noise: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Chosen and rejected features (N, H); a share of the votes is flipped."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, votes, len(truth)))
    first = ((a - b) @ truth > 0) ^ (rng.random(votes) < noise)
    return np.where(first[:, None], a, b), np.where(first[:, None], b, a)
