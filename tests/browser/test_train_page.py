"""The Train page in a real browser: a run is started, watched, found again, stopped and resumed."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.project.jobs import list_jobs
from lorarlhf.runtime.process import kill_group
from tests.browser.projects import ServedProject, part, running, shows
from tests.browser.test_rate_page import GONE

STOP = "Stop after this step"


@pytest.fixture
def project(
    tmp_path_factory: pytest.TempPathFactory, make_base: Callable[..., Path]
) -> Iterator[ServedProject]:
    """With a model, votes of a planted taste, and pairs that wait."""
    with running(tmp_path_factory, base=make_base(max_position_embeddings=2048)) as project:
        first = Verdict("ranked", [[0], [1]])
        add_votes(
            project.store,
            [
                ImportedVote(
                    f"May I ask question {n}?",
                    ((f"Yes, gladly and at length, {n}.", "a"), (f"No {n}.", "b")),
                    first,
                    rater="ann",
                )
                for n in range(24)
            ],
        )
        for number in range(1, 4):
            project.ask(f"Question {number}?", shared=True)
        yield project
        for job in list_jobs(project.project):
            for process in (job.runner, job.command):
                if process is not None:
                    kill_group(process)


def stands(page: Page, state: str) -> None:
    expect(page.locator(".train .job")).to_have_attribute("data-state", state)


def steps(page: Page) -> int:
    """How many steps of the reward model's training are done."""
    counted = re.compile(r"reward model: ([\d,]+) of ")
    expect(page.locator(".train .job .summary")).to_have_text(counted)
    found = counted.search(page.locator(".train .job .summary").inner_text())
    assert found is not None
    return int(found[1].replace(",", ""))


def test_a_run_outlives_the_page_and_the_server(open_page: Any, project: ServedProject) -> None:
    page = open_page(f"{project.url}/train")
    open_page.allow(GONE)
    expect(page.get_by_role("heading", level=1)).to_have_text("Train the models")
    page.get_by_label("What to train").select_option("reward")
    page.get_by_label("epochs", exact=True).and_(page.locator(":visible")).fill("4000")
    expect(page.locator('.train [data-part="estimate"]')).to_contain_text("Time: about")
    page.get_by_role("button", name="Start", exact=True).click()
    stands(page, "running")
    started = steps(page)
    expect(page.locator(".train .curves svg").first).to_be_visible()
    # Meanwhile the model rests, and pairs that wait are rated.
    rate = open_page(project.url)
    shows(rate, "Question 1?")
    expect(part(rate, "rests")).to_contain_text("The answering model rests")
    rate.keyboard.press("1")
    shows(rate, "Question 2?")
    rate.close()
    page.reload()
    stands(page, "running")
    assert steps(page) >= started
    project.server.kill()
    expect(page.locator('.train [data-part="status"]')).to_contain_text("does not answer")
    (job,) = list_jobs(project.project)
    assert job.state == "running"
    project.server.start()
    stands(page, "running")
    expect(page.locator('.train [data-part="status"]')).to_be_hidden()
    page.get_by_role("button", name=STOP).click()
    stands(page, "stopped")
    stopped = steps_saved(job.log)
    page.get_by_role("button", name="Resume").click()
    stands(page, "running")
    assert steps(page) >= stopped > 0
    assert f"Continuing after step {stopped}." in job.log.read_text(encoding="utf-8")
    page.get_by_role("button", name=STOP).click()
    stands(page, "stopped")
    assert [run.name for run in project.project.runs()] == ["0001-reward"]


def steps_saved(log: Path) -> int:
    """The step at which a run that was stopped will go on: that of its newest checkpoint."""
    folder = log.parent.parent / "runs" / "0001-reward" / "checkpoints"
    return max(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*"))
