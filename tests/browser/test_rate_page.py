"""The Rate page in a real browser: every way to vote, and exactly the right rows in the store."""

import re
from typing import Any

import pytest
from playwright.sync_api import expect

from lorarlhf.preferences.records import Vote
from tests.browser.projects import (
    ServedProject,
    bodies,
    ends,
    part,
    press,
    ready,
    shows,
)

LETTERS = "ABCDEF"
GONE = r"ERR_(CONNECTION|FAILED|EMPTY_RESPONSE|INCOMPLETE)|Failed to fetch|network error|Connection"


def winner(vote: Vote) -> str:
    """The text of the answer that won."""
    return vote.completions[vote.verdict.ranking[0][0]]


def verdicts(project: ServedProject) -> list[tuple[str, str | None]]:
    """The verdicts and their strength; of a ranked one, which answer on the screen won."""
    found = []
    for vote in project.votes():
        verdict = vote.verdict
        name = verdict.verdict
        if name == "ranked":
            assert sorted(sum(verdict.ranking, [])) == [0, 1] and len(verdict.ranking) == 2
            name = LETTERS[vote.shown.index(verdict.ranking[0][0])]
        found.append((name, verdict.strength))
    return found


# In the page: the server receives the first request of this name, but the page loses the reply and
# the first check of the server. A route in the driver would not always see the request's body.
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
    assert [name for name, _ in verdicts(project)] == [
        "A",
        "B",
        "tie",
        "both_good",
        "both_bad",
        "skip",
    ]
    assert [winner(vote) for vote in project.votes()[:2]] == wanted[:2]
    assert all(0 < (vote.milliseconds or 0) < 60_000 for vote in project.votes())
    assert {vote.purpose for vote in project.votes()} == {"train"}
    assert project.rows() == 6
    expect(part(page, "progress")).to_have_text("5 of 50 votes · 6 today · 6 in the last hour")


def test_votes_by_key(open_page: Any, project: ServedProject) -> None:
    keys = ["1", "2", "ArrowLeft", "ArrowRight", "t", "g", "b", "s", "T"]
    for number in range(len(keys)):
        project.ask(f"Question {number}?")
    page = open_page(project.url)
    for number, key in enumerate(keys):
        shows(page, f"Question {number}?")
        page.keyboard.press(key)
    ends(page)
    expected = ["A", "B", "A", "B", "tie", "both_good", "both_bad", "skip", "tie"]
    assert verdicts(project) == [(name, None) for name in expected]


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
    assert verdicts(project) == list(zip("AAABB", strengths, strict=True))


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
    expect(part(page, "progress")).to_have_text("0 of 50 votes · 0 today · 0 in the last hour")
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
    assert verdicts(project) == [("B", None), ("both_good", None)]


def test_a_double_click_and_a_held_key_are_one_vote(open_page: Any, project: ServedProject) -> None:
    for number in range(1, 4):
        project.ask(f"Question {number}?")
    page = open_page(project.url)
    shows(page, "Question 1?")
    page.locator('.vote-widget [data-do="first"]').dblclick()
    shows(page, "Question 2?")
    assert verdicts(project) == [("A", None)]
    for _ in range(12):  # each after the first one is a repetition
        page.keyboard.down("2")
    shows(page, "Question 3?")
    for _ in range(3):
        page.keyboard.down("2")
    page.keyboard.up("2")
    ready(page)
    assert verdicts(project) == [("A", None), ("B", None)] and project.rows() == 2


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
    assert verdicts(project) == [("A", None)]
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
    place = bodies(page).index("Red *is* best.")
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
    assert [name for name, _ in verdicts(project)] == ["A"] * 6 and orders == {(0, 1), (1, 0)}


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
    expect(part(two, "status")).to_contain_text(
        "You have voted on these answers already, perhaps in another tab: A is better."
    )
    shows(two, "Question 2?")
    assert verdicts(project) == [("A", None)]
    two.keyboard.press("t")
    shows(two, "Question 3?")
    expect(part(one, "progress")).to_contain_text(
        "2 of 50 votes"
    )  # it has heard of the other's vote
    one.keyboard.press("u")  # takes back the vote that this tab saw, not the other's
    shows(one, "Question 1?")
    assert verdicts(project) == [("tie", None)]
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
    assert verdicts(project) == [("A", None)]
    shows(page, "Question 2?")
    expect(part(page, "status")).to_have_text("")
    assert verdicts(project) == [("A", None)] and project.rows() == 1
    assert page.evaluate("window.lost") == 2


def test_no_vote_is_lost_when_the_server_is_killed(open_page: Any, project: ServedProject) -> None:
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
    assert verdicts(project) == [("A", None), ("B", "slightly")]
    page.keyboard.press("t")
    ends(page)
    assert verdicts(project)[2:] == [("tie", None)] and project.rows() == 3
    page.get_by_role("button", name="Undo").click()
    shows(page, "Question 3?")
