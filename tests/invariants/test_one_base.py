"""One copy of the base in memory through all stages of a run, and a second one would be seen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.trainer import PPOTrainer
from lorarlhf.runtime.run import Run
from lorarlhf.stages.ditto import DittoSettings, train_ditto
from lorarlhf.stages.dpo_orpo import DirectSettings, train_direct
from lorarlhf.stages.kto import KTOSettings, train_kto
from lorarlhf.stages.reward_model import RewardSettings, train_reward_model
from lorarlhf.stages.sft import SFTSettings, train_sft

THINGS = ["fish", "bird", "tree", "colour", "town", "river", "drink", "tool", "game", "herb"]
DEMONSTRATIONS = [{"prompt": f"Name a {x}.", "completion": f"A good {x}."} for x in THINGS]
PREFERENCES = [
    {"prompt": row["prompt"], "chosen": row["completion"], "rejected": "No, not now."}
    for row in DEMONSTRATIONS
]
SMALL = {"epochs": 1.0, "batch_size": 4, "micro_batch_size": 2}


def load(folder: Path, bits: int) -> Backbone:
    return Backbone.load(str(folder), bits=bits, adapter_layers=2, lora_rank=4)


def run_ppo(backbone: Backbone, folder: Path) -> None:
    args = PPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        disable_tqdm=True,
        updates=2,
        rollout_batch_size=4,
        micro_batch_size=2,
        max_new_tokens=4,
        critic_warmup=0,
    )
    rows = [{"prompt": row["prompt"]} for row in DEMONSTRATIONS]
    PPOTrainer(backbone, args, rows).train()


def stages(backbone: Backbone, folder: Path) -> dict[str, Callable[[], Any]]:
    """Every stage of a whole run, in an order that builds on what came before."""

    def direct(method: str) -> Callable[[], Any]:
        run = Run(folder / method, method, {})
        return lambda: train_direct(backbone, PREFERENCES, run, method, DirectSettings(**SMALL))

    def kto() -> Any:
        return train_kto(
            backbone, PREFERENCES, Run(folder / "kto", "kto", {}), KTOSettings(**SMALL)
        )

    def ditto() -> Any:
        settings = DittoSettings(rounds=1, steps=1, answers=1, max_new_tokens=4, batch_size=4)
        return train_ditto(backbone, DEMONSTRATIONS, Run(folder / "ditto", "ditto", {}), settings)

    def supervised() -> Any:
        return train_sft(backbone, DEMONSTRATIONS, Run(folder, "sft", {}), SFTSettings(**SMALL))

    def reward() -> Any:
        run = Run(folder / "reward", "reward", {})
        return train_reward_model(backbone, PREFERENCES, run, RewardSettings(**SMALL))

    return {
        "sft": supervised,
        "reward": reward,
        "ppo": lambda: run_ppo(backbone, folder / "ppo"),
        "dpo": direct("dpo"),
        "orpo": direct("orpo"),
        "kto": kto,
        "ditto": ditto,
        "sft once more": supervised,
    }


@pytest.fixture
def odd_base(make_base: Callable[..., Path]) -> Path:
    """A base of sizes that no other test uses, so that what those left in memory cannot count."""
    return make_base(intermediate_size=192, hidden_size=128)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 16])
def test_there_is_one_copy_after_every_stage(odd_base: Path, tmp_path: Path, bits: int) -> None:
    backbone = load(odd_base, bits)
    assert backbone.footprint.copies() == 1
    storages = {
        name: p.untyped_storage().data_ptr()
        for name, p in backbone.model.named_parameters()
        if "lora_" not in name
    }
    size = backbone.footprint.bytes()
    for name, stage in stages(backbone, tmp_path).items():
        stage()
        assert backbone.footprint.copies() == 1, name
    now = dict(backbone.model.named_parameters())
    assert {name: now[name].untyped_storage().data_ptr() for name in storages} == storages
    assert backbone.footprint.bytes() == size


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_second_copy_is_seen(odd_base: Path, bits: int) -> None:
    backbone = load(odd_base, bits)
    assert backbone.footprint.copies() == 1
    second = load(odd_base, bits)
    assert backbone.footprint.copies() == 2
    del second
    assert backbone.footprint.copies() == 1


def test_a_copy_of_one_layer_is_seen(odd_base: Path) -> None:
    backbone = load(odd_base, 16)
    copied = torch.nn.Parameter(backbone.decoder.layers[0].mlp.up_proj.weight.clone())
    assert backbone.footprint.copies() == 2
    del copied
    assert backbone.footprint.copies() == 1


def test_heads_and_adapters_do_not_count(odd_base: Path) -> None:
    backbone = load(odd_base, 16)
    for role in ("reference", "reward", "value"):
        backbone.add_role(role)
    assert backbone.footprint.copies() == 1
