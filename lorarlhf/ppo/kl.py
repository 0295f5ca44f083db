"""The price of KL, fixed or steered towards a target KL; and a budget of KL for a run."""

from dataclasses import dataclass

MAX_ERROR = 0.2
"""Relative errors are clipped to this in one update (arXiv 1909.08593, section 2.2)."""


@dataclass
class KLControl:
    """The KL coefficient and how it adapts.

    Attributes:
        coef: current price of one nat, per token.
        target: KL to steer towards, in nats per answer; None leaves the coefficient constant.
        horizon: answers over which an error of 20% or more changes the coefficient by a fifth.
    """

    coef: float
    target: float | None = None
    horizon: int = 32

    def update(self, kl: float, episodes: int) -> None:
        """Adapt to a rollout: coef *= 1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon.

        (arXiv 1909.08593, section 2.2, where episodes / horizon is 0.1.)

        Args:
            kl: mean KL to the reference, in nats per answer.
            episodes: answers in the rollout.
        """
        if self.target is not None:
            error = min(max(kl / self.target - 1, -MAX_ERROR), MAX_ERROR)
            self.coef *= 1 + error * episodes / self.horizon


@dataclass
class KLBudget:
    """The KL that a run may spend, and the best held-out figure inside that budget.

    (On reward as a function of KL: arXiv 2204.05862, section 4.3; arXiv 2210.10760.)

    Attributes:
        limit: in nats per answer, measured on held-out prompts.
        best_step, best_score: of the best policy inside the budget; None before there is one.
        spent: whether a measurement was outside the budget, which ends the training.
        by: what is best, `score` or `judge`.
    """

    limit: float
    best_step: int | None = None
    best_score: float | None = None
    spent: bool = False
    by: str = "score"

    @classmethod
    def of(cls, limit: float | None, by: str) -> "KLBudget | None":
        """The budget of the settings; None where they have no limit."""
        return None if limit is None else cls(limit, by=by)

    def record(self, step: int, score: float, kl: float) -> bool:
        """Record a measurement; returns whether it is the best inside the budget so far."""
        inside = kl <= self.limit  # false also where the KL is NaN
        self.spent = self.spent or not inside
        if not inside or (self.best_score is not None and score <= self.best_score):
            return False
        self.best_step, self.best_score = step, score
        return True
