"""Memory that runs out: forwards are halved, the step stays the same, nothing is lost.

A CPU kills a process that takes too much, so a forward of too many tokens raises here what a card
raises.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.trainer import PPOTrainer
from lorarlhf.runs import Run
from lorarlhf.stages.careful import LongestFirst
from lorarlhf.stages.direct import DirectSettings, train_direct
from lorarlhf.stages.reward_model import RewardSettings, train_reward_model
from lorarlhf.stages.sft import SFTSettings, train_sft

PROMPTS = [{"prompt": text} for text in ("Hi?", "Why is that?", "Name a bird.", "And then?")]
PAIRS = [
    {"prompt": f"What is {n}?", "chosen": "A sum. " * (n + 1), "rejected": "No. " * (5 - n)}
    for n in range(4)
]
DEMOS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]


@contextmanager
def short_of_memory(backbone: Backbone, most: int) -> Iterator[list[int]]:
    """Layers that refuse more than `most` tokens in a forward that trains; gives those refused."""
    refused: list[int] = []

    def refuse(_layer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        tokens = states.shape[0] * states.shape[1]
        if torch.is_grad_enabled() and tokens > most:
            refused.append(tokens)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    hook = backbone.decoder.layers[-1].register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield refused
    finally:
        hook.remove()


def weights(backbone: Backbone, role: str) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in backbone.parameters_of(role)])


def fresh(tiny_base: Path) -> Backbone:
    return Backbone.load(str(tiny_base), bits=16, compute_dtype="float32", lora_rank=4)


# ---- PPO


def ppo(backbone: Backbone, folder: Path, **changes: Any) -> PPOTrainer:
    settings: dict[str, Any] = {"updates": 2, "rollout_batch_size": 4, "micro_batch_size": 4}
    settings |= {"max_new_tokens": 6, "critic_warmup": 0, "learning_rate": 1e-2} | changes
    args = PPOConfig(output_dir=str(folder), **settings)
    return PPOTrainer(
        backbone, args, PROMPTS, lambda completions, **_: [len(c) for c in completions]
    )


def test_ppo_goes_on_with_half_and_takes_the_same_steps(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ppo(fresh(tiny_base), tmp_path / "plain")
    plain.train()
    short = ppo(fresh(tiny_base), tmp_path / "short")
    with short_of_memory(short.backbone, most=40) as refused:
        short.train()
    assert refused and short.args.micro_batch_size < 4 and plain.args.micro_batch_size == 4
    assert "Out of memory: from here on micro_batch_size is 2" in capsys.readouterr().err
    for role in ("policy", "value"):
        ours, theirs = weights(short.backbone, role), weights(plain.backbone, role)
        assert torch.allclose(ours, theirs, atol=2e-5), role
    kept = [row["score"] for row in short.state.log_history if "score" in row]
    assert kept == [row["score"] for row in plain.state.log_history if "score" in row]


def test_memory_that_runs_out_in_the_middle_loses_no_rollout(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first update fits, as cards do whose memory others fill later."""
    plain = ppo(fresh(tiny_base), tmp_path / "plain")
    plain.train()
    sampled: list[int] = []
    short = ppo(fresh(tiny_base), tmp_path / "short")
    own = short.sampling

    def counted(*args: Any) -> Any:
        sampled.append(1)
        return own(*args)

    short.sampling = counted
    own_step = short.learner._step_policy
    steps: list[int] = []

    def fill_up(rollout: Any, place: int) -> Any:
        steps.append(place)
        most = 24 if len(steps) > 5 else 10**6  # in the second of four epochs of the second update
        with short_of_memory(short.backbone, most):
            return own_step(rollout, place)

    monkeypatch.setattr(short.learner, "_step_policy", fill_up)
    short.train()
    assert short.args.micro_batch_size < 4 and len(sampled) == 2
    ours, theirs = weights(short.backbone, "policy"), weights(plain.backbone, "policy")
    assert torch.allclose(ours, theirs, atol=2e-5)


