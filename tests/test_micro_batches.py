"""`micro_batch_size` costs memory and changes no step, in any stage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.trainer import PPOTrainer
from lorarlhf.runtime.run import Run
from lorarlhf.stages.dpo_orpo import DirectSettings, DPOSettings, train_direct
from lorarlhf.stages.kto import KTOSettings, train_kto
from lorarlhf.stages.reward_model import RewardSettings, train_reward_model
from lorarlhf.stages.sft import SFTSettings, train_sft

# Thirteen rows of very different lengths: steps of eight and of five.
PAIRS = [
    {
        "prompt": f"What is {n}?" + " And why is it so?" * (n % 3),
        "chosen": "It is a number." + " Yes, a good one." * (n % 4),
        "rejected": "No." + " I will not say it." * (n % 2),
    }
    for n in range(13)
]
SIZES: dict[str, Any] = {"batch_size": 8, "epochs": 2, "learning_rate": 1e-3, "save_steps": 0}


def sft(backbone: Backbone, run: Run, micro: int) -> dict[str, Any]:
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
    return train_sft(backbone, rows, run, SFTSettings(**SIZES, micro_batch_size=micro))


def messages(backbone: Backbone, run: Run, micro: int) -> dict[str, Any]:
    rows = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["chosen"]},
                {"role": "user", "content": "And else?"},
                {"role": "assistant", "content": row["rejected"]},
            ]
        }
        for row in PAIRS
    ]
    return train_sft(backbone, rows, run, SFTSettings(**SIZES, micro_batch_size=micro))


def dpo(backbone: Backbone, run: Run, micro: int) -> dict[str, Any]:
    settings = DirectSettings(**SIZES, micro_batch_size=micro)
    return train_direct(backbone, PAIRS, run, "dpo", settings)


def dpo_sft(backbone: Backbone, run: Run, micro: int) -> dict[str, Any]:
    settings = DPOSettings(**SIZES, micro_batch_size=micro, sft_weight=1.0, noise=0.1)
    return train_direct(backbone, PAIRS, run, "dpo", settings)


def orpo(backbone: Backbone, run: Run, micro: int) -> dict[str, Any]:
    settings = DirectSettings(**SIZES, micro_batch_size=micro)
    return train_direct(backbone, PAIRS, run, "orpo", settings)


def kto(backbone: Backbone, run: Run, micro: int) -> dict[str, Any]:
    # Good answers alone have a KL with other prompts' answers once they have become likelier.
    settings = SIZES | {"learning_rate": 1e-2, "epochs": 4}
    settings |= {"trl": {"desirable_weight": 9.0, "undesirable_weight": 0.1}}
    own = KTOSettings(**settings, micro_batch_size=max(2, micro))
    summary = train_kto(backbone, PAIRS, run, own)
    log = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert max(row.get("kl", 0.0) for row in log) > 0.1
    return summary


def reward(backbone: Backbone, run: Run, micro: int) -> dict[str, Any]:
    settings = RewardSettings(**SIZES, micro_batch_size=micro, holdout=0.2)
    return train_reward_model(backbone, PAIRS, run, settings)


def ppo(backbone: Backbone, run: Run, micro: int) -> dict[str, Any]:
    args = PPOConfig(
        output_dir=str(run.folder),
        use_cpu=True,
        disable_tqdm=True,
        updates=2,
        rollout_batch_size=8,
        micro_batch_size=micro,
        max_new_tokens=6,
        critic_warmup=0,
        learning_rate=1e-3,
        value_learning_rate=1e-3,
    )
    rows = [{"prompt": row["prompt"]} for row in PAIRS]

    def length(completions: list[str], **columns: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    trainer = PPOTrainer(backbone, args, rows, length)
    trainer.train()
    return {"loss_first": trainer.state.log_history[0]["policy_loss"]}


@pytest.mark.parametrize("train", [sft, messages, dpo, dpo_sft, orpo, kto, reward, ppo])
def test_the_size_of_a_forward_changes_no_step(
    train: Callable[..., dict[str, Any]], tiny_base: Path, tmp_path: Path
) -> None:
    found: list[tuple[dict[str, Any], torch.Tensor]] = []
    for micro in (1, 2, 4, 8):
        backbone = Backbone.load(
            str(tiny_base), bits=16, compute_dtype="float32", adapter_layers=2, lora_rank=4
        )
        summary = train(backbone, Run(tmp_path / str(micro), train.__name__, {"seed": 1}), micro)
        role = "reward" if train is reward else "policy"
        weights = [p.detach().flatten() for p in backbone.parameters_of(role)]
        found.append((summary, torch.cat(weights)))
    (whole, trained), *others = reversed(found)
    assert trained.norm() > 0
    for summary, weights in others:
        for name in ("loss_first", "loss_last", "fit_loss"):
            if name in whole:
                assert summary[name] == pytest.approx(whole[name], abs=1e-5), name
        torch.testing.assert_close(weights, trained, rtol=0, atol=1e-5)
