"""DPO's SFT term and robust loss, held-out prompts, and the weights that are kept."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from trl.trainer import utils

from lorarlhf.backbone.base import Backbone
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.run import Run
from lorarlhf.stages.dpo_orpo import DirectSettings, DPOSettings, dpo_arguments, train_direct
from lorarlhf.stages.held_out import FEWEST, hold_out
from lorarlhf.stages.keep_best import KeepBest
from lorarlhf.stages.kto import KTOSettings, train_kto
from lorarlhf.stages.trl import trainer
from lorarlhf.stages.trl.arguments import Placement
from lorarlhf.stages.trl.dpo import answer_losses

Row = dict[str, Any]
PAIRS = [
    {"prompt": f"What is {n}?", "chosen": f"It is {n}, " * (n % 3 + 1), "rejected": "Never."}
    for n in range(8)
]
SWAPPED = [
    {"prompt": f"And {row['prompt']}", "chosen": row["rejected"], "rejected": row["chosen"]}
    for row in PAIRS
]
SIZES: Row = {"batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-2}


@pytest.fixture
def placement(tmp_path: Path) -> Placement:
    return Placement(torch.device("cpu"), torch.float32, tmp_path, 0)


def log_of(run: Run) -> list[Row]:
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def policy(backbone: Backbone) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in backbone.parameters_of("policy")]).clone()


# ---- the loss


@pytest.mark.parametrize(
    ("settings", "types", "weights", "smoothing"),
    [
        (DPOSettings(sft_weight=0.0), ["sigmoid"], None, 0.0),
        (DirectSettings(), ["sigmoid"], None, 0.0),
        (DPOSettings(sft_weight=0.5), ["sigmoid", "sft"], [1.0, 0.5], 0.0),
        (DPOSettings(sft_weight=0.0, noise=0.1), ["robust"], None, 0.1),
        (DPOSettings(sft_weight=2.0, noise=0.1), ["robust", "sft"], [1.0, 2.0], 0.1),
        (DPOSettings(trl={"loss_type": ["ipo"]}), ["ipo"], None, 0.0),
    ],
)
def test_the_settings_name_trl_s_losses(
    settings: DirectSettings,
    types: list[str],
    weights: list[float] | None,
    smoothing: float,
    placement: Placement,
) -> None:
    args = dpo_arguments(placement, settings)
    assert (args.loss_type, args.loss_weights) == (types, weights)
    assert args.label_smoothing == smoothing


def test_an_answer_s_loss_is_the_mean_over_its_own_tokens() -> None:
    logprobs = torch.tensor([[-1.0, -3.0, -8.0], [-2.0, -9.0, -9.0], [-1.0, -1.0, -1.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    assert answer_losses(logprobs, mask).tolist() == [2.0, 2.0, 0.0]


def test_the_sft_term_is_added_with_its_weight(tiny_base: Path, tmp_path: Path) -> None:
    def first(**settings: Any) -> Row:
        backbone = Backbone.load(str(tiny_base), bits=16, compute_dtype="float32")
        run = Run(tmp_path / str(settings), "dpo", {"seed": 0})
        made = DPOSettings(**SIZES, evaluations=0, **settings)
        train_direct(backbone, PAIRS[:4], run, "dpo", made)
        return log_of(run)[0]

    plain, half, robust = (
        first(sft_weight=weight, noise=noise) for weight, noise in ((0, 0), (0.5, 0), (0.5, 0.2))
    )
    assert plain["loss"] == pytest.approx(math.log(2), abs=1e-4) and "sft_loss" not in plain
    for row in (half, robust):  # at the start the robust loss is log 2 as well
        assert row["loss"] == pytest.approx(math.log(2) + 0.5 * row["sft_loss"], abs=1e-4)
        assert row["sft_loss"] > 1


def test_the_held_out_loss_is_bounded_whatever_the_training_s_is(
    tiny: Backbone, tmp_path: Path
) -> None:
    def measured(name: str, **settings: Any) -> list[Row]:
        run = Run(tmp_path / name, "dpo", {"seed": 0})
        made = DPOSettings(**(SIZES | {"evaluations": 1} | settings))
        train_direct(tiny, PAIRS, run, "dpo", made, eval_rows=SWAPPED)
        return [row for row in log_of(run) if "eval_loss" in row]

    settings: Row
    for name, settings in {
        "sft": {"sft_weight": 0.5},
        "ipo": {"trl": {"loss_type": "ipo"}},
        "weighted": {"sft_weight": 0.0, "trl": {"use_weighting": True}},
    }.items():
        start = measured(name, **settings)[0]
        assert start["eval_loss"] == pytest.approx(0.5, abs=1e-4)
    # Wrong about each pair, and sure: the logistic loss would be about the margin.
    wrong = measured("sure", sft_weight=0.0, epochs=60, learning_rate=5e-2, beta=2.0)[-1]
    assert wrong["eval_rewards/margins"] < -10 and 0.5 < wrong["eval_loss"] <= 1
    alone = measured("alone", trl={"loss_type": ["sft"]})[0]
    assert alone["eval_loss"] == pytest.approx(alone["eval_sft_loss"], abs=1e-4)


def test_the_sft_term_keeps_chosen_answers_likely(tiny_base: Path, tmp_path: Path) -> None:
    ends = []
    for weight in (0.0, 1.0):
        backbone = Backbone.load(str(tiny_base), bits=16, compute_dtype="float32")
        run = Run(tmp_path / str(weight), "dpo", {"seed": 0})
        made = DPOSettings(**SIZES, epochs=4, evaluations=1, sft_weight=weight)
        train_direct(backbone, PAIRS, run, "dpo", made)
        first, last = [row["chosen_logp"] for row in log_of(run) if "chosen_logp" in row]
        ends.append(last - first)
    assert ends[1] > ends[0] + 0.5


def test_only_positions_with_a_label_reach_the_lm_head(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    own = utils._ChunkedLogProbFunction

    def counted(hidden: torch.Tensor, *rest: Any) -> Any:
        counts.append(len(hidden))
        return own.apply(hidden, *rest)

    def trained(name: str) -> tuple[torch.Tensor, list[int]]:
        counts.clear()
        backbone = Backbone.load(str(tiny_base), bits=16, compute_dtype="float32")
        made = DPOSettings(**SIZES, epochs=1, evaluations=0)
        train_direct(backbone, PAIRS, Run(tmp_path / name, "dpo", {"seed": 0}), "dpo", made)
        return policy(backbone), list(counts)

    before = utils._use_triton
    assert trl.__version__.startswith(trainer.KNOWN_TRL)
    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", SimpleNamespace(apply=counted))
    monkeypatch.setattr(trl, "__version__", "1.17.0")
    weights, all_of_them = trained("another version")
    monkeypatch.setattr(trl, "__version__", f"{trainer.KNOWN_TRL}0")
    same, few = trained("labelled")
    assert utils._use_triton is before
    torch.testing.assert_close(weights, same)
    assert len(few) == len(all_of_them) == 4  # two steps, policy and reference
    assert all(less < 0.6 * more for less, more in zip(few, all_of_them, strict=True))


# ---- held-out prompts


def many(count: int) -> list[Row]:
    return [row | {"prompt": f"{n}: {row['prompt']}"} for n in range(count) for row in PAIRS[:2]]


def test_a_share_of_the_prompts_is_held_out(capsys: pytest.CaptureFixture[str]) -> None:
    rows = many(120)  # 240 prompts
    train, held = hold_out(rows, None, DPOSettings(holdout=0.1), 0)
    assert held is not None and len(held) == FEWEST and len(train) == 240 - FEWEST
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held}
    assert hold_out(rows, None, DPOSettings(holdout=0.1), 0) == (train, held)
    assert hold_out(rows, None, DPOSettings(holdout=0.0), 0) == (rows, None)
    assert hold_out(rows, None, DPOSettings(evaluations=0), 0) == (rows, None)
    assert capsys.readouterr().err == ""


def test_few_prompts_are_all_learned_from(capsys: pytest.CaptureFixture[str]) -> None:
    rows = many(75)
    assert hold_out(rows, None, DPOSettings(holdout=0.1), 0) == (rows, None)
    said = capsys.readouterr().err
    assert "holdout=0.1 of 150 prompts is 15" in said and "or set holdout=0.16." in said
    held = hold_out(rows, None, DPOSettings(holdout=0.16), 0)[1]
    assert held is not None and len(held) == FEWEST
    hold_out(rows[:20], None, DPOSettings(), 0)
    assert "set holdout=" not in capsys.readouterr().err  # half of so few would be too many


def test_rows_that_are_named_are_held_out() -> None:
    train, held = hold_out(PAIRS, [*SWAPPED, PAIRS[0]], DPOSettings(), 0)
    assert train == PAIRS and held == SWAPPED  # what is learned from is not measured on
    with pytest.raises(UserError, match="With evaluations=0 nothing is measured"):
        hold_out(PAIRS, SWAPPED, DPOSettings(evaluations=0), 0)


# ---- the weights that are kept


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_what_held_out_votes_contradict_is_not_kept(
    method: str, tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, run = policy(tiny), Run(tmp_path, method, {"seed": 0})
    more: Row = {"epochs": 10 if method == "kto" else 20, "evaluations": 8}
    if method == "kto":
        summary = train_kto(tiny, PAIRS, run, KTOSettings(**SIZES, **more), eval_rows=SWAPPED)
    else:
        more |= {"sft_weight": 0.0} if method == "dpo" else {"beta": 20.0}
        kind = DPOSettings if method == "dpo" else DirectSettings
        summary = train_direct(tiny, PAIRS, run, method, kind(**SIZES, **more), eval_rows=SWAPPED)
    losses = {row["step"]: row["eval_loss"] for row in log_of(run) if "eval_loss" in row}
    # Two in a row that are not the lowest, in the second half of 40 steps.
    assert list(losses) == [0, 5, 10, 15, 20, 25]
    assert summary["steps"] == 25 and summary["held_out"] == len(SWAPPED) * (1 + (method == "kto"))
    assert summary["kept_step"] == 0 and summary["eval_loss"] == losses[0]
    assert torch.equal(policy(tiny), before)
    said = capsys.readouterr().err
    assert "Stopped 15 steps before the end" in said
    assert "the policy is as it was before" in said


def test_what_held_out_votes_confirm_is_kept(tiny: Backbone, tmp_path: Path) -> None:
    confirmed = [
        {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}
        for row in SWAPPED
    ]
    run = Run(tmp_path, "dpo", {"seed": 0})
    made = DPOSettings(**SIZES, epochs=5)
    summary = train_direct(tiny, PAIRS, run, "dpo", made, eval_rows=confirmed)
    assert summary["kept_step"] == summary["steps"] == 10
    assert summary["eval_loss"] < 0.9 * log_of(run)[0].get("eval_loss", math.inf)


def test_the_best_weights_are_in_the_checkpoint(tiny: Backbone) -> None:
    keeper, again = (KeepBest(tiny, "policy", patience=2) for _ in range(2))
    state = type("State", (), {"global_step": 10, "max_steps": 20})
    control = type("Control", (), {"should_training_stop": False})
    keeper.on_evaluate(None, state, control, {"eval_loss": 0.5})
    best = policy(tiny)
    tiny.parameters_of("policy")[0].data.add_(1.0)
    keeper.on_evaluate(None, state, control, {"eval_loss": 0.6})
    tensors, values = keeper.state_dict()
    again.load_state_dict(tensors, json.loads(json.dumps(values)))
    assert (again.best_loss, again.best_step, again.waited) == (0.5, 10, 1)
    assert not control.should_training_stop  # type: ignore[attr-defined]
    again.on_evaluate(None, state, control, {"eval_loss": math.nan})
    assert control.should_training_stop  # type: ignore[attr-defined]
    again.restore()
    assert torch.equal(policy(tiny), best)


def test_a_training_does_not_stop_in_its_first_half(tiny: Backbone) -> None:
    keeper = KeepBest(tiny, "policy", patience=2)
    control = type("Control", (), {"should_training_stop": False})
    stopped = {}
    for step, loss in ((0, 0.5), (8, 0.6), (16, 0.7), (24, 0.6), (28, 0.4), (32, 0.6), (36, 0.6)):
        state = type("State", (), {"global_step": step, "max_steps": 40})
        keeper.on_evaluate(None, state, control, {"eval_loss": loss})
        stopped[step] = control.should_training_stop  # type: ignore[attr-defined]
    assert keeper.best_step == 28 and [step for step, over in stopped.items() if over] == [36]


def test_kto_s_held_out_loss_does_not_depend_on_the_forward(
    tiny_base: Path, tmp_path: Path
) -> None:
    found = []
    for micro in (2, 8):
        backbone = Backbone.load(
            str(tiny_base), bits=16, compute_dtype="float32", adapter_layers=2, lora_rank=4
        )
        run = Run(tmp_path / str(micro), "kto", {"seed": 0})
        made = KTOSettings(batch_size=8, micro_batch_size=micro, learning_rate=1e-2, epochs=2)
        train_kto(backbone, PAIRS, run, made, eval_rows=SWAPPED[:7])
        found.append([row["eval_loss"] for row in log_of(run) if "eval_loss" in row])
    assert len(found[0]) == 2 and found[0][0] == pytest.approx(0.5, abs=1e-4)
    assert found[1] == pytest.approx(found[0], abs=1e-5)
