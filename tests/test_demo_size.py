"""The demo is as large as the machine's speed allows, and stays so when it is resumed."""

from pathlib import Path
from typing import Any

import pytest

from lorarlhf.backbone.base import Backbone
from lorarlhf.cli import demo_size
from lorarlhf.cli.demo_options import DemoOptions, prepare_folder, resume_command
from lorarlhf.cli.demo_size import SMALL, WHOLE, Size, choose_size, read_size, write_size
from lorarlhf.cli.main import main
from lorarlhf.data.readers import bundled, read_prompts
from lorarlhf.runtime.files import write_json

PROMPTS = [[40, 41, 42], [40, 41, 43, 44]]


def chosen(step: float, **more: Any) -> tuple[Size, str]:
    """What is chosen, and what is said, where 60 answers take `step` seconds a token."""
    said: list[str] = []
    return choose_size(step, 48, 60, said.append, **more), " ".join(said)


def test_a_fast_machine_runs_the_whole_loop() -> None:
    size, said = chosen(0.05)
    assert size == WHOLE and said.startswith("The whole loop takes about ")
    assert "about 1 minutes" in chosen(1e-6)[1]


def test_a_slow_machine_runs_less_and_says_so() -> None:
    size, said = chosen(1.0)
    assert size == SMALL and f"{SMALL.prompts} prompts and {SMALL.updates} updates" in said
    minutes = WHOLE.seconds(1.0, 48, 60) / 60
    assert f"With --full it has {WHOLE.prompts} and {WHOLE.updates}, and takes" in said
    assert said.endswith(f"{minutes:.0f}.")
    assert chosen(1.0, full=True)[0] == WHOLE


def test_given_updates_count_in_the_time() -> None:
    size, said = chosen(1.0, updates=5)
    assert (size.prompts, size.updates) == (SMALL.prompts, 5) and "5 updates of PPO" in said
    fast = 0.9 * demo_size.LONGEST_MINUTES * 60 / Size(WHOLE.prompts, 5).seconds(1.0, 48, 60)
    assert chosen(fast)[0] == SMALL and chosen(fast, updates=5)[0] == Size(WHOLE.prompts, 5)


def test_the_limit_is_where_the_whole_loop_ends() -> None:
    limit = demo_size.LONGEST_MINUTES * 60 / WHOLE.seconds(1.0, 48, 60)
    assert chosen(0.99 * limit)[0] == WHOLE
    assert chosen(1.01 * limit)[0] == SMALL


def test_the_whole_loop_has_every_prompt() -> None:
    assert len(read_prompts(bundled("prompts"))) == WHOLE.prompts


def test_seconds_by_hand() -> None:
    """Two prompts and one held out: 2 x (2 + 2) answers of 30 tokens, 6 of them read, 3 updates."""
    steps = 8 / 60 * 30 + (6 * demo_size.READING + 3 * demo_size.UPDATE) * 30 / 48
    assert Size(prompts=2, updates=3).seconds(0.5, 30, 1) == pytest.approx(0.5 * steps)


def test_the_speed_is_measured(tiny: Backbone) -> None:
    assert 1e-4 < demo_size.seconds_per_step(tiny, PROMPTS) < 10


def test_a_run_keeps_its_size(tmp_path: Path) -> None:
    assert read_size(tmp_path) is None
    write_size(tmp_path, Size(prompts=9, updates=4, minibatches=2))
    assert read_size(tmp_path) == Size(prompts=9, updates=4, minibatches=2)


def test_a_run_of_an_earlier_version_had_all_prompts(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text("")
    assert read_size(tmp_path) == WHOLE


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
