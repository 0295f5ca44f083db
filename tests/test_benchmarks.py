"""How the benchmarks evaluate their figures: medians, slopes, the choice of the micro-batch."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import ppo_limits
import ppo_vs_trl


def figures(seconds: float, peak: float, score: float) -> dict[str, Any]:
    phases = {"generate": seconds / 2, "score": 0.0, "update": seconds / 2}
    memory = {"interpreter_mb": 500.0, "loaded_mb": 700.0, "peak_mb": peak}
    return {"seconds": seconds, **phases, **memory, "heldout_score": score}


ROUNDS = {
    "ours": [figures(2.0, 900.0, 1.0), figures(4.0, 800.0, 2.0), figures(3.0, 700.0, 0.5)],
    "trl": [figures(9.0, 1500.0, 0.0), figures(6.0, 1700.0, 1.0), figures(5.0, 1900.0, 2.0)],
}


def test_sides_are_compared_by_their_medians() -> None:
    found = ppo_vs_trl.compared(ROUNDS)
    assert (found["ours"]["seconds"], found["trl"]["seconds"]) == (3.0, 6.0)
    assert found["times_faster"] == {"seconds": 2.0, "generate": 2.0, "update": 2.0}
    above = found["memory"]
    assert (above["ours_above_interpreter_mb"], above["trl_above_interpreter_mb"]) == (300, 1200)
    assert above["share"] == 0.25


def test_scores_are_relative_to_the_base_for_each_seed() -> None:
    found = ppo_vs_trl.gained(ROUNDS, -0.5)
    assert found["score_gained"] == {"ours": [1.5, 2.5, 1.0], "trl": [0.5, 1.5, 2.5]}
    assert found["score_gained_median"] == {"ours": 1.5, "trl": 1.5}


def test_a_micro_batch_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {4: 3.0, 8: 2.0}

    def run(side: str, work: Path, trl: Path, args: Any, micro: int, *_: int) -> dict[str, float]:
        if micro not in taken:
            raise ppo_vs_trl.Failed("killed")
        return {"seconds": taken[micro]}

    monkeypatch.setattr(ppo_vs_trl, "run", run)
    args = argparse.Namespace(micro=[4, 8, 16, 32], batch=16)
    trials = ppo_vs_trl.try_micros("ours", Path(), Path(), args)
    assert trials == {4: 3.0, 8: 2.0, 16: None} and ppo_vs_trl.fastest(trials) == 8
    taken.clear()
    with pytest.raises(SystemExit, match="No micro-batch"):
        ppo_vs_trl.fastest(ppo_vs_trl.try_micros("ours", Path(), Path(), args))
    assert ppo_vs_trl.try_micros("trl", Path(), Path(), argparse.Namespace(micro=[16])) == {16: 0.0}


def test_a_slope_of_one_is_twice_the_time_for_twice_the_work() -> None:
    rows = [{"batch": 4, "seconds": 1.0}, {"batch": 8, "seconds": 2.0}, {"batch": 32, "seconds": 4}]
    assert ppo_limits.slope(rows, "batch", "seconds") == [1.0, 0.5]


def test_the_kind_of_an_operator() -> None:
    kinds = {
        ("aten::mm", (256, 576, 49152)): "LM head",
        ("aten::bmm", (48, 64, 64)): "attention",
        ("mkldnn::_linear_pointwise", (1024, 576)): "the layers' products",
        ("aten::mm", (1024, 576, 16)): "LoRA's products",
        ("aten::silu", (1024, 1536)): "others",
    }
    for (operator, sizes), kind in kinds.items():
        assert ppo_limits.kind_of(operator, list(sizes), words=49152, rank=16) == kind
