"""PPO learns a toy task, with five seeds, also when a quarter of the episodes is lost to a kill."""

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import generate
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.trainer import PPOTrainer
from tests.forked import context

PROMPTS = ["Hi", "Name a fish that lives in cold water.", "Why?", "What is a candle made of?"]
PROMPTS += ["Tell me about tea", "Is it late?", "One word for happy", "Where do crows sleep?"]
PROMPTS += ["Good morning"]
UPDATES = 36  # in some seeds the scores stay near 0.2 up to update 27; rounding decides
LOST = UPDATES // 4


def toy(
    base: Path,
    folder: Path,
    seed: int,
    updates: int,
    callback: Any = None,
    dtype: str = "float32",
    **changes: Any,
) -> PPOTrainer:
    """A trainer whose reward is the share of one token that a twentieth of the answers' are."""
    backbone = Backbone.load(str(base), bits=16, compute_dtype=dtype, adapter_layers=2, lora_rank=4)
    before = generate(backbone, PROMPTS * 10, role="base", max_new_tokens=8, temperature=0.4)
    ((wanted, count),) = Counter(i for answer in before for i in answer.ids).most_common(1)
    assert count / sum(len(answer.ids) for answer in before) < 0.1

    def share(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [ids.count(wanted) / len(ids) for ids in completion_ids]

    settings: dict[str, Any] = {"rollout_batch_size": 32, "num_minibatches": 2, "max_new_tokens": 8}
    settings |= {"micro_batch_size": 16, "learning_rate": 6e-3}
    settings |= {"num_ppo_epochs": 2, "temperature": 0.4, "kl_coef": 0.0, "critic_warmup": 0}
    settings |= {"value_layers": 2}  # of a model of four layers one is too few
    args = PPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        disable_tqdm=True,
        seed=seed,
        updates=updates,
        value_learning_rate=1e-2,
        save_steps=UPDATES // 2,
        **(settings | changes),
    )
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    return PPOTrainer(backbone, args, rows, share, callbacks=[callback] if callback else None)


class _Kill(TrainerCallback):
    """Ends its own process as `kill -9` does, `LOST` updates after the only checkpoint."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == UPDATES // 2 + LOST:
            os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(base: Path, folder: Path, seed: int) -> None:
    """In a process of its own."""
    toy(base, folder, seed, UPDATES, _Kill()).train()


def has_learned(trainer: PPOTrainer) -> None:
    scores = [row["score"] for row in trainer.state.log_history]
    assert sum(scores[:3]) / 3 < 0.1
    assert sum(scores[-3:]) / 3 > 0.3


@pytest.mark.parametrize("seed", range(5))
def test_it_learns_to_write_a_token(tiny_base: Path, tmp_path: Path, seed: int) -> None:
    """The share of one token in the answers rises from a twentieth to over three tenths."""
    trainer = toy(tiny_base, tmp_path, seed, UPDATES)
    trainer.train()
    has_learned(trainer)


def test_it_learns_in_float16(tiny_base: Path, tmp_path: Path) -> None:
    """As on a card without bfloat16; the steps lost to the search for a scale are few."""
    small: dict[str, Any] = {"num_minibatches": 4, "learning_rate": 3e-3}
    trainer = toy(tiny_base, tmp_path, 1, 24, dtype="float16", **small)
    trainer.train()
    has_learned(trainer)
    rows = trainer.state.log_history
    assert sum(row["skipped_steps"] for row in rows) == 0
    assert sum(row["policy_steps"] for row in rows) > 0.95 * 8 * 24


@pytest.mark.parametrize("seed", range(2))
def test_it_learns_with_a_quarter_of_the_episodes_lost(
    tiny_base: Path, tmp_path: Path, seed: int
) -> None:
    """A quarter of a training's updates is lost to the kill, and made again.

    Two seeds are enough: tests/invariants/test_kills.py holds that a resumed run is the same run.
    """
    process = context().Process(target=train_until_killed, args=(tiny_base, tmp_path, seed))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    trainer = toy(tiny_base, tmp_path, seed, UPDATES)
    trainer.train(resume_from_checkpoint=True)
    assert [row["step"] for row in trainer.state.log_history] == list(range(1, UPDATES + 1))
    has_learned(trainer)
