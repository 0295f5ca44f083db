"""From the page alone, in a real browser: votes, a reward role, PPO, a blind comparison, kept."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from lorarlhf.project.jobs import list_jobs
from lorarlhf.project.run_labels import read_label
from lorarlhf.runtime.process import kill_group
from tests.browser.projects import ServedProject, bodies, ends, part, ready, running
from tests.browser.test_compare_page import asked
from tests.browser.test_rate_page import GONE
from tests.browser.test_train_page import STOP, stands

VOTES, UPDATES, COMPARED = 20, 40, 5
TOKENS = 12  # of the longest answer
PPO = {"updates": UPDATES, "rollout_batch_size": 8, "num_ppo_epochs": 2, "max_new_tokens": TOKENS}


@pytest.fixture
def project(
    tmp_path_factory: pytest.TempPathFactory, make_base: Callable[..., Path]
) -> Iterator[ServedProject]:
    """A new one with a model: no votes, no pairs, no runs."""
    with running(tmp_path_factory, base=make_base(max_position_embeddings=2048)) as project:
        with project.store.write() as db:
            value = json.dumps({"max_new_tokens": TOKENS})
            db.execute("INSERT INTO setting VALUES ('collect', ?)", (value,))
        yield project
        for job in list_jobs(project.project):
            for process in (job.runner, job.command):
                if process is not None:
                    kill_group(process)


def go(page: Page, name: str) -> None:
    """Follow a link at the top of the pages."""
    page.get_by_role("navigation").get_by_role("link", name=name, exact=True).click()


def rate(page: Page) -> None:
    """Prefer the longer answer of every pair."""
    for count in range(VOTES):
        expect(part(page, "progress")).to_contain_text(f"{count} of ")
        expect(part(page, "item")).to_be_visible()
        ready(page)
        first, second = bodies(page)
        page.keyboard.press("1" if len(first) >= len(second) else "2")
    expect(part(page, "progress")).to_contain_text(f"{VOTES} of ")


def start(page: Page, kind: str, settings: dict[str, Any]) -> None:
    """Fill in the Train page's form and start."""
    page.get_by_label("What to train").select_option(kind)
    fields = page.locator(f'.train [data-kind="{kind}"]')
    fields.get_by_text(re.compile("^More settings")).click()
    for name, value in settings.items():
        fields.get_by_label(name, exact=True).fill(str(value))
    expect(page.locator('.train [data-part="estimate"]')).to_contain_text("Memory: about")
    page.get_by_role("button", name="Start", exact=True).click()


def updates(page: Page) -> int:
    """How many updates of PPO are done."""
    counted = re.compile(r"PPO: ([\d,]+) of ")
    expect(page.locator(".train .job .summary")).to_have_text(counted)
    found = counted.search(page.locator(".train .job .summary").inner_text())
    assert found is not None
    return int(found[1])


@pytest.mark.slow
def test_from_no_votes_to_a_model_that_is_kept(open_page: Any, project: ServedProject) -> None:
    open_page.allow(GONE)
    page = open_page(project.url)
    rate(page)
    assert len(project.votes()) == VOTES

    go(page, "Train")
    start(page, "reward", {"epochs": 1})
    stands(page, "done")
    start(page, "ppo", PPO)
    stands(page, "running")
    # It is watched, the page is loaded again, and the server is killed.
    begun = updates(page)
    expect(page.locator(".train .curves svg").first).to_be_visible()
    page.reload()
    stands(page, "running")
    assert begun <= updates(page) < UPDATES
    project.server.kill()
    expect(page.locator('.train [data-part="status"]')).to_contain_text("does not answer")
    project.server.start()
    expect(page.locator('.train [data-part="status"]')).to_be_hidden()
    page.get_by_role("button", name=STOP).click()
    stands(page, "stopped")
    page.get_by_role("button", name="Resume").click()
    stands(page, "done")
    newest = list_jobs(project.project)[0]
    assert re.search(r"Continuing after update [1-9]", newest.log.read_text(encoding="utf-8"))
    assert {run.name for run in project.project.runs()} == {"0001-reward", "0002-ppo"}

    go(page, "Runs")
    page.locator('.runs tr[data-row="0002-ppo"]').get_by_role("link", name="Compare").click()
    compare(page)
    votes = project.votes(purpose="compare")
    assert {source for vote in votes for source in vote.sources} == {"base", "runs/0002-ppo"}

    go(page, "Runs")
    policy = page.locator('.runs tr[data-row="0002-ppo"]')
    expect(policy).to_contain_text("wins ")
    policy.locator(".name").click()
    for action, dropped in (("Drop", True), ("Keep", False)):
        page.locator('.runs tr.details [data-run="0002-ppo"]', has_text=action).click()
        expect(policy.locator(".badge")).to_have_count(int(dropped))
        assert read_label(project.project.folder / "runs/0002-ppo").dropped is dropped
    policy.get_by_role("link", name="Chat").click()
    expect(page.locator("#chat-left-model input")).to_have_value("0002-ppo")


def compare(page: Page) -> None:
    """A blind comparison of the run that the page was opened with and the base."""
    expect(page.locator("#compare-second input")).to_have_value("0002-ppo")
    number = page.get_by_label("number input for Held-out prompts")
    number.fill(str(COMPARED))
    number.press("Tab")
    page.get_by_role("button", name="Start").click()
    for count in range(COMPARED):
        asked(page, count)
        page.keyboard.press("1")
    ends(page, "wins ")
