"""The Runs page in a real browser: titles, dropping, deleting, curves, and the way to a model."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from lorarlhf.project.project import Project
from lorarlhf.project.run_labels import read_label
from tests.browser.projects import ServedProject, put_runs, running
from tests.run_folders import ppo_rows, write_run
from tests.waiting import until

FIRST, SECOND = "0001-sft", "0002-sft"  # with adapters that can answer
HOSTILE = "<img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, make_base: Callable[..., Path]
) -> Iterator[ServedProject]:
    """Two runs that answer, and three with a log; one of them started from another."""
    base = make_base()

    def runs(project: Project) -> None:
        put_runs(project, base, [FIRST, SECOND], tokens=8)
        write_run(project, "0003-reward", role="reward")
        for number, start in ((4, 0.0), (5, 2.0)):
            config = {"reward": "0003-reward"}
            rows = ppo_rows(2 + number, start)
            write_run(project, f"{number:04d}-ppo", role="", config=config, rows=rows)

    with running(tmp_path_factory, base=base, runs=runs) as project:
        yield project


def opened(open_page: Any, project: ServedProject, **more: Any) -> Page:
    page: Page = open_page(f"{project.url}/runs", **more)
    expect(row(page, FIRST)).to_be_visible()
    return page


def row(page: Page, name: str) -> Locator:
    return page.locator(f'.runs tr[data-row="{name}"]')


def do(page: Page, name: str, what: str) -> None:
    """Open a run's details and press a button there."""
    if not page.locator(f'.runs tr.details [data-run="{name}"]').count():
        row(page, name).locator(".name").click()
    page.locator(f'.runs tr.details [data-run="{name}"]', has_text=what).click()


def status(page: Page) -> Locator:
    return page.locator('.runs [data-part="status"]')


def test_a_title_is_kept_and_shown(open_page: Any, project: ServedProject) -> None:
    page = opened(open_page, project)
    expect(page.get_by_role("heading", level=1)).to_have_text("Training runs")
    do(page, FIRST, "Rename")
    field = page.get_by_label("Title; leave it empty for none")
    expect(field).to_be_focused()
    field.fill("never this")
    page.keyboard.press("Escape")
    do(page, FIRST, "Rename")
    expect(field).to_have_value("")
    field.fill(HOSTILE)
    page.keyboard.press("Enter")
    expect(row(page, FIRST).locator(".name")).to_have_text(HOSTILE)
    expect(status(page)).to_contain_text(f"{FIRST} is called")
    expect(page.locator('.runs tr.details [data-do="rename"]')).to_be_focused()  # as before
    assert read_label(project.project.folder / "runs" / FIRST).title == HOSTILE
    assert page.title() != "taken"
    page.reload()
    expect(row(page, FIRST).locator(".name")).to_have_text(HOSTILE)
    do(page, FIRST, "Rename")
    field.fill("")
    page.get_by_role("button", name="Save").click()
    expect(row(page, FIRST).locator(".name")).to_have_text("Supervised tuning 1")


def test_the_curves_of_two_runs(open_page: Any, project: ServedProject) -> None:
    page = opened(open_page, project)
    curves = page.locator('.runs [data-part="curves"]')
    expect(curves).to_contain_text("Tick up to 8 runs")
    for name in ("0004-ppo", "0005-ppo"):
        row(page, name).get_by_role("checkbox").check()
    expect(curves.locator(".legend li")).to_have_count(2)
    lines = curves.locator(".curve polyline")
    expect(lines).to_have_count(2)
    looks = lines.evaluate_all(
        "lines => lines.map(line => [getComputedStyle(line).stroke, "
        "getComputedStyle(line).strokeDasharray])"
    )
    assert looks[0][0] != looks[1][0] and looks[0][1] != looks[1][1]  # not by colour alone
    picture = curves.locator(".curve").get_by_role("img")
    expect(picture).to_have_attribute("aria-label", re.compile("PPO 5 from 2.1 to 2.7; PPO 4"))
    page.get_by_label("Figure").select_option(label="KL from the reference, nats per answer")
    expect(picture).to_have_attribute("aria-label", re.compile("^KL from the reference"))
    page.get_by_text("The numbers as a table").click()
    expect(curves.get_by_role("row")).to_have_count(1 + 7)
    page.get_by_role("button", name="Untick all").click()
    expect(curves).to_contain_text("Tick up to 8 runs")
    expect(row(page, "0004-ppo").get_by_role("checkbox")).not_to_be_checked()


