"""Scores of a rollout, from the reward role, from functions or both, on a common scale."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.rollout import Answers, reward_scores
from lorarlhf.rewards.deviation import ScoreDeviation
from lorarlhf.rewards.functions import RewardFunction, call_reward_function, combine, function_name

ROLE = "reward"
"""The name of the backbone's reward role in a list of reward functions."""


@dataclass(frozen=True)
class Scored:
    """The scores of some answers.

    Attributes:
        sums: the weighted sums of the sources' scores.
        by_source: the scores of each source.
        deviations: of the reward role's raw scores; empty without pessimism.
    """

    sums: list[float]
    by_source: list[list[float | None]]
    deviations: list[float]


class Rewards:
    """Scores answers with the reward role, with functions of TRL's signature, or with several.

    Args:
        sources: functions, or `"reward"` for the backbone's reward role.
        weights: one number per source; all 1 by default.
        pessimism: how many deviations are subtracted from a raw score of the reward role.
        deviation: gives these deviations.

    Raises:
        ValueError: no source, a wrong number of weights, no reward role on the backbone, or
            pessimism without a reward role or its deviation.
    """

    def __init__(
        self,
        backbone: Backbone,
        sources: Sequence[RewardFunction | str],
        weights: Sequence[float] | None = None,
        pessimism: float = 0.0,
        deviation: ScoreDeviation | None = None,
    ) -> None:
        self.backbone, self.sources = backbone, list(sources)
        self.pessimism, self.deviation = pessimism, deviation if pessimism else None
        self.weights = list(weights or [1.0] * len(self.sources))
        for source in self.sources:
            if isinstance(source, str) and source != ROLE:
                raise ValueError(
                    f"a reward is a function or {ROLE!r}, not {source!r}; a model becomes a "
                    "function by lorarlhf.rewards.classifier.load_classifier"
                )
        if not self.sources or (ROLE in self.sources and not backbone.has(ROLE)):
            raise ValueError("PPO needs a reward: load a reward role, or give reward_funcs")
        if len(self.weights) != len(self.sources):
            raise ValueError(
                f"{len(self.sources)} reward functions, but {len(self.weights)} weights"
            )
        if pessimism and (deviation is None or ROLE not in self.sources):
            raise ValueError(
                "reward_pessimism needs the reward role and its ScoreDeviation (from the "
                "votes.safetensors of its run)"
            )

    @property
    def names(self) -> list[str]:
        """The name of each source in logs."""
        return unique_names(self.sources)

    @property
    def only_role(self) -> bool:
        """Whether the reward role is the only source."""
        return self.sources == [ROLE]

    def score(
        self,
        answers: Answers,
        rows: Sequence[int],
        state: Any,
        retry: Callable[[Callable[[], torch.Tensor]], torch.Tensor] = lambda attempt: attempt(),
    ) -> Scored:
        """Scores of some of the answers.

        `pessimism` deviations are subtracted from the role's raw scores, before any scale. With
        several sources the role's scores are normalised to mean 0 and deviation 1 on the answers it
        was trained on, so that its weight is comparable to the others.

        Args:
            rows: numbers of the answers.
            state: the trainer's state, passed to functions as `trainer_state`.
            retry: calls its argument, the role's forward, and may call it again. Functions are
                called once only.

        Raises:
            UserError: a reward function raised, or its result has a wrong form.
        """
        found: list[list[float | None]] = []
        unsure: list[float] = []
        for source in self.sources:
            if isinstance(source, str):
                raw, deviations = retry(
                    lambda: torch.stack(reward_scores(self.backbone, answers, self.deviation))
                )
                if self.deviation is not None:
                    raw = raw - self.pessimism * deviations
                    unsure = deviations[list(rows)].tolist()
                head = self.backbone.heads[ROLE]
                if not self.only_role:
                    raw = (raw - head.score_mean) / head.score_std
                found.append(raw[list(rows)].tolist())
            else:
                found.append(call_function(source, answers, rows, state))
        return Scored(combine(found, self.weights), found, unsure)


