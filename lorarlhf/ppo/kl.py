"""The price of KL, fixed or adapted so that KL stays near a target; and the most KL to spend."""

from dataclasses import dataclass

MAX_ERROR = 0.2
"""Largest relative error that one update reacts to (arXiv 1909.08593, section 2.2)."""


@dataclass
class KLControl:
    """The KL coefficient as it stands.

    Attributes:
        coef: price of one nat a token, now.
        target: nats an answer to steer towards; None leaves the coefficient as it is.
        horizon: episodes over which an error of 20% or more changes the coefficient by a fifth.
    """

    coef: float
    target: float | None = None
    horizon: int = 32

    def update(self, kl: float, episodes: int) -> None:
        """React to a rollout: coef *= 1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon.

        (arXiv 1909.08593, section 2.2, where episodes / horizon is 0.1.)

        Args:
            kl: mean KL of the rollout's answers to the reference, nats an answer.
            episodes: answers in the rollout.
        """
        if self.target is not None:
            error = min(max(kl / self.target - 1, -MAX_ERROR), MAX_ERROR)
            self.coef *= 1 + error * episodes / self.horizon


@dataclass
class KLBudget:
    """The most KL that a run may spend, and the best held-out score that it bought.

    (Reward against KL as the thing to look at: arXiv 2204.05862, section 4.3; arXiv 2210.10760.)

    Attributes:
        limit: nats an answer, measured on held-out prompts.
        best_step, best_score: of the best policy inside the budget; None before there is one.
        spent: whether the policy was seen outside the budget, which ends the training.
    """

    limit: float
    best_step: int | None = None
    best_score: float | None = None
    spent: bool = False

    def take(self, step: int, score: float, kl: float) -> bool:
        """Account for a measurement; returns whether it is the best inside the budget so far."""
        inside = kl <= self.limit  # and a KL that is no number is outside
        self.spent = self.spent or not inside
        if not inside or (self.best_score is not None and score <= self.best_score):
            return False
        self.best_step, self.best_score = step, score
        return True
