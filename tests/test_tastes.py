"""Tastes: a planted one is found and sure, others are not clear, and one's own axis works."""

import json
from pathlib import Path

import numpy as np
import pytest

from lorarlhf.backbone.base import Backbone
from lorarlhf.cli.main import main
from lorarlhf.cli.prepare import fingerprint
from lorarlhf.rewards.tastes import Taste, axis_sides, clearest_votes, tastes_of
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
    few = votes_along(4, 12)
    unsure = next(
        t for t in tastes_of(few.posterior(), few.axes, sides) if "4" in t.preferred.split()
    )
    assert unsure.interval[1] - unsure.interval[0] > high - low


def test_tastes_that_nobody_has_are_seldom_sure() -> None:
    """A 90% interval may miss 0 in a tenth of them; with the prior it is about a hundredth.

    Of 380 that is 12 or more in one of a thousand (binomial).
    """
    sides, false = [(f"plus {n}", f"minus {n}") for n in range(AXES)], 0
    for seed in range(20):
        votes = votes_along(4, 150, seed)
        first, *others = tastes_of(votes.posterior(), votes.axes, sides)
        assert first.axis == 4 and first.sure
        false += sum(taste.sure for taste in others)
    assert false < 12


def test_the_sides_follow_the_sign() -> None:
    warm, cold = Taste(("warm", "cold"), 1.0, 0.5), Taste(("warm", "cold"), -1.0, 0.5)
    assert (warm.preferred, cold.preferred, cold.other) == ("warm", "cold", "warm")
    assert warm.chance == cold.chance and warm.interval == cold.interval
    assert warm.sure and not Taste(("warm", "cold"), 1.0, 0.7).sure  # 1 / 0.7 < 1.64
    with pytest.raises(ValueError, match="2 directions have 1 names"):
        votes = votes_along(0, 4)
        tastes_of(votes.posterior(), np.zeros((2, WIDTH)), [("a", "b")])


# ---- the votes that show a taste best


def test_the_clearest_vote_by_hand() -> None:
    # Two features with a deviation of about 1 over the eight answers, two axes along them.
    chosen = np.array([[1, 1], [1, -1], [-1, -1], [1, 1]], dtype=np.float32)
    rejected = np.array([[-1, -1], [-1, -1], [1, -1], [-1, 1]], dtype=np.float32)
    first, second = np.eye(2)
    to_plus = [Taste(("a", "b"), 1.0, 0.5, 0), Taste(("c", "d"), 1.0, 0.5, 1)]
    to_minus = [Taste(("a", "b"), -1.0, 0.5, 0), Taste(("c", "d"), -1.0, 0.5, 1)]
    # Vote 0 differs by 2 along both (2 * 0.71), votes 1 and 3 along the first alone (2 * 1).
    assert clearest_votes(to_plus, [first, second], chosen, rejected) == [1, 0]
    assert clearest_votes(to_minus, [first, second], chosen, rejected) == [2, None]
    scaled = clearest_votes(to_plus, [9 * first, second], chosen * [50, 1], rejected * [50, 1])
    assert scaled == [1, 0]  # neither the unit of a feature nor the length of an axis counts
    nothing = np.empty((0, 2), np.float32)
    assert clearest_votes(to_plus, [first, second], nothing, nothing) == [None, None]


def test_a_feature_that_never_differs_counts_nothing() -> None:
    same = np.ones((3, 2), np.float32)
    taste = Taste(("a", "b"), 1.0, 0.5, 0)
    assert clearest_votes([taste], np.eye(2)[:1], same, same) == [None]


def test_the_example_of_a_planted_taste_goes_its_way() -> None:
    votes = votes_along(4, 150)
    found = tastes_of(votes.posterior(), votes.axes, [(f"+{n}", f"-{n}") for n in range(AXES)])
    places = clearest_votes(found, votes.axes, votes.chosen, votes.rejected)
    assert all(place is not None for place in places)
    for taste, place in zip(found, places, strict=True):
        along = (votes.chosen[place] - votes.rejected[place]) @ votes.axes[taste.axis]
        assert along * taste.margin > 0
    best = next(place for taste, place in zip(found, places, strict=True) if taste.axis == 4)
    along = (votes.chosen - votes.rejected) @ votes.axes[4]
    assert along[best] > np.quantile(along, 0.9)


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
    assert all(taste["example"] is None for taste in found)  # the run has no file of votes


def test_the_command_shows_the_votes(
    tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": f"Question {n}?", "chosen": f"Yes, yes {n}.", "rejected": f"No {n}."}
        for n in range(12)
    ]
    data = tmp_path / "votes.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"seed": 0, "compute_dtype": "float32", "data": str(data), "holdout": 0.25}
    run = Run(tmp_path / "run", "reward", config)
    run.about["rows"] = fingerprint(rows)
    run.base(tiny)
    train_reward_model(tiny, rows, run, RewardSettings(epochs=0, holdout=0.25))
    assert main(["report", "tastes", str(run.folder), "--json"]) == 0
    shown = [taste["example"] for taste in json.loads(capsys.readouterr().out) if taste["example"]]
    assert shown
    for example in shown:
        number = example["prompt"].removeprefix("Question ").removesuffix("?")
        assert example["chosen"] == f"Yes, yes {number}."
        assert example["rejected"] == f"No {number}."
    lines = data.read_text().splitlines(keepends=True)
    others = [line.replace("Question", "Problem") for line in lines]
    for changed in (lines[1:], lines[::-1], others):  # it is another file now
        data.write_text("".join(changed))
        assert main(["report", "tastes", str(run.folder), "--json"]) == 0
        assert not any(taste["example"] for taste in json.loads(capsys.readouterr().out))
