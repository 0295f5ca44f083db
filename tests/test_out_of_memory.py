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
from lorarlhf.backbone.kernels.packing import Pack
from lorarlhf.backbone.oom import batches_by_length, is_out_of_memory
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.rollout import LocalSampler
from lorarlhf.ppo.trainer import PPOTrainer
from lorarlhf.rewards.role import score_answers
from lorarlhf.runtime.run import Run
from lorarlhf.stages.dpo_orpo import DirectSettings, train_direct
from lorarlhf.stages.reward_model import RewardSettings, train_reward_model
from lorarlhf.stages.sft import SFTSettings, train_sft
from lorarlhf.stages.trl.even_steps import LongestFirst, row_length

PROMPTS = [{"prompt": text} for text in ("Hi?", "Why is that?", "Name a bird.", "And then?")]
PAIRS = [
    {"prompt": f"What is {n}?", "chosen": "A sum. " * (n + 1), "rejected": "No. " * (5 - n)}
    for n in range(4)
]
DEMOS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]


@contextmanager
def short_of_memory(backbone: Backbone, most: int, backward: bool = True) -> Iterator[list[int]]:
    """A last layer that refuses more than `most` tokens; gives a list of the refusals.

    Args:
        backward: on the way back, when the layer above it has its gradients already; otherwise in
            every forward, whether it trains or not.
    """
    refused: list[int] = []

    def refuse(_layer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        tokens = states.shape[0] * states.shape[1]
        if (torch.is_grad_enabled() or not backward) and tokens > most:
            if not backward:
                run_out()
            elif states.requires_grad:
                states.register_hook(run_out)

    def run_out(_grad: Any = None) -> None:
        refused.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    hook = backbone.decoder.layers[-1].register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield refused
    finally:
        hook.remove()


def weights(backbone: Backbone, role: str) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in backbone.parameters_of(role)])


def fresh(tiny_base: Path) -> Backbone:
    # Three of four layers, of which PPO trains two and one: what is kept below them is lost when
    # rows are cut anew.
    settings: dict[str, Any] = {"bits": 16, "compute_dtype": "float32", "lora_rank": 4}
    return Backbone.load(str(tiny_base), adapter_layers=3, **settings)


def test_batches_by_length_give_every_row_once_and_stay_small_after_a_refusal() -> None:
    lengths = [5, 1, 4, 2, 3, 9, 8]
    asked: list[list[int]] = []

    def forward(rows: list[int]) -> list[int]:
        asked.append(rows)
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [lengths[i] for i in rows]

    found = list(batches_by_length(lengths, 4, forward))
    assert [rows for rows, _ in found] == [[1, 3], [4, 2], [0, 6], [5]]
    assert [values for _, values in found] == [[1, 2], [3, 4], [5, 8], [9]]
    assert asked[0] == [1, 3, 4, 2] and len(asked) == 5  # one refusal
    assert list(batches_by_length([], 4, forward)) == []


# ---- PPO


def ppo(backbone: Backbone, folder: Path, **changes: Any) -> PPOTrainer:
    settings: dict[str, Any] = {"updates": 2, "rollout_batch_size": 4, "micro_batch_size": 4}
    settings |= {"max_new_tokens": 6, "critic_warmup": 0, "learning_rate": 1e-2} | changes
    args = PPOConfig(output_dir=str(folder), **settings)
    return PPOTrainer(
        backbone, args, PROMPTS, lambda completions, **_: [len(c) for c in completions]
    )


