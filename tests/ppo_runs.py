"""Small PPO runs for tests: prompts, a trainer with small settings, and what a run leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from lorarlhf.backbone.base import Backbone
from lorarlhf.ppo import objective
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.learner import Learner
from lorarlhf.ppo.rollout import Rollout, collect
from lorarlhf.ppo.trainer import PPOTrainer

PROMPTS = [
    "Hi",
    "Name a fish that lives in cold water.",
    "Why?",
    "What is a candle made of?",
    "Tell me about tea",
    "Is it late?",
    "One word for happy",
    "Where do crows sleep?",
    "Good morning",
]
Make = Callable[..., PPOTrainer]


def length_reward(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def load(folder: Path) -> Backbone:
    return Backbone.load(
        str(folder), bits=16, compute_dtype="float32", adapter_layers=2, lora_rank=4
    )


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make(backbone, reward_funcs=..., rows=..., **settings)`: a trainer with small settings."""

    def build(
        backbone: Backbone,
        *,
        reward_funcs: Any = length_reward,
        rows: Any = None,
        callbacks: Any = None,
        reward_weights: Any = None,
        folder: str = "run",
        eval_dataset: Any = None,
        judge_funcs: Any = (),
        deviation: Any = None,
        **settings: Any,
    ) -> PPOTrainer:
        defaults = {"updates": 1, "rollout_batch_size": 8, "micro_batch_size": 4}
        defaults |= {"max_new_tokens": 6, "num_ppo_epochs": 2, "critic_warmup": 0}
        defaults |= {"learning_rate": 1e-3, "value_learning_rate": 1e-3}
        args = PPOConfig(
            output_dir=str(tmp_path / folder),
            use_cpu=True,
            disable_tqdm=True,
            **(defaults | settings),
        )
        data = rows if rows is not None else Dataset.from_list([{"prompt": p} for p in PROMPTS])
        return PPOTrainer(
            backbone,
            args,
            data,
            reward_funcs,
            reward_weights,
            callbacks,
            eval_dataset=eval_dataset,
            judge_funcs=judge_funcs,
            deviation=deviation,
        )

    return build


def weights(backbone: Backbone, role: str) -> torch.Tensor:
    parts = [p.detach().flatten() for p in backbone.parameters_of(role)]
    if role in backbone.heads:
        parts.append(backbone.heads[role].full_weight)
    return torch.cat(parts).clone()


def base_weights(backbone: Backbone) -> torch.Tensor:
    return torch.cat(
        [p.flatten() for name, p in backbone.model.named_parameters() if "lora_" not in name]
    ).clone()


def rows_of(trainer: PPOTrainer) -> list[dict[str, Any]]:
    """The metrics, without how long things took."""
    return [
        {name: value for name, value in row.items() if "seconds" not in name}
        for row in trainer.state.log_history
    ]


def prepared(trainer: PPOTrainer) -> tuple[Learner, Rollout]:
    """A rollout with advantages of both signs and returns, ready for the epochs."""
    rows = [{"prompt": prompt} for prompt in PROMPTS[:8]]
    rollout = collect(trainer.backbone, rows, trainer.args, seed=0)
    torch.manual_seed(0)
    rollout.advantages = objective.whiten(torch.randn(rollout.mask.shape), rollout.mask)
    rollout.returns = torch.randn(rollout.mask.shape) * rollout.mask
    return trainer.learner, rollout
