"""Who is here and what to do: the frame of every page, the welcome, keys and fields."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from lorarlhf.preferences.accounts import set_password
from lorarlhf.project.project import Project
from lorarlhf_ui.page_frame import PAGES
from tests.browser.projects import ServedProject, part, running, shows

PASSWORD = "größerer Hafen 7"
# Keys of other keyboards, as a browser reports them, and the vote that each of them is.
KEYBOARDS = {
    "AZERTY": [("&", "Digit1", "A"), ("é", "Digit2", "B")],
    "Cyrillic": [("е", "KeyT", "tie"), ("и", "KeyB", "both_bad")],
    "Greek": [("ς", "KeyW", "clearly"), ("σ", "KeyS", "skip")],
    "input method": [("Process", "KeyG", "both_good")],
    "Dvorak": [("t", "KeyK", "tie")],  # the letter comes first
    "none": [("2", "Digit2", "B")],
}
SMALL_FIELDS = """() => [...document.querySelectorAll("input, textarea, select")]
  .filter((field) => !["range", "checkbox", "radio", "hidden", "file"].includes(field.type))
  .filter((field) => parseFloat(getComputedStyle(field).fontSize) < 16)
  .map((field) => field.outerHTML.slice(0, 120))"""
ROWS = "() => new Set([...document.querySelectorAll('.site nav a')].map((a) => a.offsetTop)).size"


def add_raters(project: Project) -> None:
    set_password(project.store(), "Zoë", PASSWORD, "owner")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProject]:
    with running(tmp_path_factory, "--lan", runs=add_raters) as served:
        yield served


def log_in(page: Page) -> None:
    page.get_by_label("Name").fill("Zoe\u0308")  # decomposed, as some systems type it
    page.get_by_label("Password").fill("gro\u0308ßerer Hafen 7")
    page.get_by_role("button", name="Log in").click()


def test_every_page_says_where_one_is_and_as_whom(open_page: Any, project: ServedProject) -> None:
    page = open_page(project.url, width=360, height=740)
    assert page.evaluate(SMALL_FIELDS) == []  # of the login
    log_in(page)
    for path, (name, heading) in PAGES.items():
        page.goto(f"{project.url}{path}")
        expect(page.locator(".gradio-container")).to_be_visible()
        expect(page).to_have_title(f"{name} · project")
        expect(page.get_by_role("heading", level=1)).to_have_text(heading)
        expect(page.locator("nav:visible")).to_have_count(1)
        expect(page.locator("nav [aria-current]")).to_have_text(name)
        expect(page.locator("header.site")).to_contain_text("project")
        expect(page.locator("header.site")).to_contain_text("Rater: Zoë")
        assert page.evaluate(ROWS) == 1
        for summary in page.locator("summary, button.label-wrap:not(.open)").all():
            if summary.is_visible():
                summary.click()
        page.wait_for_timeout(200)
        assert page.evaluate(SMALL_FIELDS) == [], path
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    open_page.allow("Connection errored out")  # pages were left while they loaded
    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_url(f"{project.url}/login")


def test_a_new_project_says_what_to_do_until_the_first_vote(
    open_page: Any, project: ServedProject
) -> None:
    project.ask("First?")
    page = open_page(project.url, width=360, height=740)
    log_in(page)
    shows(page, "First?")
    welcome = part(page, "welcome")
    expect(welcome).to_be_visible()
    text = welcome.inner_text()
    assert text.count(". ") == 2 and text.endswith(".")  # three sentences
    for word in ("choose", "50 votes", "230 votes", "four of five", "Train page", "Compare"):
        assert word in text
    own, item = (part(page, name).bounding_box() for name in ("welcome", "item"))
    assert own and item and own["y"] < item["y"]
    assert page.locator("details.own").bounding_box()["y"] < item["y"]  # type: ignore[index]
    expect(page.get_by_text("by how much:")).to_be_visible()
    expect(part(page, "progress")).to_contain_text("0 of 50 votes")
    page.keyboard.press("1")
    expect(part(page, "progress")).to_contain_text("1 of 50 votes")
    expect(welcome).to_be_hidden()


def test_votes_are_cast_on_any_keyboard(open_page: Any, project: ServedProject) -> None:
    keys = [(layout, *one) for layout, found in KEYBOARDS.items() for one in found]
    for layout, key, _, _ in keys:
        project.ask(f"{layout} {key}")
    project.ask("The end?")
    page = open_page(project.url)
    log_in(page)
    for layout, key, code, what in keys:
        known = {vote.id for vote in project.store.votes()}
        shows(page, f"{layout} {key}")
        event = {"key": key, "code": code, "bubbles": True, "cancelable": True}
        for state in ({"ctrlKey": True}, {"repeat": True}, {}):
            page.evaluate(
                "(event) => document.body.dispatchEvent(new KeyboardEvent('keydown', event))",
                event | state,
            )
        if what == "clearly":
            page.keyboard.press("1")
        expect(part(page, "prompt")).not_to_have_text(f"{layout} {key}")
        (vote,) = [vote for vote in project.store.votes() if vote.id not in known]
        assert vote.rater == "Zoë"
        verdict = vote.verdict
        best = verdict.ranking and "AB"[vote.shown.index(verdict.ranking[0][0])]
        assert what in (verdict.verdict, best, verdict.strength), (layout, key)