def test_dropped_runs_are_in_no_list(open_page: Any, project: ServedProject) -> None:
    page = opened(open_page, project)
    do(page, SECOND, "Drop")
    expect(row(page, SECOND).locator(".badge")).to_have_text("dropped")
    expect(row(page, SECOND).get_by_role("link", name="Chat")).to_have_count(0)
    chat = open_page(f"{project.url}/chat?model={SECOND}")
    expect(chat.locator("#chat-left-model input")).to_have_value(FIRST)
    do(page, SECOND, "Keep")
    expect(row(page, SECOND).locator(".badge")).to_have_count(0)


def test_one_click_opens_a_page_with_the_run(open_page: Any, project: ServedProject) -> None:
    page = opened(open_page, project)
    open_page.allow("Connection errored out")  # pages are left while they load
    row(page, FIRST).get_by_role("link", name="Chat").click()
    left = page.locator("#chat-left-model input")
    expect(left).to_have_value(FIRST)  # the newest one is another
    expect(page).to_have_url(f"{project.url}/chat")
    page.reload()
    expect(left).to_have_value(SECOND)
    page.goto(f"{project.url}/runs")
    row(page, FIRST).get_by_role("link", name="Compare").click()
    expect(page.locator("#compare-second input")).to_have_value(FIRST)
    expect(page.locator("#compare-first input")).to_have_value("base")
    expect(page).to_have_url(f"{project.url}/compare")
    page.goto(f"{project.url}/compare?model=../../etc")
    expect(page.locator("#compare-second input")).to_have_value(SECOND)


def test_a_report_opens(open_page: Any, project: ServedProject) -> None:
    page = opened(open_page, project)
    with page.expect_popup() as popup:
        row(page, "0004-ppo").get_by_role("link", name="Report").click()
    expect(popup.value.get_by_role("heading", level=1)).to_contain_text("PPO run")


def test_deleting_asks_and_is_refused_where_needed(open_page: Any, project: ServedProject) -> None:
    page = opened(open_page, project)
    tree = page.locator('.runs [data-part="tree"]')
    expect(tree.locator("li li")).to_contain_text(["PPO 4", "PPO 5"])
    do(page, "0003-reward", "Delete")
    expect(status(page)).to_contain_text("PPO 4 (0004-ppo) was trained against its reward role")
    folder = project.project.folder / "runs" / "0004-ppo"
    do(page, "0004-ppo", "Delete")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("This removes PPO 4 for good")
    expect(dialog).to_contain_text(str(folder))
    expect(dialog.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    assert folder.is_dir()
    do(page, "0004-ppo", "Delete")
    dialog.get_by_role("button", name="Delete for good").click()
    expect(row(page, "0004-ppo")).to_have_count(0)
    expect(status(page)).to_have_text("PPO 4 (0004-ppo) is deleted.")
    expect(tree.locator("li li")).to_contain_text(["PPO 5"])
    assert not folder.exists()


def test_two_hundred_runs_on_a_telephone(open_page: Any, project: ServedProject) -> None:
    for number in range(101, 301):  # the last test of this project
        write_run(project.project, f"{number:04d}-ppo", role="", rows=ppo_rows(3))
    page = opened(open_page, project, width=360, height=740)
    assert page.locator(".runs tr[data-row]").count() > 200
    asking = """async () => {
      const start = performance.now();
      document.querySelector('[data-run="0101-ppo"][data-do="tick"]').click();
      while (!document.querySelector(".runs .legend")) await new Promise(requestAnimationFrame);
      return performance.now() - start;
    }"""
    assert page.evaluate(asking) < 2000  # on a busy machine
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_an_export_from_the_page(open_page: Any, project: ServedProject) -> None:
    page = opened(open_page, project)
    do(page, SECOND, "Export")
    page.get_by_label("As").select_option("adapter")
    page.keyboard.press("Escape")  # not yet
    do(page, SECOND, "Export")
    expect(page.get_by_label("As")).to_be_visible()
    page.locator('[data-part="export"] button.main').click()
    expect(status(page)).to_contain_text("the Train page shows how far it is")
    folder = project.project.folder / "exports" / f"{SECOND}-adapter"
    until(lambda: (folder / "export.json").exists(), 300)
    assert (folder / "adapter_config.json").exists() and (folder / "README.md").exists()
