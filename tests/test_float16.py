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

from lorarlhf.backbone.base import Backbone
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.run import Run
from lorarlhf.stages.callbacks import RunCallback
from lorarlhf.stages.critic_free import train_critic_free
from lorarlhf.stages.inputs import PPOSettings, RewardSpec
from lorarlhf.stages.reward_model import RewardSettings, train_reward_model
from lorarlhf.stages.sft import SFTSettings, train_sft
from lorarlhf.stages.trl.trainer import scale_losses
from tests.ppo_runs import PROMPTS, length_reward, weights
from tests.test_stages import DEMONSTRATIONS, PREFERENCES, train

START = 2.0**16  # torch's first scale


def load(folder: Path, dtype: str = "float16", bits: int = 16) -> Backbone:
    return Backbone.load(str(folder), bits=bits, compute_dtype=dtype, adapter_layers=2, lora_rank=4)


# ---- the stages that TRL runs


@pytest.mark.parametrize("method", ["sft", "dpo", "orpo", "kto"])
@pytest.mark.parametrize("bits", [4, 16])
def test_trls_stages_learn_and_scale_their_losses(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, bits: int
) -> None:
    trainers = noted_trainers(monkeypatch)
    backbone = load(tiny_base, bits=bits)
    summary = train(method, backbone, Run(tmp_path / "run", method, {"seed": 1}), epochs=6)
    assert summary["loss_last"] < 0.8 * summary["loss_first"]
    scaled_to_the_end(trainers)
    assert {p.dtype for p in backbone.parameters_of("policy")} == {torch.float32}


def test_the_reward_stage_learns_and_scales_its_loss(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = noted_trainers(monkeypatch)
    backbone = load(tiny_base, bits=4)
    rows = [row | {"prompt": f"{row['prompt']} {n}"} for n in range(4) for row in PREFERENCES]
    settings = RewardSettings(epochs=3, learning_rate=5e-3)
    summary = train_reward_model(backbone, rows, Run(tmp_path, "reward", {"seed": 1}), settings)
    assert summary["heldout_accuracy"] == 1.0
    scaled_to_the_end(trainers)
    assert {p.dtype for p in backbone.parameters_of("reward")} == {torch.float32}


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_without_a_critic_the_scale_is_found_without_an_alarm(
    algorithm: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**40))
    trainers = noted_trainers(monkeypatch, "stages.critic_free")
    backbone = load(tiny_base)
    args = PPOConfig(
        output_dir=str(tmp_path), use_cpu=True, updates=2, rollout_batch_size=4, max_new_tokens=4
    )
    run = Run(tmp_path, "ppo", {"seed": 1})
    summary = train_critic_free(
        backbone,
        [{"prompt": p} for p in PROMPTS],
        run,
        args,
        RewardSpec([length_reward]),
        PPOSettings(algorithm=algorithm),
    )
    assert summary["updates"] == 2 and "not_a_number" not in summary["alarms"]
    assert trainers[0].accelerator.scaler.get_scale() == 2.0 ** (40 - 8)  # in none of the 8 steps
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["policy_loss"] is not None and "grad_norm_policy" not in rows[0]


def noted_trainers(
    monkeypatch: pytest.MonkeyPatch, module: str = "stages.trl.trainer"
) -> list[Any]:
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
    trainers = noted_trainers(monkeypatch)
    train("sft", tiny, Run(tmp_path / "run", "sft", {"seed": 1}), epochs=1)
    assert trainers[0].accelerator.scaler is None


def test_a_resumed_stage_keeps_its_scale(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It grows after every second good step: the count of them matters as well.
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**10, growth_interval=2)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    trainers = noted_trainers(monkeypatch)
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
