"""The rate page in a real browser: every way to vote, and exactly the right rows in the store."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from lorarlhf.preferences.records import Vote
from tests.browser.projects import (
    ME,
    ServedProject,
    bodies,
    ends,
    judge,
    part,
    press,
    ready,
    running,
    shows,
)

LETTERS = "ABCDEF"
GONE = r"ERR_(CONNECTION|FAILED|EMPTY_RESPONSE|INCOMPLETE)|Failed to fetch|network error|Connection"
HOSTILE = (
    "<script>document.title = 'taken'</script> <img src=x onerror=\"document.title='taken'\"> "
    "[a link](javascript:document.title='taken') ![a picture](http://example.invalid/x.png) "
    "<a href=\"javascript:document.title='taken'\">tag</a> <svg onload=\"document.title='taken'\">"
)
MARKDOWN = (
    "# Head\n\nSome **bold** and `code`.\n\n- one\n- two\n\n1. first\n\n"
    "```python\nprint('a wide line', " + "1 + " * 60 + "1)\n```\n\n"
    "| sea | land |\n|---|---|\n| blue | green |\n\n> quoted"
)
LONG = "\n\n".join(f"Paragraph {n}. " + "The tide comes and goes again. " * 12 for n in range(14))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProject]:
    with running(tmp_path_factory) as project:
        yield project


@pytest.fixture
def project(shared: ServedProject) -> ServedProject:
    shared.forget()
    return shared


def winner(vote: Vote) -> str:
    """The text of the answer that won."""
    return vote.completions[vote.verdict.ranking[0][0]]


def said(project: ServedProject) -> list[tuple[str, str | None]]:
    """The verdicts: of a ranked one, which place on the screen won; and the strength."""
    found = []
    for vote in project.votes():
        verdict = vote.verdict
        name = verdict.verdict
        if name == "ranked":
            assert sorted(sum(verdict.ranking, [])) == [0, 1] and len(verdict.ranking) == 2
            name = LETTERS[vote.shown.index(verdict.ranking[0][0])]
        found.append((name, verdict.strength))
    return found


# In the page: the server hears the first such question, the page never hears that it did, and finds
# out no more, the first time. A route in the driver would not always see what a request says.
LOSE_FIRST = """(name) => {
  const real = window.fetch;
  window.lost = 0;
  window.fetch = async (...words) => {
    const answer = await real(...words);
    const asked = String(words[1]?.body ?? "").replaceAll(" ", "");
    const first = !window.lost && asked.includes(`"fn_name":"${name}"`);
    const second = window.lost === 1 && String(words[0]).includes("app_id");
    if (!first && !second) return answer;
    window.lost += 1;
    throw new TypeError("Failed to fetch");
  };
}"""


# ---- voting


def test_votes_by_mouse_name_the_answer_that_was_clicked(
    open_page: Any, project: ServedProject
) -> None:
    for number in range(1, 7):
        project.ask(f"Question {number}?", (f"Red {number}.", f"Blue {number}."))
    page = open_page(project.url)
    wanted = []
    for number, button in enumerate(("first", "second", "tie", "both_good", "both_bad", "skip"), 1):
        shows(page, f"Question {number}?")
        wanted.append(bodies(page)[button == "second"])
        press(page, button)
    ends(page)
    assert [name for name, _ in said(project)] == ["A", "B", "tie", "both_good", "both_bad", "skip"]
    assert [winner(vote) for vote in project.votes()[:2]] == wanted[:2]
    assert all(0 < (vote.milliseconds or 0) < 60_000 for vote in project.votes())
    assert {vote.purpose for vote in project.votes()} == {"train"}
    assert project.rows() == 6
    expect(part(page, "progress")).to_have_text("6 today · 6 in all · 6 in the last hour")


def test_votes_by_key(open_page: Any, project: ServedProject) -> None:
    keys = ["1", "2", "ArrowLeft", "ArrowRight", "t", "g", "b", "s", "T"]
    for number in range(len(keys)):
        project.ask(f"Question {number}?")
    page = open_page(project.url)
    for number, key in enumerate(keys):
        shows(page, f"Question {number}?")
        page.keyboard.press(key)
    ends(page)
    verdicts = ["A", "B", "A", "B", "tie", "both_good", "both_bad", "skip", "tie"]
    assert said(project) == [(name, None) for name in verdicts]


def test_strength_goes_with_one_vote(open_page: Any, project: ServedProject) -> None:
    for number in range(5):
        project.ask(f"Question {number}?")
    page = open_page(project.url)
    pressed = page.locator('.vote-widget [data-strength][aria-pressed="true"]')
    for number, key in enumerate("qwe"):
        shows(page, f"Question {number}?")
        expect(pressed).to_have_count(0)
        page.keyboard.press(key)
        expect(pressed).to_have_count(1)
        page.keyboard.press("1")
    shows(page, "Question 3?")
    page.get_by_role("button", name="clearly").click()
    page.get_by_role("button", name="much").click()
    expect(pressed).to_have_text(re.compile("much"))
    press(page, "second")
    shows(page, "Question 4?")
    page.keyboard.press("q")
    page.keyboard.press("q")  # the second takes it back
    page.keyboard.press("2")
    ends(page)
    strengths = ["slightly", "clearly", "much", "much", None]
    assert said(project) == list(zip("AAABB", strengths, strict=True))


@pytest.mark.parametrize("by_key", [True, False])
def test_undo_brings_the_same_pair_back(
    open_page: Any, project: ServedProject, by_key: bool
) -> None:
    def undo() -> None:
        page.keyboard.press("u") if by_key else page.get_by_role("button", name="Undo").click()

    project.ask("First?", ("Red.", "Blue."))
    project.ask("Second?")
    page = open_page(project.url)
    shows(page, "First?")
    before = bodies(page)
    page.keyboard.press("1")
    shows(page, "Second?")
    undo()
    shows(page, "First?")
    assert bodies(page) == before
    assert project.votes() == [] and project.rows() == 2
    expect(part(page, "progress")).to_have_text("0 today · 0 in all · 0 in the last hour")
    undo()
    expect(part(page, "status")).to_have_text("You have no vote to undo.")
    page.keyboard.press("2")
    shows(page, "Second?")
    page.keyboard.press("t")
    ends(page)
    undo()  # from the page that has nothing more to show
    shows(page, "Second?")
    page.keyboard.press("g")
    ends(page)
    assert said(project) == [("B", None), ("both_good", None)]


def test_a_double_click_and_a_held_key_are_one_vote(open_page: Any, project: ServedProject) -> None:
    for number in range(1, 4):
        project.ask(f"Question {number}?")
    page = open_page(project.url)
    shows(page, "Question 1?")
    page.locator('.vote-widget [data-do="first"]').dblclick()
    shows(page, "Question 2?")
    assert said(project) == [("A", None)]
    for _ in range(12):  # each after the first one is a repetition
        page.keyboard.down("2")
    shows(page, "Question 3?")
    for _ in range(3):
        page.keyboard.down("2")
    page.keyboard.up("2")
    ready(page)
    assert said(project) == [("A", None), ("B", None)] and project.rows() == 2


def test_keys_are_letters_while_somebody_types(open_page: Any, project: ServedProject) -> None:
    project.ask("Question?")
    page = open_page(project.url)
    shows(page, "Question?")
    page.keyboard.press("n")
    expect(part(page, "note")).to_be_focused()
    page.keyboard.type("best gut 12 u")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert project.rows() == 0
    page.keyboard.press("Escape")
    expect(part(page, "note")).not_to_be_focused()
    page.keyboard.press("p")
    expect(part(page, "own")).to_be_focused()
    page.keyboard.type("q1")
    page.keyboard.press("Escape")
    page.keyboard.press("Control+b")
    page.keyboard.press("Alt+1")
    assert project.rows() == 0
    page.keyboard.press("1")
    ends(page)
    assert said(project) == [("A", None)]
    assert project.votes()[0].verdict.note == "best gut 12 \nu"


def test_undo_after_a_lost_answer_takes_one_vote_back(
    open_page: Any, project: ServedProject
) -> None:
    for number in range(1, 4):
        project.ask(f"Question {number}?")
    page = open_page(project.url)
    open_page.allow(GONE)
    for number in (1, 2):
        shows(page, f"Question {number}?")
        page.keyboard.press("1")
    shows(page, "Question 3?")
    page.reload()  # the page knows of its votes only what the server tells
    shows(page, "Question 3?")
    page.evaluate(LOSE_FIRST, "undo")
    page.keyboard.press("u")
    shows(page, "Question 2?")
    assert page.evaluate("window.lost") == 2 and len(project.votes()) == 1


def test_notes_and_edited_answers_are_kept(open_page: Any, project: ServedProject) -> None:
    project.ask("First?", ("Red *is* best.", "Blue."))
    project.ask("Second?")
    page = open_page(project.url)
    shows(page, "First?")
    place = bodies(page).index("Red is best.")
    page.get_by_role("article", name=f"Answer {LETTERS[place]}").get_by_role("button").first.click()
    expect(part(page, "edited")).to_be_focused()
    expect(part(page, "edited")).to_have_value("Red *is* best.")
    part(page, "edited").fill("Red *is* better.")
    part(page, "note").fill("  Close.  ")
    press(page, "both_bad")
    shows(page, "Second?")
    expect(part(page, "note")).to_have_value("")
    expect(part(page, "edited")).to_have_value("")
    press(page, "tie")
    ends(page)
    first, second = (vote.verdict for vote in project.votes())
    assert (first.verdict, first.note, first.edited) == ("both_bad", "Close.", "Red *is* better.")
    assert (second.note, second.edited) == (None, None)


# ---- what may go wrong


def test_a_reload_shows_the_same_pair_in_the_same_order(
    open_page: Any, project: ServedProject
) -> None:
    for number in range(6):
        project.ask(f"Question {number}?", (f"Red {number}.", f"Blue {number}."))
    page = open_page(project.url)
    for number in range(6):
        shows(page, f"Question {number}?")
        before = bodies(page)
        if number < 3:
            page.reload()
            shows(page, f"Question {number}?")
            assert bodies(page) == before
        page.keyboard.press("1")
    ends(page)
    orders = {tuple(vote.shown) for vote in project.votes()}
    assert [name for name, _ in said(project)] == ["A"] * 6 and orders == {(0, 1), (1, 0)}


def test_two_tabs_cast_one_vote_a_pair(open_page: Any, project: ServedProject) -> None:
    for number in range(1, 4):
        project.ask(f"Question {number}?")
    one = open_page(project.url)
    two = one.context.new_page()
    two.goto(project.url)
    shows(one, "Question 1?")
    shows(two, "Question 1?")
    assert bodies(one) == bodies(two)
    one.keyboard.press("1")
    shows(one, "Question 2?")
    two.keyboard.press("2")  # too late: the first one stands
    shows(two, "Question 2?")
    assert said(project) == [("A", None)]
    two.keyboard.press("t")
    shows(two, "Question 3?")
    one.keyboard.press("u")  # takes back the vote that this tab saw, not the other's
    shows(one, "Question 1?")
    assert said(project) == [("tie", None)]
    assert project.rows() == 3


def test_a_vote_whose_answer_is_lost_is_sent_again_and_counted_once(
    open_page: Any, project: ServedProject
) -> None:
    for number in range(1, 3):
        project.ask(f"Question {number}?")
    page = open_page(project.url)
    open_page.allow(GONE)
    shows(page, "Question 1?")
    page.evaluate(LOSE_FIRST, "vote")
    page.keyboard.press("1")
    expect(part(page, "status")).to_contain_text("The server does not answer. Your votes are saved")
    assert said(project) == [("A", None)]
    shows(page, "Question 2?")
    expect(part(page, "status")).to_have_text("")
    assert said(project) == [("A", None)] and project.rows() == 1
    assert page.evaluate("window.lost") == 2


def test_a_killed_server_is_told_and_nothing_is_lost(
    open_page: Any, project: ServedProject
) -> None:
    for number in range(1, 4):
        project.ask(f"Question {number}?")
    page = open_page(project.url)
    open_page.allow(GONE)
    shows(page, "Question 1?")
    page.keyboard.press("1")
    shows(page, "Question 2?")
    project.server.kill()
    page.keyboard.press("q")
    page.keyboard.press("2")
    expect(part(page, "status")).to_contain_text("The server does not answer")
    page.keyboard.press("1")  # while it waits nothing else is taken
    project.server.restart()
    shows(page, "Question 3?")
    expect(part(page, "status")).to_have_text("")
    assert said(project) == [("A", None), ("B", "slightly")]
    page.keyboard.press("t")
    ends(page)
    assert said(project)[2:] == [("tie", None)] and project.rows() == 3
    page.get_by_role("button", name="Undo").click()
    shows(page, "Question 3?")


# ---- what is shown


def test_answers_are_shown_as_markdown_and_folded(open_page: Any, project: ServedProject) -> None:
    project.ask("Long?", (LONG, MARKDOWN))
    project.ask("Short?", ("I am ChatGPT, made by OpenAI.", "Anthropic is a company."))
    page = open_page(project.url)
    shows(page, "Long?")
    marked = page.locator(".vote-widget .answer", has=page.locator("table"))
    for tag, text in {"h1": "Head", "strong": "bold", "ul li": "one", "ol li": "first"}.items():
        expect(marked.locator(tag).first).to_have_text(text)
    expect(marked.locator("p code")).to_have_text("code")
    expect(marked.locator("pre")).to_contain_text("print('a wide line'")
    expect(marked.locator("td").first).to_have_text("blue")
    expect(marked.locator("blockquote")).to_have_text("quoted")
    long = page.locator(".vote-widget .answer", has_text="Paragraph 13.")
    height = (long.bounding_box() or {})["height"]
    assert height < 600
    unfold = long.get_by_role("button", name="Show all")
    unfold.click()
    assert (long.bounding_box() or {})["height"] > 2 * height
    long.get_by_role("button", name="Show less").click()
    assert (long.bounding_box() or {})["height"] == height
    unfold.click()
    page.keyboard.press("1")
    shows(page, "Short?")
    expect(page.locator(".vote-widget .answer.open")).to_have_count(0)
    expect(page.locator(".vote-widget .flag:visible")).to_have_count(1)
    flagged = page.locator(".vote-widget .answer", has_text="I am ChatGPT")
    expect(flagged.locator(".flag")).to_contain_text("names its maker")


def test_hostile_text_does_nothing(open_page: Any, project: ServedProject) -> None:
    asked = [{"role": f"user{HOSTILE}", "content": HOSTILE}, {"role": "user", "content": HOSTILE}]
    project.ask(asked, (HOSTILE, f"```\n{HOSTILE}\n```"))
    page = open_page(project.url)
    expect(part(page, "prompt")).to_contain_text("<script>")
    ready(page)
    shown = page.locator('.vote-widget [data-part="item"]')
    expect(shown.locator("script, img, svg, iframe, [onerror], [href^=javascript]")).to_have_count(
        0
    )
    link = shown.get_by_role("link")
    assert {a.get_attribute("href") for a in link.all()} <= {"http://example.invalid/x.png"}
    page.get_by_role("button", name="Edit a copy").first.click()
    part(page, "edited").press_sequentially(" Mine.")  # an untouched copy would not be kept
    part(page, "note").fill(HOSTILE)
    press(page, "first")
    ends(page)
    assert page.title() == "lorarlhf"
    verdict = project.votes()[0].verdict
    assert verdict.note == HOSTILE and HOSTILE in (verdict.edited or "")


def test_no_name_of_a_model_reaches_the_browser(open_page: Any, project: ServedProject) -> None:
    sources = ("runs/0042-secretive", "runs/0043-veiled")
    for number in range(3):
        project.ask(f"Question {number}?", sources=sources)
    page = open_page(project.url)
    told: list[str] = []
    page.on("response", lambda reply: told.append(_body(reply)))
    page.reload()
    for number, key in enumerate("12"):
        shows(page, f"Question {number}?")
        page.keyboard.press(key)
    shows(page, "Question 2?")
    page.keyboard.press("u")
    shows(page, "Question 1?")
    everything = page.content() + "".join(told)
    assert "Question 1?" in "".join(told)
    for name in ("secretive", "0042", "0043-", "veiled", "runs/"):
        assert name not in everything, name
    assert project.votes()[0].sources == list(sources)


def _body(reply: Any) -> str:
    asked = "component_server" in reply.url or "queue/data" in reply.url or "/config" in reply.url
    try:
        return reply.text() if asked else ""
    except Exception:  # a stream that is still open
        return ""


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


# ---- settings


def test_how_answers_are_made_is_kept(open_page: Any, project: ServedProject) -> None:
    page = open_page(project.url)
    ends(page)
    page.get_by_role("link", name="Settings").click()
    number = page.locator('#settings-answers input[type="number"]')
    expect(number).to_be_enabled()  # what is typed before would be overwritten
    expect(number).to_have_value("2")
    number.fill("4")
    number.blur()
    page.locator("#settings-save").click()
    expect(page.locator("#settings-message")).to_contain_text("Saved.")
    page.reload()
    expect(number).to_have_value("4")
    rows = project.store.rows("SELECT value FROM setting WHERE name = 'collect'")
    assert json.loads(rows[0]["value"])["answers"] == 4


# ---- live answers

OWN = "Name a quiet harbour."


@pytest.fixture(scope="module")
def live(
    tmp_path_factory: pytest.TempPathFactory, make_base: Callable[..., Path]
) -> Iterator[ServedProject]:
    """A project with a base whose answers take some seconds."""
    base = make_base(num_hidden_layers=24, max_position_embeddings=4096)
    with running(tmp_path_factory, base=base) as project:
        making = json.dumps({"max_new_tokens": 3000})
        with project.store.write() as db:
            db.execute("INSERT INTO setting VALUES ('collect', ?)", (making,))
        yield project


def test_an_own_prompt_is_answered_live_and_voted_on_before_the_end(
    open_page: Any, live: ServedProject
) -> None:
    page = open_page(live.url)
    expect(part(page, "progress")).not_to_be_empty()  # the page's script runs
    page.keyboard.press("p")
    part(page, "own").fill(OWN)
    page.keyboard.press("Control+Enter")
    expect(part(page, "prompt")).to_have_text(OWN)
    expect(judge(page)).to_have_attribute("data-streaming", "yes")
    expect(part(page, "own")).to_have_value("")
    for body in page.locator(".vote-widget .answer .body").all():
        expect(body).to_have_text(re.compile(r"\S{3}"))
    ready(page)
    before = page.evaluate("document.querySelector('.vote-widget').dataset.streaming")
    early = [body[:20] for body in bodies(page)]
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    expect(part(page, "prompt")).not_to_have_text(OWN)
    vote = next(vote for vote in live.votes() if vote.prompt[-1]["content"] == OWN)  # type: ignore
    assert before == "yes"
    # The page draws Markdown, so signs may be missing there.
    kept = [re.sub(r"[\W_]", "", vote.completions[n]) for n in vote.shown]
    seen = [re.sub(r"[\W_]", "", text)[:6] for text in early]  # as far as it was written by then
    assert all(whole.startswith(part) for whole, part in zip(kept, seen, strict=True))
    assert all(seen)
    assert vote.shown.index(vote.verdict.ranking[0][0]) == 1
    assert [how["ended"] for how in vote.sampling] == [False, False]
    asked = [json.loads(line)["prompt"] for line in live.project.prompts.read_text().splitlines()]
    assert asked.count(OWN) == 1 and len(live.votes()) == 1
    assert vote.rater == ME
