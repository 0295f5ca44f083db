"""The Insights page in a real browser: tastes, causes and raters; an axis of one's own."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from tests.browser.projects import ME, ServedProject, put_runs, running

FIRST = Verdict("ranked", [[0], [1]])
HOSTILE = "<img src=x onerror=\"document.title='taken'\">"


def votes(count: int, rater: str) -> list[ImportedVote]:
    made = []
    for number in range(count):
        answers = ((f"Yes, gladly and at length, {number}. {HOSTILE}", "a"), (f"No {number}.", "b"))
        asked = f"May I ask question {number}?"
        made.append(ImportedVote(asked, answers, FIRST, rater=rater, item=str(number)))
    return made


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, make_base: Callable[..., Path]
) -> Iterator[ServedProject]:
    """With a model, which reads the answers of the votes, and a reward role."""
    base = make_base(max_position_embeddings=2048)
    runs = partial(put_runs, base=base, names=["0001-reward"], tokens=8)
    with running(tmp_path_factory, base=base, runs=runs) as project:
        add_votes(project.store, [*votes(24, ME), *votes(22, "ann")])
        yield project


def section(page: Page, name: str) -> Any:
    return page.locator(f'.insights [data-part="{name}-body"]')


def tastes(page: Page) -> Any:
    """The tastes, once the model has read the answers; the page is asked again until then."""
    for _ in range(120):
        expect(section(page, "tastes")).not_to_be_empty()
        if section(page, "tastes").locator(".finding").count():
            return section(page, "tastes")
        page.wait_for_timeout(1000)
        page.reload()
    raise AssertionError(section(page, "tastes").inner_text())


def test_what_the_votes_say(open_page: Any, project: ServedProject) -> None:
    page = open_page(f"{project.url}/insights")
    expect(page.get_by_role("heading", level=1)).to_have_text("What the votes say")
    causes = section(page, "causes")
    expect(causes.locator(".summary")).to_contain_text("longer answers over answers of half")
    expect(section(page, "raters")).to_contain_text("All raters: 46 votes")
    expect(section(page, "raters")).to_contain_text(re.compile("Agreement on 22 pairs"))
    found = tastes(page)
    expect(section(page, "more").locator("svg, .summary").first).to_be_visible()
    expect(section(page, "reward").locator(".summary")).to_contain_text("PPO")
    expect(found.locator(".finding")).to_have_count(20)
    example = found.locator(".finding details").first
    if not example.is_visible():  # none is sure, or all are
        found.get_by_text(re.compile(r"Not clear yet \(\d+\)")).click()
    example.locator("summary").click()
    texts = example.locator(".answer .written")
    expect(texts).to_have_count(2)
    assert texts.first.inner_text().startswith("Yes, gladly") and "<img" in texts.first.inner_text()
    assert page.title() != "taken"
    page.get_by_label("Whose votes").select_option("mine")
    expect(section(page, "raters")).to_contain_text(f"{ME}: 24 votes")
    expect(section(page, "raters")).not_to_contain_text("ann")


def test_an_axis_of_one_s_own(open_page: Any, project: ServedProject) -> None:
    page = open_page(f"{project.url}/insights")
    tastes(page)
    page.get_by_role("button", name="See what the votes say").click()
    expect(page.locator(".insights .said")).to_contain_text("Write two texts")
    page.get_by_label("One way to say it").fill("Yes, gladly and at length.")
    page.get_by_label("The other way").fill("No.")
    page.get_by_role("button", name="See what the votes say").click()
    own = page.locator('.insights [data-part="own"] .finding')
    expect(own).to_have_count(1)
    expect(own).to_contain_text("Yes, gladly and at length. over No.")
    expect(own.locator(".numbers")).to_have_text(re.compile(r"\d+ of 100 \(\d+ to \d+\)"))
    page.reload()  # what was typed is still there
    expect(page.get_by_label("One way to say it")).to_have_value("Yes, gladly and at length.")
    expect(page.get_by_label("The other way")).to_have_value("No.")


def test_a_lost_reply_does_not_end_the_page(open_page: Any, project: ServedProject) -> None:
    page = open_page(f"{project.url}/insights")
    status = page.locator('.insights [data-part="status"]')
    expect(section(page, "causes")).not_to_be_empty()
    expect(status).to_have_text("")  # all is there: the next request is that of the choice below
    open_page.allow("component_server")
    lost = 0

    def lose(route: Any) -> None:
        nonlocal lost
        lost += 1
        route.abort() if lost == 1 else route.continue_()

    page.route(re.compile("component_server"), lose)
    page.get_by_label("Whose votes").select_option("mine")
    expect(section(page, "raters")).to_contain_text(f"{ME}: 24 votes")
    expect(section(page, "raters")).not_to_contain_text("ann")
    expect(status).to_have_text("")
    assert lost > 1


def test_a_hidden_page_looks_again_once_it_is_seen(open_page: Any, project: ServedProject) -> None:
    page = open_page(f"{project.url}/insights")
    tastes(page)
    page.evaluate("Object.defineProperty(document, 'hidden', { get: () => window.away })")
    page.evaluate("window.away = true")
    page.clock.install()
    answers = (("Of an answer that nobody has read yet.", "a"), ("No.", "b"))
    add_votes(project.store, [ImportedVote("A new question?", answers, FIRST, rater=ME)])
    page.get_by_label("Whose votes").select_option("mine")
    page.clock.run_for(5000)
    expect(section(page, "raters")).to_contain_text(f"{ME}: 25 votes")
    status = page.locator('.insights [data-part="status"]')
    while status.inner_text():  # the sections that are still computed
        page.clock.run_for(700)
        page.wait_for_timeout(100)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.clock.run_for(40_000)
    assert not [url for url in asked if "component_server" in url]
    page.evaluate("window.away = false")
    page.clock.run_for(16_000)
    assert [url for url in asked if "component_server" in url]