def test_the_largest_step_comes_first(tiny_base: Path, tmp_path: Path) -> None:
    trainer = ppo(fresh(tiny_base), tmp_path, micro_batch_size=2, max_new_tokens=16)
    before = weights(trainer.backbone, "policy"), weights(trainer.backbone, "value")
    seen: list[int] = []
    own = trainer.update

    def look() -> Any:
        seen.append(-1)
        return own()

    trainer.update = look  # type: ignore[method-assign]
    layer = trainer.backbone.decoder.layers[-1]
    hook = layer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0].shape[1]) if torch.is_grad_enabled() else None,
        with_kwargs=True,
    )
    trainer._rehearse()
    hook.remove()
    lengths = sorted(len(trainer.backbone.encode(row["prompt"])) for row in PROMPTS)[-2:]
    assert seen and max(seen) <= sum(lengths) + 2 * 16
    assert min(seen) > 2 * 16  # both answers at full length
    assert torch.equal(before[0], weights(trainer.backbone, "policy"))
    assert torch.equal(before[1], weights(trainer.backbone, "value"))
    assert all(p.grad is None for p in trainer.backbone.model.parameters())


def test_one_sequence_that_does_not_fit_is_an_error(tiny_base: Path, tmp_path: Path) -> None:
    trainer = ppo(fresh(tiny_base), tmp_path)
    with short_of_memory(trainer.backbone, most=3), pytest.raises(torch.OutOfMemoryError):
        trainer.train()
    assert trainer.args.micro_batch_size == 1


def test_other_errors_are_not_taken_for_it(tiny_base: Path, tmp_path: Path) -> None:
    trainer = ppo(fresh(tiny_base), tmp_path)

    def broken(*_: Any) -> None:
        raise RuntimeError("shapes do not fit")

    hook = trainer.backbone.decoder.layers[-1].register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        trainer.train()
    hook.remove()
    assert trainer.args.micro_batch_size == 4


# ---- TRL's stages


def _sft(backbone: Backbone, run: Run, micro: int = 4) -> dict[str, Any]:
    return train_sft(
        backbone, DEMOS, run, SFTSettings(epochs=2, batch_size=4, micro_batch_size=micro)
    )


def _dpo(backbone: Backbone, run: Run, micro: int = 4) -> dict[str, Any]:
    settings = DirectSettings(epochs=2, batch_size=4, micro_batch_size=micro)
    return train_direct(backbone, PAIRS, run, "dpo", settings)


def _orpo(backbone: Backbone, run: Run, micro: int = 2) -> dict[str, Any]:
    settings = DirectSettings(epochs=2, batch_size=4, micro_batch_size=micro)
    return train_direct(backbone, PAIRS, run, "orpo", settings)


def _reward(backbone: Backbone, run: Run, micro: int = 4) -> dict[str, Any]:
    many = [row | {"prompt": f"{row['prompt']} {i}"} for row in PAIRS for i in range(3)]
    settings = RewardSettings(
        learning_rate=1e-3, batch_size=4, micro_batch_size=micro, evaluations=1
    )
    return train_reward_model(backbone, many, run, settings, eval_rows=PAIRS)


@pytest.mark.parametrize(
    ("stage", "role", "most", "micro"),
    [
        (_sft, "policy", 100, 4),
        (_dpo, "policy", 200, 4),
        # ORPO's loss is a mean over the tokens of a forward: like the smaller micro-batch.
        (_orpo, "policy", 100, 1),
        (_reward, "reward", 120, 4),
    ],
)
def test_a_stage_of_trl_goes_on_in_pieces(
    stage: Any,
    role: str,
    most: int,
    micro: int,
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = fresh(tiny_base)
    whole = stage(plain, Run(tmp_path / "plain", role, {"seed": 0}), micro)
    short = fresh(tiny_base)
    with short_of_memory(short, most) as refused:
        parts = stage(short, Run(tmp_path / "short", role, {"seed": 0}))
    assert refused and "Out of memory: from here on" in capsys.readouterr().err
    assert torch.allclose(weights(short, role), weights(plain, role), atol=2e-5)
    for name, value in whole.items():
        assert parts[name] == pytest.approx(value, abs=2e-3), name


def test_the_longest_row_is_the_first() -> None:
    lengths = [3, 9, 4, 9, 1, 2, 7]
    order = LongestFirst(lengths, seed=1)
    first = list(order)
    assert sorted(first) == list(range(7)) and lengths[first[0]] == 9
    assert list(order) == first and list(LongestFirst(lengths, seed=2)) != first
    order.set_epoch(1)
    second = list(order)
    assert sorted(second) == list(range(7)) and second != first