@pytest.mark.parametrize("backward", [True, False])
def test_ppo_goes_on_with_half_and_takes_the_same_steps(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], backward: bool
) -> None:
    plain = ppo(fresh(tiny_base), tmp_path / "plain")
    plain.train()
    short = ppo(fresh(tiny_base), tmp_path / "short")
    with short_of_memory(short.backbone, 40, backward) as refused:
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
    own = short.sampler

    def counted(*args: Any) -> Any:
        sampled.append(1)
        return own(*args)

    short.sampler = counted
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
    sampled: list[int] = []
    own = trainer.update

    def look() -> Any:
        seen.append(-1)
        return own()

    trainer.update = look  # type: ignore[method-assign]
    layer = trainer.backbone.decoder.layers[-1]
    hook = layer.register_forward_pre_hook(
        lambda _, args, kwargs: (
            seen.append(args[0].shape[1])
            if torch.is_grad_enabled()
            else sampled.append(args[0].shape[0])
        ),
        with_kwargs=True,
    )
    trainer._memory_dry_run()
    hook.remove()
    encoded = [trainer.backbone.encode(row["prompt"]) for row in PROMPTS]
    longest = sorted(encoded, key=len)[-2:]
    packed = Pack.of([ids + [0] * 16 for ids in longest], trainer.backbone.device, 10**6)
    shared = sum(map(len, longest)) + 2 * 16 - packed.input_ids.shape[1]
    assert set(seen) == {sum(map(len, longest)) + 2 * 16 - shared}
    assert 4 in sampled  # as many answers as a rollout has were begun
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
    ("stage", "role", "most", "micro", "backward"),
    [
        (_sft, "policy", 100, 4, True),
        (_sft, "policy", 100, 4, False),
        (_dpo, "policy", 200, 4, True),
        (_dpo, "policy", 200, 4, False),
        # ORPO's loss is a mean over the tokens of a forward: like the smaller micro-batch.
        (_orpo, "policy", 100, 1, True),
        # Its evaluations take less than its steps, and have no second try.
        (_reward, "reward", 120, 4, True),
    ],
)
def test_a_stage_of_trl_goes_on_in_pieces(
    stage: Any,
    role: str,
    most: int,
    micro: int,
    backward: bool,
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = fresh(tiny_base)
    whole = stage(plain, Run(tmp_path / "plain", role, {"seed": 0}), micro)
    short = fresh(tiny_base)
    with short_of_memory(short, most, backward) as refused:
        parts = stage(short, Run(tmp_path / "short", role, {"seed": 0}))
    assert refused and "Out of memory: from here on" in capsys.readouterr().err
    assert torch.allclose(weights(short, role), weights(plain, role), atol=2e-5)
    for name, value in whole.items():
        assert parts[name] == pytest.approx(value, abs=2e-3), name


def test_what_is_run_without_gradients_shrinks_too(tiny_base: Path) -> None:
    """Hidden states for the fit, scores and sampling: one at a time gives what all together do."""
    backbone = fresh(tiny_base)
    backbone.add_role("reward")
    torch.nn.init.normal_(backbone.heads["reward"].weight)
    prompts, answers = [row["prompt"] for row in PAIRS], [row["chosen"] for row in PAIRS]
    args = PPOConfig("out", max_new_tokens=4, micro_batch_size=1)
    encoded = [backbone.encode(prompt) for prompt in prompts]

    def both() -> tuple[list[float], list[list[int]]]:
        scores = score_answers(backbone, prompts, answers)
        return scores, [c.ids for c in LocalSampler()(backbone, encoded, args, range(4))]

    scores, sampled = both()
    with short_of_memory(backbone, 45, backward=False) as refused:
        again, resampled = both()
    assert len(refused) >= 2 and resampled == sampled  # four rows, then two, then one
    assert again == pytest.approx(scores, abs=1e-5)


def test_sampling_keeps_what_it_has_and_what_fitted(
    tiny_base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = fresh(tiny_base)
    encoded = [backbone.encode("Why?")] * 6
    args = PPOConfig("out", max_new_tokens=5, micro_batch_size=1, rollout_batch_size=6)
    plain, short = LocalSampler(), LocalSampler()
    wanted = [c.ids for c in plain(backbone, encoded, args, range(6))]
    assert plain.max_batch is None
    lengths = len(encoded[0])
    with short_of_memory(backbone, 4 * lengths, backward=False) as refused:  # 3, then 3 of them
        for _ in range(2):
            got = [c.ids for c in short(backbone, encoded, args, range(6))]
            assert got == wanted and short.max_batch == 3
    assert len(refused) == 1  # the second time it knows
    assert capsys.readouterr().err.count("from now on 3 answers are sampled at a time") == 1
    rehearsed = LocalSampler()
    with short_of_memory(backbone, 4 * lengths, backward=False):
        rehearsed.dry_run(backbone, encoded[:1], args)
    assert rehearsed.max_batch == 3  # found out before the first update
    monkeypatch.setattr("lorarlhf.runtime.distributed.own_share", lambda count: range(0))
    nobody = LocalSampler()  # a process without a prompt of its own
    nobody.dry_run(backbone, encoded[:1], args)
    assert nobody(backbone, [], args, []) == [] and nobody.max_batch is None


def test_what_is_taken_for_it() -> None:
    told = ["CUDA out of memory. Tried", "CUDA error: out of memory\nCUDA kernel errors"]
    told += ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"]
    told += ["[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"]
    assert all(is_out_of_memory(RuntimeError(text)) for text in told)
    assert is_out_of_memory(torch.OutOfMemoryError("HIP"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("CUDA out of memory."))


@pytest.mark.parametrize(
    ("row", "width"),
    [
        ({"input_ids": [1, 2, 3], "attention_mask": [1] * 3}, 3),
        ({"prompt_ids": [1, 2], "chosen_ids": [3] * 4, "rejected_ids": [5]}, 6),  # DPO
        ({"chosen_ids": [1] * 3, "rejected_ids": [1] * 7, "chosen_span": [1, 3]}, 7),  # reward
        (  # ORPO
            {"prompt_input_ids": [1], "chosen_input_ids": [1] * 5, "rejected_input_ids": [1] * 2},
            5,
        ),
    ],
)
def test_how_wide_a_row_is(row: dict[str, Any], width: int) -> None:
    assert row_length(row) == width


def test_the_longest_row_is_the_first() -> None:
    lengths = [3, 9, 4, 9, 1, 2, 7]
    order = LongestFirst(lengths, seed=1)
    first = list(order)
    assert sorted(first) == list(range(7)) and lengths[first[0]] == 9
    assert list(order) == first and list(LongestFirst(lengths, seed=2)) != first
    order.set_epoch(1)
    second = list(order)
    assert sorted(second) == list(range(7)) and second != first
