"""Scores of a rollout: from reward functions, and brought to a common scale."""

from typing import Any

import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.rollout import Rollout
from lorarlhf.rewards.functions import RewardFunction, call_reward_function, combine


def function_scores(
    functions: list[RewardFunction], weights: list[float], rollout: Rollout, state: Any
) -> list[float]:
    """Call every reward function with TRL's arguments and add the weighted scores -> (B,) floats.

    Besides the dataset's columns, functions get `completion_ids`, `ended` (the answer ended by
    itself) and `trainer_state`.
    """
    rows = rollout.prompts
    prompts = [row["prompt"] for row in rows]
    completions = [
        c.text if isinstance(p, str) else [{"role": "assistant", "content": c.text}]
        for p, c in zip(prompts, rollout.completions, strict=True)
    ]
    columns: dict[str, Any] = {key: [row[key] for row in rows] for key in rows[0]}
    for name in ("prompt", "completion", "completion_ids"):
        columns.pop(name, None)
    columns["completion_ids"] = [c.ids for c in rollout.completions]
    columns["ended"] = [c.ended for c in rollout.completions]
    columns["trainer_state"] = state
    scores = [call_reward_function(f, prompts, completions, **columns) for f in functions]
    return combine(scores, weights)


class ScoreScale:
    """Brings scores to mean 0 and deviation 1 on the reference's answers (arXiv 1909.08593).

    The reward role brings both numbers with it. For functions they are learned from the first
    rollouts, in which the policy still is the reference, and fixed from then on.
    """

    def __init__(self, enabled: bool, clip: float | None, mean: float = 0.0, std: float = 1.0):
        self.enabled, self.clip = enabled, clip
        self.count, self.mean, self.squares = 0, mean, 0.0
        self.fixed_std: float | None = std

    @classmethod
    def of(cls, backbone: Backbone, args: PPOConfig, from_role: bool) -> "ScoreScale":
        """From the reward role's head where that gives the score, to be learned otherwise."""
        if from_role:
            head = backbone.heads["reward"]
            mean, std = head.score_mean.item(), head.score_std.item()
            return cls(args.normalize_scores, args.score_clip, mean, std)
        scale = cls(args.normalize_scores, args.score_clip)
        scale.fixed_std = None
        return scale

    @property
    def std(self) -> float:
        """The deviation in use; 1 while fewer than two scores, or only equal ones, are known."""
        if self.fixed_std is not None:
            return self.fixed_std
        variance = self.squares / self.count if self.count > 1 else 0.0
        return variance**0.5 if variance > 1e-12 else 1.0

    def normalise(self, scores: torch.Tensor, learn: bool) -> torch.Tensor:
        """Raw scores (B,) -> normalised, and clipped where that is asked for."""
        if not self.enabled:
            return scores
        if learn and self.fixed_std is None:
            self._learn(scores.tolist())
        scaled = (scores - self.mean) / self.std
        return scaled.clamp(-self.clip, self.clip) if self.clip else scaled

    def _learn(self, scores: list[float]) -> None:
        for score in scores:  # Welford's running mean and sum of squares
            self.count += 1
            delta = score - self.mean
            self.mean += delta / self.count
            self.squares += delta * (score - self.mean)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "count": self.count,
            "mean": self.mean,
            "squares": self.squares,
            "fixed_std": self.fixed_std,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Put a checkpoint's numbers back."""
        for name, value in state.items():
            setattr(self, name, value)
