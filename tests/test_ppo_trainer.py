"""`PPOTrainer`: each step does what it says, a resumed run is the same run, and it learns."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer.base_trainer import _BaseTrainer

from lorarlhf.backbone import roles
from lorarlhf.backbone.base import Backbone
from lorarlhf.ppo import objective
from lorarlhf.ppo import trainer as ppo_trainer
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.kl import KLControl
from lorarlhf.ppo.rollout import Rollout, token_values
from lorarlhf.ppo.trainer import PPOTrainer
from lorarlhf.runtime.errors import UserError

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
            backbone, args, data, reward_funcs, reward_weights, callbacks, eval_dataset=eval_dataset
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


# ---- what a step is


@pytest.mark.parametrize(
    ("bits", "dtype"), [(16, "float32"), (16, "bfloat16"), (4, "bfloat16"), (4, "float16")]
)
@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_at_step_zero_the_ratio_is_1_and_the_kl_is_0(
    tiny_base: Path,
    make: Make,
    randomise: Callable[..., None],
    bits: int,
    dtype: str,
    micro_batch_size: int,
) -> None:
    backbone = Backbone.load(str(tiny_base), bits=bits, compute_dtype=dtype, adapter_layers=2)
    randomise(backbone, "policy", seed=1)
    backbone.freeze_reference()
    trainer = make(backbone, num_ppo_epochs=1, micro_batch_size=micro_batch_size)
    metrics = trainer.update()
    assert metrics["ratio"] == 1.0
    assert metrics["approx_kl"] == 0.0
    assert metrics["clip_fraction"] == 0.0
    assert metrics["kl"] == 0.0


def test_the_kl_is_that_to_the_reference(
    tiny: Backbone, make: Make, randomise: Callable[..., None]
) -> None:
    randomise(tiny, "policy", seed=1)
    metrics = make(tiny, num_ppo_epochs=1).update()  # no SFT: the reference is the bare base
    assert metrics["ratio"] == 1.0
    assert metrics["kl"] > 0.5


def test_equal_scores_without_a_kl_price_move_nothing(tiny: Backbone, make: Make) -> None:
    before = weights(tiny, "policy")
    trainer = make(tiny, reward_funcs=lambda completions, **_: [3.0] * len(completions), kl_coef=0)
    metrics = trainer.update()
    assert metrics["score"] == 3.0
    assert metrics["score_normalised"] == 0.0
    assert metrics["policy_loss"] == 0.0
    assert torch.equal(weights(tiny, "policy"), before)


@pytest.mark.parametrize("minibatches", [1, 2, 4])
def test_minibatches_are_optimizer_steps(
    tiny: Backbone, make: Make, monkeypatch: pytest.MonkeyPatch, minibatches: int
) -> None:
    trainer = make(tiny, num_minibatches=minibatches, num_ppo_epochs=3, micro_batch_size=2)
    steps = {"policy": 0, "value": 0}
    tokens: list[int] = []

    def counted(role: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any, **kwargs: Any) -> Any:
            steps[role] += 1
            return step(*args, **kwargs)

        return count

    for role, optimizer in trainer.learner.optimizers.items():
        monkeypatch.setattr(optimizer, "step", counted(role, optimizer.step))
    plain = trainer.learner._step_policy

    def noted(rollout: Rollout, place: int) -> Any:
        tokens.append(sum(len(micro.targets) for micro in rollout.minibatches[place]))
        assert tokens[-1] == rollout.tokens[place]
        return plain(rollout, place)

    monkeypatch.setattr(trainer.learner, "_step_policy", noted)
    metrics = trainer.update()
    assert steps == {"policy": 3 * minibatches, "value": 3 * minibatches}
    answered = metrics["completion_length"] * 8
    for epoch in range(3):  # every token is in exactly one step of each epoch
        assert sum(tokens[epoch * minibatches :][:minibatches]) == answered


@pytest.mark.parametrize("minibatches", [1, 2])
def test_the_size_of_a_forward_changes_no_step(
    tiny_base: Path,
    make: Make,
    minibatches: int,
    randomise: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Answers of different lengths, so that a mean of means would differ from the mean of all.
    monkeypatch.setattr(Backbone, "stop_ids", list(range(3, 80)))
    results = []
    settings = {"num_minibatches": minibatches, "num_ppo_epochs": 3, "adam_epsilon": 1e-3}
    for size in (1, 2, 8 // minibatches):
        backbone = load(tiny_base)
        randomise(backbone, "policy", seed=2)
        trainer = make(backbone, micro_batch_size=size, **settings)
        metrics = trainer.update()
        results.append((weights(backbone, "policy"), weights(backbone, "value"), metrics))
    started = load(tiny_base)
    randomise(started, "policy", seed=2)
    for policy, value, metrics in results:
        assert 1.5 < metrics["completion_length"] < 5.5
        assert (policy - weights(started, "policy")).abs().max() > 1e-4
        torch.testing.assert_close(policy, results[0][0], rtol=0, atol=1e-5)
        torch.testing.assert_close(value, results[0][1], rtol=0, atol=1e-5)
        for name in ("policy_loss", "value_loss", "ratio", "grad_norm_policy"):
            assert metrics[name] == pytest.approx(results[0][2][name], abs=1e-4)


def test_only_policy_and_value_move(
    tiny: Backbone, make: Make, randomise: Callable[..., None]
) -> None:
    tiny.add_role("reward")
    for seed, role in enumerate(("policy", "reward")):
        randomise(tiny, role, seed=seed)
    tiny.freeze_reference()
    tiny.heads["reward"].score_std.fill_(2.0)
    scale = tiny.heads["reward"].score_std.clone()
    before = {role: weights(tiny, role) for role in ("policy", "reference", "reward")}
    base = base_weights(tiny)
    trainer = make(tiny, reward_funcs=None, updates=2)
    before["value"] = weights(tiny, "value")
    trainer.train()
    for role in ("reference", "reward"):
        assert torch.equal(weights(tiny, role), before[role])
    for role, first in trainer.learner.first.items():
        upper = sum(p.numel() for p in tiny.parameters_of(role, first))
        assert (weights(tiny, role) != before[role]).sum() > 0.9 * upper
    assert torch.equal(tiny.heads["reward"].score_std, scale)
    assert torch.equal(base_weights(tiny), base)
    for role in roles.ROLES:
        assert all(p.grad is None for p in tiny.parameters_of(role))


def test_gradients_are_clipped_for_policy_and_value_apart(
    tiny: Backbone, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(tiny, max_grad_norm=0.01)
    seen: dict[str, float] = {}
    for role, optimizer in trainer.learner.optimizers.items():

        def look(role: str = role) -> None:
            grads = [p.grad for p in tiny.parameters_of(role) if p.grad is not None]
            seen[role] = torch.cat([grad.flatten() for grad in grads]).norm().item()

        monkeypatch.setattr(optimizer, "step", look)
    metrics = trainer.update()
    assert metrics["grad_norm_policy"] > 0.02 and metrics["grad_norm_value"] > 0.02
    assert seen == pytest.approx({"policy": 0.01, "value": 0.01}, rel=1e-3)


def test_in_the_critics_warm_up_only_the_value_learns(tiny: Backbone, make: Make) -> None:
    trainer = make(tiny, critic_warmup=2, updates=3)
    policy, value = weights(tiny, "policy"), weights(tiny, "value")
    for step in range(2):
        metrics = trainer.update()
        trainer.state.global_step += 1
        assert torch.equal(weights(tiny, "policy"), policy), step
        assert "policy_loss" not in metrics
        assert not torch.equal(weights(tiny, "value"), value)
    assert "policy_loss" in trainer.update()
    assert not torch.equal(weights(tiny, "policy"), policy)


def test_the_value_starts_as_the_reward_role(
    tiny: Backbone, make: Make, randomise: Callable[..., None]
) -> None:
    tiny.add_role("reward")
    randomise(tiny, "reward")
    make(tiny, reward_funcs=None)
    assert torch.equal(weights(tiny, "value"), weights(tiny, "reward"))


def test_without_a_reward_role_the_value_starts_as_the_policy_with_zeros(
    tiny: Backbone, make: Make, randomise: Callable[..., None]
) -> None:
    randomise(tiny, "policy")
    make(tiny)
    ours = roles.adapter_parameters(tiny.model, "value").values()
    theirs = roles.adapter_parameters(tiny.model, "default").values()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not tiny.heads["value"].weight.any()


@pytest.mark.parametrize("by_role", [True, False])
def test_a_new_value_is_brought_to_the_first_rollout_s_returns(
    tiny: Backbone,
    make: Make,
    randomise: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    by_role: bool,
) -> None:
    if by_role:
        tiny.add_role("reward")
        randomise(tiny, "reward", std=1.0)
    trainer = make(tiny, reward_funcs=None if by_role else length_reward, kl_coef=0, updates=2)
    rollouts: list[Rollout] = []
    monkeypatch.setattr(
        trainer.learner, "epochs", lambda rollout, step, seed: rollouts.append(rollout) or {}
    )
    trainer.update()
    (rollout,) = rollouts
    micro = rollout.micro_batches[0]
    with torch.no_grad(), tiny.role("value"):
        again = token_values(tiny, micro)
    torch.testing.assert_close(rollout.of(micro, rollout.values), again, rtol=1e-4, atol=1e-4)
    # Gamma is 1 and KL is free: every token's return is its answer's score.
    scores = trainer.scale.normalise(trainer._score(rollout)[0], learn=False)
    returns = scores[:, None] * rollout.mask
    # No worse than a constant, but for what the smallest slope may cost.
    assert objective.explained_variance(rollout.values, returns, rollout.mask) > -0.01
    means = [objective.masked_mean(x, rollout.mask) for x in (rollout.values, returns)]
    assert means[0].item() == pytest.approx(means[1].item(), abs=1e-4)
    before = weights(tiny, "value")
    trainer.update()
    assert torch.equal(weights(tiny, "value"), before)  # once only


def test_without_a_kept_trunk_the_numbers_are_the_same(
    tiny_base: Path, make: Make, randomise: Callable[..., None]
) -> None:
    found = []
    for keeps in (True, False):
        backbone = load(tiny_base)
        backbone.forward.keeps_trunk = keeps
        backbone.add_role("reward")
        randomise(backbone, "reward", seed=1)
        head = backbone.heads["reward"]
        final = torch.linspace(-1, 1, backbone.hidden_size)
        head.full_weight = torch.cat([0 * final, final])[-len(head.full_weight) :]
        assert (head.trunk_weight is not None) == keeps
        trainer = make(backbone, reward_funcs=None, adam_epsilon=1e-3, folder=f"trunk-{keeps}")
        torch.manual_seed(0)
        metrics = trainer.update()
        found.append((metrics, weights(backbone, "policy")))
    for name in ("score", "policy_loss", "value_loss", "explained_variance"):
        assert found[1][0][name] == pytest.approx(found[0][0][name], abs=1e-4)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=0, atol=1e-5)


# ---- rewards and prompts


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
    drawn = [row["prompt"] for _ in range(9) for row in trainer._next_prompts()]
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


# ---- TRL's ways


class Watcher(TrainerCallback):
    def __init__(self) -> None:
        self.events: list[str] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.events.append("begin")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.events.append(f"step {state.global_step}")
        control.should_training_stop = state.global_step == 3
        if state.global_step == 1:
            control.should_save = True

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.events.append("log")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.events.append("save")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.events.append("end")


def test_callbacks_are_called_and_can_stop_the_training(tiny: Backbone, make: Make) -> None:
    watcher = Watcher()
    trainer = make(tiny, updates=9, save_steps=2, max_new_tokens=2, callbacks=[watcher])
    assert isinstance(trainer, _BaseTrainer)
    output = trainer.train()
    assert watcher.events == [
        "begin",
        *("step 1", "log", "save"),
        *("step 2", "log", "save"),
        *("step 3", "log", "save"),
        "end",
    ]
    assert output.global_step == 3
    assert output.metrics["updates"] == 3
    assert output.metrics["episodes"] == 24


def test_the_log_has_every_metric(tiny: Backbone, make: Make) -> None:
    trainer = make(tiny, updates=2, max_new_tokens=3)
    trainer.train()
    assert [row["step"] for row in trainer.state.log_history] == [1, 2]
    assert [row["episodes"] for row in trainer.state.log_history] == [8, 16]
    names = "score score_std score_normalised kl kl_coef entropy completion_length ended_fraction "
    names += "explained_variance policy_loss value_loss clip_fraction value_clip_fraction "
    names += "approx_kl ratio grad_norm_policy grad_norm_value policy_steps skipped_steps "
    names += "seconds seconds_rollout seconds_score seconds_optimize"
    for row in trainer.state.log_history:
        assert set(names.split()) <= set(row)
        assert all(isinstance(row[name], float) for name in names.split())
    summary = trainer.summary()
    assert summary["kl_per_sequence"] == pytest.approx(
        sum(row["kl"] for row in trainer.state.log_history) / 2
    )
    assert summary["seconds_per_update"] > 0


def test_save_model_writes_plain_peft_folders(tiny: Backbone, make: Make, tmp_path: Path) -> None:
    make(tiny).save_model(str(tmp_path / "out"))
    for role in ("policy", "value"):
        folder = tmp_path / "out" / "adapters" / role
        assert (folder / "adapter_config.json").is_file()
        assert (folder / "adapter_model.safetensors").is_file()


# ---- KL control


def test_the_kl_coefficient_by_hand() -> None:
    control = KLControl(0.1, target=4.0, horizon=100)
    control.update(4.4, episodes=20)  # 10% above: 1 + 0.1 * 20 / 100
    assert control.coef == pytest.approx(0.102)
    control.update(400.0, episodes=20)  # clipped to 0.2
    assert control.coef == pytest.approx(0.102 * 1.04)
    control.update(-1.0, episodes=20)
    assert control.coef == pytest.approx(0.102 * 1.04 * 0.96)
    fixed = KLControl(0.1)
    fixed.update(400.0, episodes=20)
    assert fixed.coef == 0.1


def test_the_kl_coefficient_follows_the_target_and_is_resumed(tiny_base: Path, make: Make) -> None:
    settings: dict[str, Any] = {"kl_target": 1e-6, "kl_horizon": 16, "critic_warmup": 1}
    settings |= {"max_new_tokens": 3, "learning_rate": 1e-2, "save_steps": 1}
    straight = make(load(tiny_base), folder="whole", updates=4, **settings)
    straight.train()
    coefs = [row["kl_coef"] for row in straight.state.log_history]
    # The warm-up says nothing, and the policy's first rollout is the reference's still.
    assert coefs[:3] == [0.05, 0.05, 0.05]
    assert coefs[3] == pytest.approx(0.05 * (1 + 0.2 * 8 / 16))
    make(load(tiny_base), folder="parts", updates=3, **settings).train()
    second = make(load(tiny_base), folder="parts", updates=4, **settings)
    second.train(resume_from_checkpoint=True)
    assert second.state.log_history[-1]["kl_coef"] == coefs[3]
    assert second.kl.coef == straight.kl.coef != 0.05


# ---- checkpoints


def test_a_resumed_run_is_the_run_that_was_not_stopped(
    tiny_base: Path, make: Make, randomise: Callable[..., None]
) -> None:
    settings: dict[str, Any] = {"save_steps": 2, "critic_warmup": 1, "num_minibatches": 2}

    def backbone(seed: int) -> Backbone:
        made = load(tiny_base)
        made.add_role("reward")
        randomise(made, "reward", seed=5)
        torch.manual_seed(seed)  # the process's random state is another one each time
        return made

    whole = backbone(1)
    straight = make(whole, folder="whole", updates=4, **settings)
    straight.train()
    first = make(backbone(2), folder="parts", updates=2, **settings)
    first.train()
    rest = backbone(3)
    second = make(rest, folder="parts", updates=4, **settings)
    second.train(resume_from_checkpoint=True)
    assert rows_of(second) == rows_of(straight)
    assert [row["step"] for row in rows_of(second)] == [1, 2, 3, 4]
    for role in ("policy", "value"):
        assert torch.equal(weights(rest, role), weights(whole, role))


def test_the_score_scale_and_both_optimizers_are_resumed(tiny_base: Path, make: Make) -> None:
    first = make(load(tiny_base), updates=2)
    first.train()
    second = make(load(tiny_base), updates=2)
    second.train(resume_from_checkpoint=True)  # nothing is left to do
    assert second.scale.state() == first.scale.state()
    assert second.scale.count == 8
    for role, optimizer in first.learner.optimizers.items():
        ours = optimizer.state_dict()["state"]
        theirs = second.learner.optimizers[role].state_dict()["state"]
        # A and B of seven products in each layer that the role trains, and the value's head.
        assert len(ours) == {"policy": 2 * 14, "value": 14 + 2}[role]
        assert ours.keys() == theirs.keys()
        for number, state in ours.items():
            for name, value in state.items():
                assert torch.equal(value, theirs[number][name]), (role, number, name)


def test_checkpoints_are_whole_few_and_without_pickles(
    tiny: Backbone, make: Make, tmp_path: Path
) -> None:
    trainer = make(tiny, updates=4, save_steps=1, max_new_tokens=2)
    trainer.train()
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint-3", "checkpoint-4"]
    files = {p.suffix for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert files == {".json", ".safetensors"}
    state = json.loads((folder / "checkpoint-4" / "state.json").read_text())
    assert state["step"] == 4
    assert len(state["log_history"]) == 4


def test_a_half_written_checkpoint_is_not_resumed_from(
    tiny: Backbone, make: Make, tmp_path: Path
) -> None:
    make(tiny, updates=1, max_new_tokens=2).train()
    folder = tmp_path / "run" / "checkpoints"
    (folder / ".checkpoint-2.123").mkdir()
    (folder / ".checkpoint-2.123" / "state.json").write_text('{"step": 2')
    trainer = make(tiny, updates=2, max_new_tokens=2)
    trainer.train(resume_from_checkpoint=True)
    assert [row["step"] for row in trainer.state.log_history] == [1, 2]
    assert not (folder / ".checkpoint-2.123").exists()


def test_a_checkpoint_can_be_named_and_a_missing_one_is_refused(
    tiny: Backbone, make: Make, tmp_path: Path
) -> None:
    make(tiny, updates=2, save_steps=1, max_new_tokens=2).train()
    trainer = make(tiny, updates=2, max_new_tokens=2)
    named = tmp_path / "run" / "checkpoints" / "checkpoint-1"
    trainer.train(resume_from_checkpoint=str(named))
    assert [row["step"] for row in trainer.state.log_history] == [1, 2]
    with pytest.raises(
        UserError, match="no PPO checkpoint to go on from in .*nowhere: files.json is missing"
    ):
        trainer.train(resume_from_checkpoint=str(tmp_path / "nowhere"))


def test_resuming_where_nothing_was_saved_starts_anew(tiny: Backbone, make: Make) -> None:
    trainer = make(tiny, updates=1, max_new_tokens=2)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 1
