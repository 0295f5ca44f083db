"""PPO in float16: scaled losses give float32's gradients, and an overflow moves nothing."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf.backbone import generation, roles
from lorarlhf.backbone.kernels.merged import keep_merged
from lorarlhf.ppo.health import diagnose
from lorarlhf.ppo.learner import Learner
from tests import test_processes as together
from tests.ppo_runs import Make, prepared, rows_of, weights
from tests.ppo_runs import make as make  # a fixture
from tests.test_float16 import START, load

Fill = Callable[..., None]


def gradients(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[torch.Tensor]]:
    """What each role's optimizer is handed for its adapter at its steps."""
    seen: dict[str, list[torch.Tensor]] = {"policy": [], "value": []}
    for role, optimizer in learner.optimizers.items():

        def note(role: str = role) -> None:
            own = roles.adapter_parameters(learner.backbone.model, roles.ADAPTERS[role]).values()
            grads = [p.grad for p in own if p.grad is not None]
            seen[role].append(torch.cat([grad.flatten() for grad in grads]))

        monkeypatch.setattr(optimizer, "step", note)
    return seen


@pytest.mark.parametrize("size", [1.0, 1e-6])
@pytest.mark.parametrize("scaled", [True, False])
def test_gradients_too_small_for_float16_are_those_of_float32(
    tiny_base: Path,
    make: Make,
    randomise: Fill,
    monkeypatch: pytest.MonkeyPatch,
    size: float,
    scaled: bool,
) -> None:
    """With losses so small that most gradients are under float16's smallest number, 6e-8."""
    # Both are to sample the same answers, and merged weights round differently in float16.
    monkeypatch.setattr(generation, "keep_merged", lambda layers, room: keep_merged([], room))
    found = {}
    for dtype in ("float32", "float16"):
        backbone = load(tiny_base, dtype)
        randomise(backbone, "policy", seed=1)
        trainer = make(backbone, num_ppo_epochs=1, folder=dtype)
        randomise(backbone, "value", seed=2)
        learner, rollout = prepared(trainer)
        rollout.advantages *= size
        rollout.returns = rollout.values + size * rollout.returns
        if not scaled and dtype == "float16":
            for scaler in learner.scalers.values():
                scaler._enabled = False
        seen = gradients(learner, monkeypatch)
        learner.run_epochs(rollout, step=0, seed=0)
        found[dtype] = {role: grads[0] for role, grads in seen.items()}, rollout.completions
    (exact, answers), (ours, same) = found["float32"], found["float16"]
    assert [c.ids for c in answers] == [c.ids for c in same]
    for role, wanted in exact.items():
        off = ((ours[role] - wanted).norm() / wanted.norm()).item()
        lost = (wanted.ne(0) & ours[role].eq(0)).float().mean().item()
        if size == 1 or scaled:
            assert off < 0.02 and lost < 0.01
        else:
            assert off > 0.5 and lost > 0.5


def test_an_overflow_moves_nothing_and_halves_the_scale(
    tiny_base: Path, make: Make, randomise: Fill
) -> None:
    backbone = load(tiny_base)
    trainer = make(backbone, num_ppo_epochs=1)
    randomise(backbone, "value")  # the gradient of a head of zeros can't overflow
    learner, rollout = prepared(trainer)
    before = {role: weights(backbone, role) for role in ("policy", "value")}
    large = rollout.advantages * 1e6, rollout.returns * 1e9
    fair = rollout.advantages, rollout.returns
    rollout.advantages, rollout.returns = large
    stats = learner.run_epochs(rollout, step=0, seed=0)
    for role, kept in before.items():
        assert torch.equal(weights(backbone, role), kept)
        assert stats[f"overflows_{role}"] == 1 and stats[f"loss_scale_{role}"] == START / 2
        assert f"grad_norm_{role}" not in stats and not learner.optimizers[role].state
        assert all(p.grad is None for p in backbone.parameters_of(role))
    assert (stats["policy_steps"], stats["skipped_steps"]) == (0, 0)
    assert all(math.isfinite(value) for value in stats.values())
    rollout.advantages, rollout.returns = fair
    stats = learner.run_epochs(rollout, step=0, seed=0)
    for role, kept in before.items():
        assert not torch.equal(weights(backbone, role), kept)
        assert stats[f"overflows_{role}"] == 0 and stats[f"loss_scale_{role}"] == START / 2
    assert stats["policy_steps"] == 1 and stats["grad_norm_policy"] > 0


