"""What holds PPO back: early stopping, wild ratios, decay, a head-only value, the KL budget."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from lorarlhf.backbone import roles
from lorarlhf.backbone.base import Backbone
from lorarlhf.ppo import checkpoint, heldout, objective
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.kl import KLBudget
from lorarlhf.runtime import checkpoints
from lorarlhf.runtime.errors import UserError
from tests.ppo_runs import Make, load, prepared, rows_of, weights
from tests.ppo_runs import make as make  # a fixture

EPOCHS = {"num_ppo_epochs": 4, "learning_rate": 1e-2}


# ---- the epochs


def test_the_epochs_end_where_the_policy_has_moved_enough(tiny: Backbone, make: Make) -> None:
    learner, rollout = prepared(make(tiny, max_approx_kl=1e-4, **EPOCHS))
    before = weights(tiny, "policy")
    first = learner.run_epochs(rollout, step=0, seed=0)
    # The first pass has an approximate KL of 0; the second sees that the first went too far.
    assert first["policy_steps"] == 1 and first["approx_kl"] > 0.5e-4
    moved = weights(tiny, "policy")
    assert not torch.equal(moved, before)
    learner.run_epochs(rollout, step=0, seed=0)
    assert torch.equal(weights(tiny, "policy"), moved)  # it is too far away already
    free, rollout = prepared(make(tiny, **EPOCHS))
    assert free.run_epochs(rollout, step=0, seed=0)["policy_steps"] == 4


@pytest.mark.parametrize(("shift", "skipped"), [(0.0, 0), (-2.0, 0), (-5.0, 4)])
def test_a_minibatch_whose_ratio_explodes_is_left_out(
    tiny: Backbone, make: Make, shift: float, skipped: int
) -> None:
    learner, rollout = prepared(make(tiny, num_ppo_epochs=4, learning_rate=1e-5))
    before = weights(tiny, "policy")
    rollout.logprobs += shift  # the mean ratio is then exp(-shift): 1, 7.4 and 148
    stats = learner.run_epochs(rollout, step=0, seed=0)
    assert stats["skipped_steps"] == skipped and stats["policy_steps"] == 4 - skipped
    assert stats["ratio"] == pytest.approx(math.exp(-shift), rel=0.05)
    assert torch.equal(weights(tiny, "policy"), before) == (skipped == 4)


def test_a_gradient_that_is_no_number_moves_nothing(tiny: Backbone, make: Make) -> None:
    learner, rollout = prepared(make(tiny, num_ppo_epochs=2))
    before = {role: weights(tiny, role) for role in ("policy", "value")}
    rollout.advantages[0, 0] = rollout.returns[0, 0] = float("nan")
    assert learner.run_epochs(rollout, step=0, seed=0)["skipped_steps"] == 2
    for role, kept in before.items():
        assert torch.equal(weights(tiny, role), kept)
        state = learner.optimizers[role].state
        assert all(torch.isfinite(t).all() for s in state.values() for t in s.values())


def test_learning_rates_fall_to_zero_in_a_line(tiny: Backbone, make: Make) -> None:
    settings: dict[str, Any] = {"learning_rate": 4e-3, "value_learning_rate": 2e-3, "updates": 4}
    trainer = make(tiny, linear_lr_decay=True, max_new_tokens=2, **settings)
    assert trainer.learner.learning_rates(0) == {"policy": 4e-3, "value": 2e-3}
    assert trainer.learner.learning_rates(3) == {"policy": 1e-3, "value": 5e-4}
    trainer.train()
    used = [o.param_groups[0]["lr"] for o in trainer.learner.optimizers.values()]
    assert used == [1e-3, 5e-4]
    constant = make(tiny, **settings).learner
    assert constant.learning_rates(3) == constant.learning_rates(0)


def test_rewards_are_whitened_and_keep_their_mean() -> None:
    rewards = torch.tensor([[1.0, 3.0, 9.0], [5.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    # 1, 3, 5: mean 3, deviation sqrt(8/3)
    deviation = (8 / 3) ** 0.5
    wanted = [[3 - 2 / deviation, 3.0, 0.0], [3 + 2 / deviation, 0.0, 0.0]]
    found = objective.whiten(rewards, mask, keep_mean=True)
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_whitened_rewards_reach_the_advantages(
    tiny: Backbone, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    gae = objective.gae

    def noted(rewards: torch.Tensor, *rest: Any) -> Any:
        seen.append(rewards)
        return gae(rewards, *rest)

    monkeypatch.setattr(objective, "gae", noted)
    trainer = make(tiny, whiten_rewards=True, normalize_scores=False, value_adapter=False)
    trainer.value_is_new = False
    trainer.update()
    (rewards,) = seen
    assert rewards[rewards != 0].var(unbiased=False).item() == pytest.approx(1.0, rel=0.2)


# ---- a value without an adapter


@pytest.mark.parametrize("layers", [None, 1])
def test_a_value_that_is_only_a_head_learns_and_moves_no_policy(
    tiny_base: Path, make: Make, layers: int | None
) -> None:
    backbone = load(tiny_base)
    kind: dict[str, Any] = {"value_adapter": False, "policy_layers": layers}
    trainer = make(backbone, critic_warmup=1, updates=3, save_steps=1, **kind)
    assert roles.ADAPTERS["value"] not in backbone.model.peft_config
    assert len(backbone.parameters_of("value")) == 2
    policy, head = weights(backbone, "policy"), weights(backbone, "value")
    trainer.update()  # warm-up
    assert torch.equal(weights(backbone, "policy"), policy)
    assert not torch.equal(weights(backbone, "value"), head)
    make(backbone, critic_warmup=0, **kind).update()
    assert not torch.equal(weights(backbone, "policy"), policy)


@pytest.mark.parametrize("layers", [None, 1])
def test_a_value_that_is_only_a_head_is_saved_and_resumed(
    tiny_base: Path, make: Make, tmp_path: Path, layers: int | None
) -> None:
    settings: dict[str, Any] = {"value_adapter": False, "critic_warmup": 1, "save_steps": 1}
    settings |= {"policy_layers": layers}
    straight = make(load(tiny_base), folder="whole", updates=3, **settings)
    straight.train()
    make(load(tiny_base), folder="parts", updates=2, **settings).train()
    second = make(load(tiny_base), folder="parts", updates=3, **settings)
    second.train(resume_from_checkpoint=True)
    assert rows_of(second) == rows_of(straight)
    second.save_model(str(tmp_path / "out"))
    fresh = load(tiny_base)
    for role in ("policy", "value"):
        fresh.load_role(role, tmp_path / "out" / "adapters" / role)
    ids = torch.tensor([fresh.encode("Where do crows sleep?")])
    found = []
    for backbone in (second.backbone, fresh):
        with torch.no_grad(), backbone.role("value"):
            trunk = backbone.forward.trunk(ids, torch.ones_like(ids))
            hidden = backbone.forward.hidden(ids, torch.ones_like(ids), trunk)
            found.append(backbone.heads["value"](hidden, trunk))
    assert torch.equal(found[0], found[1]) and found[0].std() > 0


# ---- held-out prompts and the KL budget

HELD_OUT = [{"prompt": "Why is it so?"}, {"prompt": "Name a bird."}, {"prompt": "Tea?"}]


def test_the_budget_keeps_the_best_score_inside_it() -> None:
    budget = KLBudget(limit=2.0)
    assert budget.record(0, score=1.0, kl=0.0)
    assert not budget.record(1, score=0.5, kl=1.0)
    assert budget.record(2, score=3.0, kl=2.0) and not budget.spent
    assert not budget.record(3, score=9.0, kl=2.1)
    assert budget.spent and (budget.best_step, budget.best_score) == (2, 3.0)


def test_a_kl_budget_ends_training_and_keeps_the_best_policy_inside(
    tiny_base: Path, make: Make, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"kl_budget": 0.5, "eval_steps": 1, "save_steps": 1, "kl_coef": 0.0}
    settings |= {"learning_rate": 5e-3, "updates": 30, "num_ppo_epochs": 4}
    whole = make(load(tiny_base), eval_dataset=HELD_OUT, **settings)
    whole.train()
    measured = {r["step"]: r for r in whole.state.log_history if "eval_kl" in r}
    last = max(measured)
    assert whole.state.global_step == last < 30 and measured[last]["eval_kl"] > 0.5
    inside = {step: row for step, row in measured.items() if row["eval_kl"] <= 0.5}
    best = max(inside, key=lambda step: (inside[step]["eval_score"], -step))
    summary = whole.summary()
    assert summary["kept_step"] == best  # and the figures are that policy's
    assert summary["eval_score"] == inside[best]["eval_score"]
    assert summary["kl_per_sequence"] == inside[best]["eval_kl"]
    assert whole.evaluate()["eval_score"] == inside[best]["eval_score"]  # it is the policy now
    folder = tmp_path / "run" / "checkpoints"
    assert [p.name for p in folder.glob("best-*")] == [f"best-{best}"]
    # The same from a process that was stopped on the way, and once more when all is done.
    part = {**settings, "updates": last - 1}
    make(load(tiny_base), eval_dataset=HELD_OUT, folder="parts", **part).train()
    for _ in range(2):
        rest = make(load(tiny_base), eval_dataset=HELD_OUT, folder="parts", **settings)
        rest.train(resume_from_checkpoint=True)
        assert rest.summary()["kept_step"] == best
        assert torch.equal(weights(rest.backbone, "policy"), weights(whole.backbone, "policy"))


def test_the_best_policy_can_be_the_one_that_the_judge_likes(tiny_base: Path, make: Make) -> None:
    """The judge likes what the reward does not, so that the first measurement is its best."""

    def shortness(completions: list[str], **_: Any) -> list[float]:
        return [-float(len(text)) for text in completions]

    settings: dict[str, Any] = {"kl_budget": 1e3, "eval_steps": 1, "save_steps": 1, "updates": 4}
    settings |= {"learning_rate": 2e-2, "eval_dataset": HELD_OUT}
    by_judge = {"keep_best_by": "judge", "judge_funcs": [shortness]}
    trainer = make(load(tiny_base), **settings, **by_judge)
    trainer.train()
    judged = {r["step"]: r["eval_judge"] for r in rows_of(trainer) if "eval_judge" in r}
    best = max(judged, key=lambda step: (judged[step], -step))
    assert trainer.summary()["kept_step"] == best
    assert trainer.evaluate()["eval_judge"] == judged[best]
    with pytest.raises(UserError, match="resume it with keep_best_by=judge"):
        make(load(tiny_base), **settings).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="keep_best_by judge needs a judge: give judge_funcs"):
        make(load(tiny_base), **settings, keep_best_by="judge")
    with pytest.raises(ValueError, match="inside a KL budget, and without one the last policy"):
        make(load(tiny_base), **(settings | by_judge | {"kl_budget": None}))


def test_a_measurement_is_due_where_the_kl_has_grown(tmp_path: Path) -> None:
    def due(step: int, kl: float, measured: list[float]) -> bool:
        log: list[dict[str, Any]] = [{"eval_kl": value} for value in measured]
        return heldout.is_due(args, step, kl, [{"kl": 9.0}, *log])

    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, updates=7, eval_steps=5)
    assert [due(step, 99.0, []) for step in range(1, 8)] == [step in (5, 7) for step in range(1, 8)]
    args.eval_kl_steps = 1.5
    assert due(5, 0.0, [0.0]) and due(7, 0.0, [0.0])
    assert not due(1, 1.4, [0.0]) and due(1, 1.5, [0.0])
    assert not due(2, 2.9, [0.0, 1.6, 1.2]) and due(2, 3.1, [0.0, 1.6, 1.2])


def test_measuring_changes_nothing_in_the_training(tiny_base: Path, make: Make) -> None:
    plain = make(load(tiny_base), folder="plain", updates=3)
    plain.train()
    looked = make(load(tiny_base), folder="looked", updates=3, eval_dataset=HELD_OUT, eval_steps=1)
    looked.train()
    rows = [row for row in rows_of(looked) if "eval_score" not in row]
    assert rows == rows_of(plain) and len(rows_of(looked)) == 7


def test_a_budget_needs_held_out_prompts(tiny: Backbone, make: Make) -> None:
    with pytest.raises(ValueError, match="kl_budget needs held-out prompts: give eval_dataset"):
        make(tiny, kl_budget=1.0)
    with pytest.raises(ValueError, match="eval_kl_steps needs held-out prompts"):
        make(tiny, eval_kl_steps=1.0)


def test_a_raised_budget_goes_on_where_the_smaller_one_ended(
    tiny_base: Path, make: Make, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"eval_steps": 1, "save_steps": 1, "learning_rate": 2e-2}
    first = make(load(tiny_base), eval_dataset=HELD_OUT, kl_budget=1e-3, updates=6, **settings)
    first.train()
    assert first.state.global_step < 6
    second = make(load(tiny_base), eval_dataset=HELD_OUT, kl_budget=1e3, updates=6, **settings)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 6


def test_a_torn_best_policy_is_told(tiny_base: Path, make: Make, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"eval_steps": 1, "kl_budget": 1e3, "updates": 2}
    trainer = make(load(tiny_base), eval_dataset=HELD_OUT, **settings)
    trainer.train()
    (best,) = (tmp_path / "run" / "checkpoints").glob("best-*")
    (best / "policy" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="best policy inside the KL budget can't be read"):
        checkpoint.load_best(trainer)


def test_a_data_set_is_held_out_and_a_judge_may_be_silent(tiny: Backbone, make: Make) -> None:
    def seldom(prompts: list[str], **_: Any) -> list[float | None]:
        return [3.0 if prompt == "Tea?" else None for prompt in prompts]

    trainer = make(tiny, eval_dataset=Dataset.from_list(HELD_OUT), rollout_batch_size=2)
    trainer.judges = [seldom, seldom]
    found = trainer.evaluate()
    assert found["eval_judge"] == 6.0 and found["eval_judge/seldom-2"] == 3.0
    trainer.judges = [lambda prompts, **_: [None] * len(prompts)]
    with pytest.raises(UserError, match="None for every held-out answer"):
        trainer.evaluate()


def test_what_is_no_reward_is_refused(tiny: Backbone, make: Make) -> None:
    with pytest.raises(ValueError, match="load_classifier"):
        make(tiny, reward_funcs="org/model")


def test_the_value_s_shape_cannot_change_on_the_way(tiny_base: Path, make: Make) -> None:
    make(load(tiny_base), updates=1).train()
    with pytest.raises(UserError, match="value_adapter=True, which can't change"):
        make(load(tiny_base), updates=2, value_adapter=False).train(resume_from_checkpoint=True)


def test_adam_has_the_epsilon_of_ppo(tiny: Backbone, make: Make) -> None:
    for optimizer in make(tiny).learner.optimizers.values():
        assert [group["eps"] for group in optimizer.param_groups] == [1e-5]


# ---- torn checkpoints


@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "list"])
def test_a_torn_checkpoint_is_passed_over(
    tiny_base: Path, make: Make, tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"save_steps": 1, "max_new_tokens": 3}
    straight = make(load(tiny_base), folder="whole", updates=4, **settings)
    straight.train()
    make(load(tiny_base), folder="torn", updates=3, **settings).train()
    newest = tmp_path / "torn" / "checkpoints" / "checkpoint-3"
    victim = newest / {"list": "files.json"}.get(harm, "policy/adapter_model.safetensors")
    content = bytearray(victim.read_bytes())
    content[-5] ^= 1
    if harm == "gone":
        victim.unlink()
    else:
        victim.write_bytes(content if harm == "flip" else content[: len(content) // 2])
    assert checkpoints.newest_intact(newest.parent) == newest.with_name("checkpoint-2")
    second = make(load(tiny_base), folder="torn", updates=4, **settings)
    second.train(resume_from_checkpoint=True)
    assert f"The checkpoint {newest} is skipped" in capsys.readouterr().err
    assert rows_of(second) == rows_of(straight)
