"""The Rate page in a real browser: three or more answers are ranked."""

import re
from typing import Any

from playwright.sync_api import Page, expect

from tests.browser.projects import (
    ServedProject,
    bodies,
    part,
    press,
    shows,
)

LETTERS = "ABCDEF"


# ---- rankings

FOUR = ("Alpha.", "Beta.", "Gamma.", "Delta.")


def ranking_page(open_page: Any, project: ServedProject, **options: Any) -> Page:
    """A page with four answers to be ranked, and then a pair."""
    project.ask("Rank these.", FOUR)
    project.ask("The end?")
    page = open_page(project.url, **options)
    shows(page, "Rank these.")
    expect(chips(page)).to_have_count(4)
    return page


def chips(page: Page) -> Any:
    return part(page, "ranking").locator("li:not(.divider)")


def order(page: Page) -> str:
    """The rows as they stand, `|` for the line."""
    return "".join(
        "|" if "divider" in (row.get_attribute("class") or "") else row.locator("b").inner_text()
        for row in part(page, "ranking").locator("li").all()
    )


def tiers(project: ServedProject, page_order: list[str]) -> list[list[str]]:
    """The only vote's tiers as letters on the screen, by the texts that were shown."""
    (vote,) = project.votes()
    letter = {text: LETTERS[place] for place, text in enumerate(page_order)}
    assert [vote.completions[n] for n in vote.shown] == page_order
    return [sorted(letter[vote.completions[n]] for n in tier) for tier in vote.verdict.ranking]


def drag(page: Page, row: str, onto: str) -> None:
    """With the mouse, from the middle of one row past the middle of another."""
    part(page, "ranking").scroll_into_view_if_needed()
    start, end = (_middle(page, name) for name in (row, onto))
    page.mouse.move(*start)
    page.mouse.down()
    down = 1 if end[1] > start[1] else -1
    page.mouse.move(start[0], end[1] + 4 * down, steps=8)
    page.mouse.up()


def _middle(page: Page, row: str) -> tuple[float, float]:
    place = "line" if row == "|" else LETTERS.index(row)
    chip = part(page, "ranking").locator(f'[data-position="{place}"]')
    box = chip.bounding_box()
    assert box is not None
    return box["x"] + 60, box["y"] + box["height"] / 2


def test_a_ranking_is_dragged_with_the_mouse(open_page: Any, project: ServedProject) -> None:
    page = ranking_page(open_page, project)
    shown = bodies(page)
    drag(page, "D", "A")
    assert order(page) == "DABC|"
    drag(page, "A", "C")
    assert order(page) == "DBCA|"
    drag(page, "|", "A")
    assert order(page) == "DBC|A"
    chips(page).nth(2).locator(".tie").click()
    press(page, "rank")
    shows(page, "The end?")
    assert tiers(project, shown) == [["D"], ["B", "C"]]


def test_a_ranking_is_dragged_with_a_finger(open_page: Any, project: ServedProject) -> None:
    page = ranking_page(open_page, project, width=360, height=740, has_touch=True, is_mobile=True)
    shown = bodies(page)
    part(page, "ranking").scroll_into_view_if_needed()
    finger = page.context.new_cdp_session(page)

    def touch(kind: str, points: list[tuple[float, float]]) -> None:
        where = [{"x": x, "y": y} for x, y in points]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": where})

    (x, low), (_, high) = _middle(page, "D"), _middle(page, "A")
    touch("touchStart", [(x, low)])
    for step in range(1, 9):
        touch("touchMove", [(x, low + (high - 5 - low) * step / 8)])
    page.wait_for_timeout(300)  # Chromium swallows a tap that comes too soon after a fling
    touch("touchEnd", [])
    expect(chips(page).first).to_contain_text("D")
    assert order(page) == "DABC|"
    page.get_by_role("button", name="Send the ranking").tap()
    shows(page, "The end?")
    assert tiers(project, shown) == [["D"], ["A"], ["B"], ["C"]]


def test_a_ranking_is_made_with_the_keyboard(open_page: Any, project: ServedProject) -> None:
    page = ranking_page(open_page, project)
    shown = bodies(page)
    chips(page).nth(2).focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert order(page) == "CABD|"
    expect(chips(page).first).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("=")
    expect(chips(page).nth(1)).to_have_attribute("aria-label", re.compile("as good as the one"))
    expect(chips(page).nth(1)).to_be_focused()
    part(page, "ranking").locator(".divider").focus()
    page.keyboard.press("ArrowUp")
    assert order(page) == "CAB|D"
    page.keyboard.press("w")
    page.keyboard.press("Enter")
    shows(page, "The end?")
    assert tiers(project, shown) == [["A", "C"], ["B"]]
    assert project.votes()[0].verdict.strength == "clearly"


def test_a_ranking_by_number_keys(open_page: Any, project: ServedProject) -> None:
    page = ranking_page(open_page, project)
    shown = bodies(page)
    for key in "3142":
        page.keyboard.press(key)
    assert order(page) == "CADB|"
    page.keyboard.press("Enter")
    shows(page, "The end?")
    assert tiers(project, shown) == [["C"], ["A"], ["D"], ["B"]]


def test_only_the_best_is_named(open_page: Any, project: ServedProject) -> None:
    page = ranking_page(open_page, project)
    shown = bodies(page)
    page.keyboard.press("2")
    part(page, "ranking").locator(".divider").focus()
    for _ in range(4):
        page.keyboard.press("ArrowUp")
    assert order(page) == "|BACD"
    press(page, "rank")
    expect(part(page, "status")).to_have_text("Put at least one answer above the line.")
    part(page, "ranking").locator(".divider").focus()
    page.keyboard.press("ArrowDown")
    press(page, "rank")
    shows(page, "The end?")
    assert tiers(project, shown) == [["B"]] and project.rows() == 1


def test_an_untouched_ranking_is_asked_about(open_page: Any, project: ServedProject) -> None:
    page = ranking_page(open_page, project)
    shown = bodies(page)
    press(page, "rank")
    expect(part(page, "status")).to_contain_text("in which they were shown. Send it again")
    assert project.rows() == 0
    press(page, "rank")
    shows(page, "The end?")
    assert tiers(project, shown) == [["A"], ["B"], ["C"], ["D"]]


def test_all_tied_is_a_tie(open_page: Any, project: ServedProject) -> None:
    page = ranking_page(open_page, project)
    for place in range(1, 4):
        chips(page).nth(place).locator(".tie").click()
    press(page, "rank")
    shows(page, "The end?")
    assert [vote.verdict.verdict for vote in project.votes()] == ["tie"]