def unique_names(sources: Sequence[RewardFunction | str]) -> list[str]:
    """A name for each source; repeated names get a number."""
    names: list[str] = []
    for source in sources:
        name = source if isinstance(source, str) else function_name(source)
        number = next(n for n in count(1) if (f"{name}-{n}" if n > 1 else name) not in names)
        names.append(f"{name}-{number}" if number > 1 else name)
    return names


def call_function(
    function: RewardFunction, answers: Answers, rows: Sequence[int], state: Any
) -> list[float | None]:
    """Call a function of TRL's signature on some of the answers.

    It gets the dataset's columns and in addition `completion_ids`, `ended` (whether the answer
    ended by itself) and `trainer_state`.
    """
    if not rows:  # a process without a share
        return []
    chosen = [(answers.prompts[i], answers.completions[i]) for i in rows]
    prompts = [row["prompt"] for row, _ in chosen]
    completions = [
        c.text if isinstance(p, str) else [{"role": "assistant", "content": c.text}]
        for p, (_, c) in zip(prompts, chosen, strict=True)
    ]
    columns: dict[str, Any] = {key: [row[key] for row, _ in chosen] for key in answers.prompts[0]}
    for name in ("prompt", "completion", "completion_ids"):
        columns.pop(name, None)
    columns["completion_ids"] = [c.ids for _, c in chosen]
    columns["ended"] = [c.ended for _, c in chosen]
    columns["trainer_state"] = state
    return call_reward_function(function, prompts, completions, **columns)


class ScoreScale:
    """Normalises scores to mean 0 and deviation 1 on the reference's answers (arXiv 1909.08593).

    The reward role stores both numbers. For functions they are learned from the first rollouts, in
    which the policy still equals the reference, and are constant from then on.

    Args:
        enabled: False leaves scores as they are.
        clip: largest normalised score, in either direction; None for no limit.
    """

    def __init__(self, enabled: bool, clip: float | None, mean: float = 0.0, std: float = 1.0):
        self.enabled, self.clip = enabled, clip
        self.count, self.mean, self.squares = 0, mean, 0.0
        self.fixed_std: float | None = std

    @classmethod
    def from_config(cls, backbone: Backbone, args: PPOConfig, from_role: bool) -> "ScoreScale":
        """The reward role's own scale where the role is the only source, else one to be learned."""
        if from_role:
            head = backbone.heads[ROLE]
            mean, std = head.score_mean.item(), head.score_std.item()
            return cls(args.normalize_scores, args.score_clip, mean, std)
        scale = cls(args.normalize_scores, args.score_clip)
        scale.fixed_std = None
        return scale

    @property
    def std(self) -> float:
        """The deviation in use; 1 while there are fewer than two scores, or only equal ones."""
        if self.fixed_std is not None:
            return self.fixed_std
        variance = self.squares / self.count if self.count > 1 else 0.0
        return variance**0.5 if variance > 1e-12 else 1.0

    def normalise(self, scores: torch.Tensor, learn: bool) -> torch.Tensor:
        """Raw scores (B,) -> normalised (B,), clipped where `clip` is set."""
        if learn and self.fixed_std is None and self.enabled:
            self._learn(scores.tolist())
        scaled = (scores - self.mean) / self.std if self.enabled else scores
        return scaled.clamp(-self.clip, self.clip) if self.clip else scaled

    def _learn(self, scores: list[float]) -> None:
        for score in scores:  # Welford's running mean and sum of squares
            self.count += 1
            delta = score - self.mean
            self.mean += delta / self.count
            self.squares += delta * (score - self.mean)

    def state_dict(self) -> dict[str, Any]:
        """The numbers that a checkpoint saves."""
        return {
            "count": self.count,
            "mean": self.mean,
            "squares": self.squares,
            "fixed_std": self.fixed_std,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the numbers of a checkpoint."""
        for name, value in state.items():
            setattr(self, name, value)
