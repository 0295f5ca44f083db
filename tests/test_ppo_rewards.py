"""Rewards, prompts and settings of PPO."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from lorarlhf.backbone.base import Backbone
from lorarlhf.ppo import trainer as ppo_trainer
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.runtime.errors import UserError
from tests.ppo_runs import PROMPTS, Make
from tests.ppo_runs import make as make  # a fixture


def test_reward_functions_get_trls_arguments(tiny: Backbone, make: Make) -> None:
    calls: list[dict[str, Any]] = []

    def spy(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        calls.append({"prompts": prompts, "completions": completions, **columns})
        return [float(i) for i in range(len(prompts))]

    rows = [{"prompt": p, "topic": p[:2], "hardness": len(p)} for p in PROMPTS]
    trainer = make(tiny, reward_funcs=spy, rows=Dataset.from_list(rows))
    metrics = trainer.update()
    (call,) = calls
    assert len(set(call["prompts"])) == 8 and set(call["prompts"]) <= set(PROMPTS)
    assert all(isinstance(text, str) for text in call["completions"])
    assert call["topic"] == [p[:2] for p in call["prompts"]]
    assert call["hardness"] == [len(p) for p in call["prompts"]]
    for text, ids, ended in zip(
        call["completions"], call["completion_ids"], call["ended"], strict=True
    ):
        assert 1 <= len(ids) <= 6
        assert ended == (ids[-1] in tiny.stop_ids)
        said = ids[:-1] if ended else ids
        assert tiny.tokenizer.decode(said, skip_special_tokens=True).strip() == text
    assert call["trainer_state"] is trainer.state
    assert metrics["score"] == 3.5


def test_conversations_are_answered_as_conversations(tiny: Backbone, make: Make) -> None:
    calls: list[Any] = []

    def spy(prompts: Any, completions: Any, **_: Any) -> list[float]:
        calls.append((prompts, completions))
        return [0.0] * len(prompts)

    talks = [[{"role": "user", "content": p}] for p in PROMPTS]
    trainer = make(tiny, reward_funcs=spy, rows=Dataset.from_list([{"prompt": t} for t in talks]))
    trainer.update()
    ((prompts, completions),) = calls
    assert all(prompt in talks for prompt in prompts)
    for answer in completions:
        assert [message["role"] for message in answer] == ["assistant"]
        assert isinstance(answer[0]["content"], str)


def test_weights_add_the_functions_up_and_none_counts_as_nothing(
    tiny: Backbone, make: Make
) -> None:
    trainer = make(
        tiny,
        reward_funcs=[
            lambda completions, **_: [2.0] * len(completions),
            lambda completions, **_: [None if i % 2 else 10.0 for i in range(len(completions))],
        ],
        reward_weights=[0.5, 0.1],
    )
    assert trainer.update()["score"] == pytest.approx(0.5 * (2.0 + 1.0))


def test_every_prompt_is_used_once_before_one_is_used_again(tiny: Backbone, make: Make) -> None:
    trainer = make(tiny, rollout_batch_size=4, max_new_tokens=1)
    numbers = [i for _ in range(9) for i in trainer.prompt_order.take(4)]
    drawn = [trainer.rows[i]["prompt"] for i in numbers]
    for start in range(0, 36, 9):
        assert sorted(drawn[start : start + 9]) == sorted(PROMPTS)
    assert drawn[:9] != drawn[9:18]


def test_too_long_prompts_are_refused(tiny: Backbone, make: Make) -> None:
    with pytest.raises(UserError, match="longer than max_prompt_tokens"):
        make(tiny, max_prompt_tokens=3).train()


def test_answers_that_do_not_end_are_charged(
    tiny: Backbone, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backbone, "stop_ids", [7, 20, 33])  # so that some end and some do not
    seen: dict[str, torch.Tensor] = {}
    shape = ppo_trainer.objective.shape_rewards

    def noted(scores: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen["scores"] = scores
        return shape(scores, *rest)

    ended: list[bool] = []

    def constant(completions: list[str], **columns: Any) -> list[float]:
        ended.extend(columns["ended"])
        return [1.0] * len(completions)

    monkeypatch.setattr(ppo_trainer.objective, "shape_rewards", noted)
    settings = {"normalize_scores": False, "missing_eos_penalty": 2.5, "max_new_tokens": 80}
    make(tiny, reward_funcs=constant, **settings).update()
    assert set(ended) == {True, False}
    assert seen["scores"].tolist() == [1.0 if e else -1.5 for e in ended]


def test_scores_are_normalised_by_those_of_the_warm_up(tiny: Backbone, make: Make) -> None:
    scores = iter([[0.0, 4.0], [2.0, 6.0], [100.0, 3.0]])
    trainer = make(
        tiny,
        reward_funcs=lambda completions, **_: next(scores),
        rollout_batch_size=2,
        critic_warmup=2,
        score_clip=5.0,
    )
    normalised = []
    for _ in range(3):
        normalised.append(trainer.update()["score_normalised"])
        trainer.state.global_step += 1
    # first: mean 2, deviation 2;  second: mean 3, deviation sqrt(5);  third: the same, and the cap
    assert normalised == pytest.approx([0.0, 1 / 5**0.5, 2.5])


def test_the_reward_roles_own_scale_is_used(
    tiny: Backbone, make: Make, randomise: Callable[..., None]
) -> None:
    tiny.add_role("reward")
    randomise(tiny, "reward")
    tiny.heads["reward"].score_mean.fill_(1.5)
    tiny.heads["reward"].score_std.fill_(4.0)
    metrics = make(tiny, reward_funcs=None).update()
    assert metrics["score_normalised"] == pytest.approx((metrics["score"] - 1.5) / 4, abs=1e-6)


def test_without_any_reward_it_says_so(tiny: Backbone, make: Make) -> None:
    with pytest.raises(ValueError, match="needs a reward"):
        make(tiny, reward_funcs=None)
    with pytest.raises(ValueError, match="1 reward functions, but 2 weights"):
        make(tiny, reward_weights=[1.0, 2.0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rollout_batch_size": 6, "num_minibatches": 4}, "multiple of num_minibatches"),
        ({"rollout_batch_size": 8, "micro_batch_size": 3}, "micro_batch_size .3. must divide"),
        ({"temperature": 0.0}, "temperature is above 0, not 0.0"),
        ({"kl_target": 0.0}, "kl_target is above 0"),
        (
            {"kl_horizon": 8, "kl_target": 4.0},
            "kl_horizon .8. must be at least rollout_batch_size .16.",
        ),
        ({"num_ppo_epochs": 0}, "num_ppo_epochs is 1 or more, not 0"),
        ({"policy_layers": 0}, "policy_layers is 1 or more, not 0"),
        ({"value_layers": -1}, "value_layers is 1 or more, not -1"),
        ({"lr_scheduler_type": "cosine"}, "does not use lr_scheduler_type"),
        ({"gradient_accumulation_steps": 2}, "does not use gradient_accumulation_steps"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, **settings)
