"""`PPOTrainer`: what one update does to the weights of each role."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf.backbone import roles
from lorarlhf.backbone.base import Backbone
from lorarlhf.ppo import objective
from lorarlhf.ppo.rollout import Rollout, token_values
from tests.ppo_runs import Make, base_weights, length_reward, load, weights
from tests.ppo_runs import make as make  # a fixture


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
    for role, first in trainer.learner.first_layer.items():
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
        trainer.learner, "run_epochs", lambda rollout, step, seed: rollouts.append(rollout) or {}
    )
    trainer.update()
    (rollout,) = rollouts
    micro = rollout.micro_batches[0]
    with torch.no_grad(), tiny.role("value"):
        again = token_values(tiny, micro)
    torch.testing.assert_close(rollout.select(micro, rollout.values), again, rtol=1e-4, atol=1e-4)
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
