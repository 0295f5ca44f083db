"""The demo is as large as the machine's speed allows, and stays so when it is resumed."""

from pathlib import Path

import pytest

from lorarlhf.backbone.base import Backbone
from lorarlhf.cli import demo_size
from lorarlhf.cli.demo_size import SMALL, WHOLE, Size, choose_size, read_size, write_size

PROMPTS = [[40, 41, 42], [40, 41, 43, 44]]


def chosen(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch, step: float, full: bool = False
) -> tuple[Size, str]:
    """What is chosen, and what is said, where 60 answers take `step` seconds a token."""
    said: list[str] = []
    monkeypatch.setattr(demo_size, "seconds_per_step", lambda backbone, prompts: step)
    return choose_size(tiny, PROMPTS, 48, 60, full, said.append), " ".join(said)


def test_a_fast_machine_runs_the_whole_loop(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, said = chosen(tiny, monkeypatch, 0.05)
    assert size == WHOLE and said.startswith("The whole loop takes about ")


def test_a_slow_machine_runs_less_and_says_so(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, said = chosen(tiny, monkeypatch, 1.0)
    assert size == SMALL and f"{SMALL.prompts} prompts and {SMALL.updates} updates" in said
    minutes = WHOLE.seconds(1.0, 48, 60) / 60
    assert f"With --full it has {WHOLE.prompts} and {WHOLE.updates}, and takes" in said
    assert said.endswith(f"{minutes:.0f}.")
    assert chosen(tiny, monkeypatch, 1.0, full=True)[0] == WHOLE


def test_the_limit_is_where_the_whole_loop_ends(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = demo_size.LONGEST_MINUTES * 60 / WHOLE.seconds(1.0, 48, 60)
    assert chosen(tiny, monkeypatch, 0.99 * limit)[0] == WHOLE
    assert chosen(tiny, monkeypatch, 1.01 * limit)[0] == SMALL


def test_seconds_by_hand() -> None:
    """Two prompts and one held out: 2 x (2 + 2) answers of 30 tokens, 6 of them read, 3 updates."""
    steps = 8 / 60 * 30 + (6 * demo_size.READING + 3 * demo_size.UPDATE) * 30 / 48
    assert Size(prompts=2, updates=3).seconds(0.5, 30, 1) == pytest.approx(0.5 * steps)


def test_the_speed_is_measured(tiny: Backbone) -> None:
    assert 1e-4 < demo_size.seconds_per_step(tiny, PROMPTS) < 10


def test_a_run_keeps_its_size(tmp_path: Path) -> None:
    assert read_size(tmp_path) is None
    write_size(tmp_path, Size(prompts=9, updates=4))
    assert read_size(tmp_path) == Size(prompts=9, updates=4)


def test_a_run_of_an_earlier_version_had_all_prompts(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text("")
    assert read_size(tmp_path) == WHOLE
