"""Tastes: a planted one is found and sure, others are not clear, and one's own axis works."""

import json
from pathlib import Path

import numpy as np
import pytest

from lorarlhf.backbone.base import Backbone
from lorarlhf.cli.main import main
from lorarlhf.cli.report import axis_sides
from lorarlhf.rewards.tastes import Taste, tastes_of
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf.runtime.run import Run
from lorarlhf.stages.reward_model import RewardSettings, train_reward_model

WIDTH, AXES = 40, 20


def votes_along(axis: int, count: int, seed: int = 0) -> VoteFit:
    """Votes for the answer that lies further along one of orthogonal axes, one in ten wrong."""
    rng = np.random.default_rng(seed)
    votes = VoteFit(np.linalg.qr(rng.normal(size=(WIDTH, AXES)))[0].T)
    assert votes.axes is not None
    for place in range(count):
        rows = rng.normal(size=(2, WIDTH))
        better = int(rows[1] @ votes.axes[axis] > rows[0] @ votes.axes[axis]) ^ (place % 10 == 0)
        votes.add(rows[better], rows[1 - better], place // 2)
    return votes


def test_a_planted_taste_is_sure_and_the_surest() -> None:
    sides = [(f"plus {n}", f"minus {n}") for n in range(AXES)]
    votes = votes_along(4, 150)
    found = tastes_of(votes.posterior(), votes.axes, sides)
    assert found[0].preferred == "plus 4" and found[0].other == "minus 4" and found[0].sure
    low, high = found[0].interval
    assert 0.5 < low < found[0].chance < high < 1
    assert sum(taste.sure for taste in found[1:]) <= 4
    few = votes_along(4, 12)
    unsure = next(
        t for t in tastes_of(few.posterior(), few.axes, sides) if "4" in t.preferred.split()
    )
    assert unsure.interval[1] - unsure.interval[0] > high - low


def test_the_sides_follow_the_sign() -> None:
    warm, cold = Taste(("warm", "cold"), 1.0, 0.5), Taste(("warm", "cold"), -1.0, 0.5)
    assert (warm.preferred, cold.preferred, cold.other) == ("warm", "cold", "warm")
    assert warm.chance == cold.chance and warm.interval == cold.interval
    assert warm.sure and not Taste(("warm", "cold"), 1.0, 0.7).sure  # 1 / 0.7 < 1.64
    with pytest.raises(ValueError, match="2 directions have 1 names"):
        votes = votes_along(0, 4)
        tastes_of(votes.posterior(), np.zeros((2, WIDTH)), [("a", "b")])


# ---- the command


def test_the_bundled_axes_have_two_ends() -> None:
    sides = list(axis_sides())
    assert len(sides) == AXES and all(first and second for first, second in sides)
    assert ("cheerful", "gloomy") in sides


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    votes_along(0, 150).save(tmp_path / "votes.safetensors")
    assert main(["report", "tastes", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("What 150 votes prefer") and len(lines) == 1 + AXES
    assert lines[1].split()[:3] == ["cheerful", "over", "gloomy"] and lines[1].endswith(" sure")
    assert any(line.endswith("not clear yet") for line in lines)
    assert main(["report", "tastes", str(tmp_path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data[0]["preferred"] == "cheerful" and data[0]["sure"]


def test_a_run_without_votes_or_axes_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "tastes", str(tmp_path)]) == 2
    assert "votes.safetensors can't be read" in capsys.readouterr().err
    votes = VoteFit()
    votes.add(np.ones(4), np.zeros(4), "a")
    votes.save(tmp_path / "votes.safetensors")
    assert main(["report", "tastes", str(tmp_path)]) == 2
    assert "without the style axes" in capsys.readouterr().err


def test_an_axis_of_one_s_own(
    tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": f"Question {n}?", "chosen": f"Yes, yes {n}.", "rejected": f"No {n}."}
        for n in range(12)
    ]
    run = Run(tmp_path / "run", "reward", {"seed": 0, "compute_dtype": "float32"})
    run.base(tiny)
    train_reward_model(tiny, rows, run, RewardSettings(epochs=0))
    words = ["report", "tastes", str(run.folder), "--axis", "Yes, yes.", "No.", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    own = next(taste for taste in found if "No." in (taste["preferred"], taste["other"]))
    assert own["preferred"] == "Yes, yes." and len(found) == AXES + 1
