"""The reward role as the pages ask it: texts that are too long, many who wait, and giving up."""

from pathlib import Path
from typing import Any

import pytest

from lorarlhf.evaluation.heat_map import WordShares
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui import reward_role
from lorarlhf_ui.backfill import LONGEST_TEXT
from lorarlhf_ui.reward_role import BUSY, WAITING, RewardRole, result_of
from tests.pages import FakeEngine, Job, add_run

pytest_plugins = ("tests.pages",)


class Scores(FakeEngine):
    """An engine that scores at once, and counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def shares(self, adapter: Path, prompt: Any, answers: list[str]) -> Job:
        self.asked += 1
        job = Job()
        job.update(value=[WordShares(1.0, [(text, 1.0)], 0.0, True) for text in answers], done=True)
        return job


@pytest.fixture
def role(project: Project) -> RewardRole:
    add_run(project, "0001-reward", role="reward")
    engine: Any = Scores()
    return RewardRole(project, engine)


def test_texts_that_would_take_too_much_memory_are_refused(role: RewardRole) -> None:
    prompt, short = "p" * 1000, "a"
    fits = "a" * (LONGEST_TEXT - len(prompt))
    assert len(role.heat_maps(prompt, [short, fits])) == 2
    long: list[tuple[Any, list[str]]] = [
        (prompt, [short, f"{fits}a"]),
        ([{"role": "user", "content": fits}], ["a" * 1000]),
    ]
    for asked, answers in long:
        with pytest.raises(UserError, match="more than 8,000 characters"):
            role.heat_maps(asked, answers)
    assert role.engine.asked == 1  # type: ignore[attr-defined]


def test_only_a_few_requests_wait_for_the_model(
    role: RewardRole, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(WAITING):
        assert reward_role._waiting.acquire(blocking=False)
    try:
        with pytest.raises(UserError, match=BUSY):
            role.heat_maps("p", ["a"])
    finally:
        for _ in range(WAITING):
            reward_role._waiting.release()
    assert role.engine.asked == 0  # type: ignore[attr-defined]
    monkeypatch.setattr(reward_role, "SECONDS", 0.01)
    for _ in range(2 * WAITING):  # who gave up makes room, and nothing is computed for them
        with pytest.raises(UserError, match=BUSY):
            result_of(role.engine, Job)
    assert len(role.engine.stopped) == 2 * WAITING  # type: ignore[attr-defined]


def test_the_runs_are_not_read_at_each_update(
    role: RewardRole, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    newest = Project.newest_with
    monkeypatch.setattr(
        Project, "newest_with", lambda self, role: read.append(role) or newest(self, role)
    )
    assert [role.is_there() for _ in range(20)] == [True] * 20 and read == ["reward"]
    monkeypatch.setattr(reward_role, "REMEMBERED", 0.0)
    (project.folder / "runs" / "0001-reward" / "run.json").write_text("{}")
    assert not role.is_there()
