"""The demo says how long it takes, and keeps its size when it is resumed."""

from pathlib import Path

import pytest

from lorarlhf.backbone.base import Backbone
from lorarlhf.cli import demo_size
from lorarlhf.cli.demo_options import DemoOptions, prepare_folder, resume_command
from lorarlhf.cli.demo_size import DEFAULT, FULL, Size, read_size, time_notice, write_size
from lorarlhf.cli.main import main
from lorarlhf.data.readers import bundled, read_prompts
from lorarlhf.runtime.files import write_json

PROMPTS = [[40, 41, 42], [40, 41, 43, 44]]


def test_the_time_is_told() -> None:
    """At 0.5 s a token of 60 answers, by the counts of the next test."""
    minutes, full = (size.seconds(0.5, 48, 60) / 60 for size in (DEFAULT, FULL))
    assert time_notice(DEFAULT, 0.5, 48, 60) == (
        f"With 280 prompts and 16 updates of PPO this takes about {minutes:.0f} minutes on this "
        f"machine. With --full it takes about {full:.0f}."
    )
    assert time_notice(FULL, 0.5, 48, 60).endswith(f"about {full:.0f} minutes on this machine.")
    assert "about 1 minutes" in time_notice(DEFAULT, 1e-6, 48, 60)


def test_the_full_loop_has_every_prompt() -> None:
    assert len(read_prompts(bundled("prompts"))) == FULL.prompts


def test_answers_are_shorter_by_default() -> None:
    assert [size.tokens(48) for size in (DEFAULT, FULL)] == [40, 48]


def test_seconds_by_hand() -> None:
    """Two prompts and one held out, 3 updates; answers of 30 tokens: 2 x (2 + 2), 6 of them read
    by the reward role, and 4 of which it picks the best."""
    steps = 12 / 60 * 30 + (10 * demo_size.READING + 3 * demo_size.UPDATE) * 30 / 48
    assert Size(prompts=2, updates=3).seconds(0.5, 30, 1) == pytest.approx(0.5 * steps)


def test_the_speed_is_measured(tiny: Backbone) -> None:
    assert 1e-4 < demo_size.seconds_per_step(tiny, PROMPTS) < 10


def test_a_run_keeps_its_size(tmp_path: Path) -> None:
    assert read_size(tmp_path) is None
    write_size(tmp_path, Size(prompts=9, updates=4, minibatches=2))
    assert read_size(tmp_path) == Size(prompts=9, updates=4, minibatches=2)


def test_a_run_of_an_earlier_version_had_all_prompts(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text("")
    assert read_size(tmp_path) == FULL


def test_a_run_from_before_there_was_full_goes_on(tmp_path: Path) -> None:
    config = {"rater": "brief", "updates": 24, "pairs": 150, "quick": False, "out": str(tmp_path)}
    write_json(tmp_path / "run.json", {"stage": "demo", "config": config})
    options = DemoOptions(out=str(tmp_path), resume=True)
    resumed = prepare_folder(options, lambda line: None)
    assert (resumed.rater, resumed.updates, resumed.pairs) == ("brief", 24, 150)
    assert resumed.full is False and "--full" not in resume_command(resumed)


def test_quick_and_full_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--quick", "--full"]) == 2
    assert "two different sizes" in capsys.readouterr().err
