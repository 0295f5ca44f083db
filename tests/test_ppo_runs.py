"""A whole run of PPO: callbacks, log, the price of KL, checkpoints and resuming."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from trl.trainer.base_trainer import _BaseTrainer

from lorarlhf.backbone.base import Backbone
from lorarlhf.ppo.kl import KLControl
from lorarlhf.runtime.errors import UserError
from tests.ppo_runs import Make, load, rows_of, weights
from tests.ppo_runs import make as make  # a fixture

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
    assert second.scale.state_dict() == first.scale.state_dict()
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