def test_finding_the_scale_is_no_alarm(
    tiny_base: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**26))
    trainer = make(load(tiny_base), updates=6, num_ppo_epochs=4, critic_warmup=1, kl_coef=0.0)
    trainer.train()
    rows = trainer.state.log_history
    for role in ("policy", "value"):
        own = [row[f"overflows_{role}"] for row in rows if f"overflows_{role}" in row]
        assert sum(own) >= 3 and sum(own[3:]) <= 1
        assert rows[-1][f"loss_scale_{role}"] == 2.0**26 / 2 ** sum(own)
    assert "loss_scale_policy" in rows[0] and "overflows_policy" not in rows[0]  # the warm-up
    assert [row["skipped_steps"] for row in rows[1:]] == [0] * 5
    assert {finding.alarm.name for finding in diagnose(rows)} <= {"useless_value"}


def test_what_no_scale_can_mend_is_skipped_and_told(tiny_base: Path, make: Make) -> None:
    learner, rollout = prepared(make(load(tiny_base), num_ppo_epochs=4))
    kept = rollout.advantages.clone(), rollout.returns.clone()
    rollout.advantages[0, 0] = rollout.returns[0, 0] = float("nan")
    stats = learner.run_epochs(rollout, step=0, seed=0)
    # A loss that is no number says nothing of the scale.
    assert stats["skipped_steps"] == 4 and stats["loss_scale_policy"] == START
    assert stats["overflows_policy"] == 0 and not math.isfinite(stats["grad_norm_policy"])
    assert stats["overflows_value"] == 0 and not math.isfinite(stats["grad_norm_value"])
    # A finite loss whose gradient overflows without any scale, too, once that has been found.
    learner.args.num_ppo_epochs = 20
    rollout.advantages, rollout.returns = kept[0] * 1e12, kept[1]
    stats = learner.run_epochs(rollout, step=0, seed=0)
    assert (stats["overflows_policy"], stats["skipped_steps"]) == (16, 4)
    assert stats["overflows_value"] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_dtypes_scale_nothing(tiny_base: Path, make: Make, dtype: str) -> None:
    trainer = make(load(tiny_base, dtype), updates=1)
    loss = torch.ones((), requires_grad=True)
    for scaler in trainer.learner.scalers.values():
        assert not scaler.is_enabled() and scaler.scale(loss) is loss
    trainer.train()
    assert [name for name in trainer.state.log_history[0] if "scale" in name] == []
    assert [name for name in trainer.state.log_history[0] if "overflow" in name] == []
    file = Path(str(trainer.args.output_dir)) / "checkpoints" / "checkpoint-1" / "state.json"
    assert json.loads(file.read_text())["loss_scale"] == {"policy": {}, "value": {}}


def test_a_resumed_run_keeps_its_scales(
    tiny_base: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Found in the first update, and grown in the third: the count of good steps matters as well.
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**27, growth_interval=5)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    settings: dict[str, Any] = {"save_steps": 1, "num_minibatches": 2}
    whole = make(load(tiny_base), folder="whole", updates=4, **settings)
    whole.train()
    make(load(tiny_base), folder="parts", updates=2, **settings).train()
    rest = make(load(tiny_base), folder="parts", updates=4, **settings)
    rest.train(resume_from_checkpoint=True)
    assert rows_of(rest) == rows_of(whole)
    for role, ours in rest.learner.scalers.items():
        assert ours.state_dict() == whole.learner.scalers[role].state_dict()
        assert torch.equal(weights(rest.backbone, role), weights(whole.backbone, role))
        scales = [row[f"loss_scale_{role}"] for row in rest.state.log_history]
        assert scales[0] < 2.0**27 and scales[2:] != [scales[1]] * 2
    # One that another dtype has written has none: the search begins anew.
    make(load(tiny_base, "float32"), folder="other", updates=1, **settings).train()
    other = make(load(tiny_base), folder="other", updates=1, **settings)
    other.train(resume_from_checkpoint=True)
    assert {s.get_scale() for s in other.learner.scalers.values()} == {2.0**27}


@pytest.mark.slow
def test_processes_agree_where_only_one_overflows(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Minibatches of one sequence: the other process has none, and no loss to scale."""
    script = together.SCRIPT.replace('"float32"', '"float16"').replace(
        "micro_batch_size=2, num_minibatches=2", "micro_batch_size=1, num_minibatches=8"
    )
    wild = "if os.environ['RANK'] == '1':\n    plain = objective.policy_loss\n"
    wild += "    objective.policy_loss = lambda a, b, c, d: plain(a, b, c * 1e5, d)\n"
    script = script.replace(
        "base, folder", f"import os\nfrom lorarlhf.ppo import objective\n{wild}base, folder", 1
    )
    monkeypatch.setattr(together, "SCRIPT", script)
    both = together.run(tmp_path / "two", tiny_base, 2, updates=2)
    assert [result["processes"] for result in both] == [2, 2]
    assert both[0]["weights"] == both[1]["weights"]
    row = both[0]["rows"][-2]
    assert row["overflows_policy"] >= 4 and row["policy_steps"] >= 4
    assert row["loss_scale_policy"] == START / 2 ** row["overflows_policy"]
