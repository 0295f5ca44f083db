"""Cards without bfloat16 compute in float16: losses are scaled, so that small gradients survive."""

import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorarlhf.backbone import roles
from lorarlhf.backbone.base import Backbone
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.health import diagnose
from lorarlhf.ppo.learner import Learner
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.run import Run
from lorarlhf.stages.callbacks import RunCallback
from lorarlhf.stages.reward_model import RewardSettings, train_reward_model
from lorarlhf.stages.rloo import train_rloo
from lorarlhf.stages.sft import SFTSettings, train_sft
from lorarlhf.stages.trl.arguments import scale_losses
from tests import test_processes as together
from tests.ppo_runs import PROMPTS, Make, length_reward, prepared, rows_of, weights
from tests.ppo_runs import make as make  # a fixture
from tests.test_stages import DEMONSTRATIONS, PREFERENCES, train

Fill = Callable[..., None]
START = 2.0**16  # torch's first scale


def load(folder: Path, dtype: str = "float16", bits: int = 16) -> Backbone:
    return Backbone.load(str(folder), bits=bits, compute_dtype=dtype, adapter_layers=2, lora_rank=4)


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


# ---- PPO


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


# ---- the stages that TRL runs


@pytest.mark.parametrize("method", ["sft", "dpo", "orpo"])
@pytest.mark.parametrize("bits", [4, 16])
def test_trls_stages_learn_and_scale_their_losses(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, bits: int
) -> None:
    trainers = noted_trainers(monkeypatch, "stages.sft" if method == "sft" else "stages.direct")
    backbone = load(tiny_base, bits=bits)
    summary = train(method, backbone, Run(tmp_path / "run", method, {"seed": 1}), epochs=6)
    assert summary["loss_last"] < 0.8 * summary["loss_first"]
    scaled_to_the_end(trainers)
    assert {p.dtype for p in backbone.parameters_of("policy")} == {torch.float32}


def test_the_reward_stage_learns_and_scales_its_loss(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = noted_trainers(monkeypatch, "stages.reward_model")
    backbone = load(tiny_base, bits=4)
    rows = [row | {"prompt": f"{row['prompt']} {n}"} for n in range(4) for row in PREFERENCES]
    settings = RewardSettings(epochs=3, learning_rate=5e-3)
    summary = train_reward_model(backbone, rows, Run(tmp_path, "reward", {"seed": 1}), settings)
    assert summary["heldout_accuracy"] == 1.0
    scaled_to_the_end(trainers)
    assert {p.dtype for p in backbone.parameters_of("reward")} == {torch.float32}


def test_rloo_finds_its_scale_without_an_alarm(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**40))
    trainers = noted_trainers(monkeypatch, "ppo.rloo")
    backbone = load(tiny_base)
    args = PPOConfig(
        output_dir=str(tmp_path), use_cpu=True, updates=2, rollout_batch_size=4, max_new_tokens=4
    )
    run = Run(tmp_path, "ppo", {"seed": 1})
    summary = train_rloo(backbone, [{"prompt": p} for p in PROMPTS], run, args, [length_reward])
    assert summary["updates"] == 2 and "not_a_number" not in summary["alarms"]
    assert trainers[0].accelerator.scaler.get_scale() == 2.0 ** (40 - 8)  # in none of the 8 steps
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["policy_loss"] is not None and "grad_norm_policy" not in rows[0]


def noted_trainers(monkeypatch: pytest.MonkeyPatch, module: str) -> list[Any]:
    """The trainers that a stage hands to `scale_losses`."""
    seen: list[Any] = []

    def note(trainer: Any) -> None:
        scale_losses(trainer)
        seen.append(trainer)

    monkeypatch.setattr(f"lorarlhf.{module}.scale_losses", note)
    return seen


def scaled_to_the_end(trainers: list[Any]) -> None:
    (trainer,) = trainers
    scale = trainer.accelerator.scaler.state_dict()
    assert trainer.args.fp16 and trainer.optimizer.scaler is trainer.accelerator.scaler
    assert START / 2**6 <= scale["scale"] <= START  # it was asked at each step ...
    assert scale["_growth_tracker"] > 0  # ... and the last steps were taken


def test_other_dtypes_of_the_stages_scale_nothing(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = noted_trainers(monkeypatch, "stages.sft")
    train("sft", tiny, Run(tmp_path / "run", "sft", {"seed": 1}), epochs=1)
    assert trainers[0].accelerator.scaler is None


def test_a_resumed_stage_keeps_its_scale(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It grows after every second good step: the count of them matters as well.
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**10, growth_interval=2)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    trainers = noted_trainers(monkeypatch, "stages.sft")
    settings = SFTSettings(epochs=5, batch_size=4, learning_rate=5e-3, save_steps=1)
    backbones = []
    for resume in (False, True):
        backbones.append(load(tiny_base))
        run = Run(tmp_path, "sft", {"seed": 1})
        train_sft(backbones[-1], DEMONSTRATIONS, run, settings, resume=resume)
        if not resume:
            shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-5")
    whole, rest = (trainer.accelerator.scaler.state_dict() for trainer in trainers)
    assert whole == rest and (whole["scale"], whole["_growth_tracker"]) == (2.0**12, 1)
    assert torch.equal(*(weights(backbone, "policy") for backbone in backbones))


# ---- a base whose numbers are too large for float16


@pytest.fixture
def large_base(make_base: Callable[..., Path]) -> Path:
    folder = make_base()
    tensors = load_file(folder / "model.safetensors")
    for name, size in {"gate_proj": 30, "up_proj": 30, "down_proj": 3000}.items():
        for weight in (w for key, w in tensors.items() if name in key):
            weight *= size
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_base_that_overflows_is_refused(large_base: Path) -> None:
    for bits in (4, 16):
        with pytest.raises(UserError, match="overflows in float16.*--set compute_dtype=float32"):
            load(large_base, bits=bits)
    backbone = load(large_base, "float32")
    assert backbone.forward.keeps_trunk and backbone.forward.packs


def test_a_stage_whose_loss_stays_no_number_ends_with_advice(
    large_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorarlhf.backbone.trunk.check_range", lambda *_: None)
    backbone = load(large_base)
    with pytest.raises(UserError, match="is not a number.*--set compute_dtype=float32"):
        train("sft", backbone, Run(tmp_path, "sft", {"seed": 1}), epochs=9)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [None, None]  # not 0, and not to the end


@pytest.mark.parametrize(
    ("losses", "ends"),
    [
        ([1.0, math.nan, math.inf, math.nan], True),
        ([math.nan, math.nan, 1.0, math.nan, math.nan], False),
        ([math.nan], True),  # all of a short run
        ([1.0, math.nan], False),
        ([], False),
    ],
)
def test_three_lines_without_a_loss_end_a_run(
    losses: list[float], ends: bool, tmp_path: Path
) -> None:
    callback = RunCallback(Run(tmp_path, "sft", {}), "supervised tuning")
    state: Any = SimpleNamespace(global_step=1, is_world_process_zero=False)  # all processes end
    args: Any = SimpleNamespace(fp16=False)

    def log() -> None:
        for loss in losses:
            callback.on_log(args, state, None, {"loss": loss})
        callback.on_log(args, state, None, {"train_runtime": 1.0, "train_loss": 1.0})

    if ends:
        with pytest.raises(UserError, match="supervised tuning is not a number.*learning_rate"):
            log()
    else:
        log()
