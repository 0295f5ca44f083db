"""The price of KL: fixed, or adapted so that the policy's KL stays near a target."""

from dataclasses import dataclass

MAX_ERROR = 0.2
"""Largest relative error that one update reacts to (arXiv 1909.08593, section 2.2)."""


@dataclass
class KLControl:
    """The KL coefficient as it stands.

    Attributes:
        coef: price of one nat a token, now.
        target: nats a sequence to steer towards; None leaves the coefficient as it is.
        horizon: episodes in which an error of 100% would double or cancel the coefficient.
    """

    coef: float
    target: float | None = None
    horizon: int = 160

    def update(self, kl: float, episodes: int) -> None:
        """React to a rollout: coef *= 1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon.

        (arXiv 1909.08593, section 2.2, where episodes / horizon is 0.1.)

        Args:
            kl: mean KL of the rollout's answers to the reference, nats a sequence.
            episodes: answers in the rollout.
        """
        if self.target is not None:
            error = min(max(kl / self.target - 1, -MAX_ERROR), MAX_ERROR)
            self.coef *= 1 + error * episodes / self.horizon
