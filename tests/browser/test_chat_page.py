"""The chat page in a real browser: answers stream and stop, side by side, votes, conversations."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.browser.projects import ME, Project, put_runs, running

RUN = "0001-sft"
LONGEST = 2048  # takes many seconds
# Gradio loses what is asked in the very moment in which its stream of answers is being closed.
SETTLED_MS = 300
KEPT = "Kept. The conversation goes on with the better answer."
HOSTILE = (
    "<img src=x onerror=\"document.title='taken'\"> <script>document.title='taken'</script> "
    "![a picture](http://example.invalid/x.png) ![mine](/logout) [a link](javascript:alert(1)) "
    "<svg onload=\"document.title='taken'\"></svg> <iframe src=/></iframe> "
    "<form action=/logout method=post><input name=password></form> <style>#root{}</style>"
)
# What comes through Gradio's cleaning is drawn with its handlers, and the policy lets none run.
REFUSED = (
    "^console error: (Refused to execute inline event handler because it violates|"
    "Executing inline event handler violates) "
    "the following Content Security Policy directive:? ['\"]script-src 'self' "
)
COVER = '<div style="position: fixed; inset: 0; background: red; z-index: 9999">cover</div>'
MARKDOWN = (
    "# Head\n\nSome **bold**.\n\n- one\n\n```python\nprint('<b>')\n```\n\n| sea |\n|---|\n| blue |"
)


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, make_base: Callable[..., Path]
) -> Iterator[Project]:
    """A base whose long answers take many seconds, a run with a policy and one with a reward."""
    base = make_base(num_hidden_layers=12, max_position_embeddings=8192)
    runs = partial(put_runs, base=base, names=[RUN, "0002-reward"], tokens=8)
    with running(tmp_path_factory, base=base, runs=runs) as project:
        yield project


@pytest.fixture(autouse=True)
def nobody_was_here(project: Project) -> None:
    project.forget()


@pytest.fixture
def chat(open_page: Any, project: Project) -> Callable[..., Page]:
    """`chat(beside="", tokens=16, temperature=0.7)`: the page with a new conversation."""

    def start(beside: str = "", tokens: int = 16, temperature: float = 0.7) -> Page:
        page = visit(open_page, project)
        page.get_by_role("button", name="New conversation").click()
        expect(messages(page)).to_have_count(0)
        choose(page, "left", "base")
        choose(page, "right", beside or "nobody")
        expect(page.locator("#chat-right-side")).to_be_visible(visible=bool(beside))
        page.get_by_role("button", name="System prompt and sampling").click()
        expect(page.locator("#chat-scored")).to_be_visible()
        page.wait_for_timeout(SETTLED_MS)  # fields that were just drawn get their values again
        number(page, "Longest answer, in tokens", tokens)
        number(page, "Temperature", temperature)
        return page

    return start


def visit(open_page: Any, project: Project) -> Page:
    page = open_page(f"{project.url}/chat")
    ready(page)
    return page


def ready(page: Page) -> None:
    """Wait until the page knows its models and the conversation."""
    expect(page.locator("#chat-left-model input")).not_to_have_value("")
    expect(page.locator("#chat-right-model input")).not_to_have_value("")
    page.wait_for_timeout(SETTLED_MS)


def choose(page: Page, side: str, name: str) -> None:
    model = page.locator(f"#chat-{side}-model")
    field = model.locator("input")
    field.click()
    model.get_by_role("option", name=name, exact=True).click()
    expect(field).to_have_value(name)


def number(page: Page, label: str, value: float) -> None:
    field = page.get_by_label(f"number input for {label}")
    field.fill(str(value))
    field.press("Tab")
    expect(field).to_have_value(str(value))


def messages(page: Page, side: str = "left", who: str = "") -> Locator:
    """What is on a side, of `user` or `bot` or both."""
    kind = f'[data-testid="{who}"]' if who else ':is([data-testid="user"], [data-testid="bot"])'
    return page.locator(f"#chat-{side}-side {kind}")


def text(message: Locator) -> str:
    """A message as it was written, not as Markdown draws it; half a character is left out."""
    return said(message).rstrip("\ufffd")


def said(message: Locator) -> str:
    return (message.get_attribute("aria-label") or "").partition("'s message: ")[2]


def texts(page: Page, side: str = "left") -> list[str]:
    return [said(message) for message in messages(page, side).all()]


def letters(text: str) -> str:
    """A text without signs: an attribute holds some of them in another form."""
    return re.sub(r"\W", "", text)


def ask(page: Page, question: str) -> None:
    page.get_by_label("Your message").fill(question)
    page.keyboard.press("Enter")


def grows(message: Locator) -> str:
    """Wait until there is a text and then more of it; gives the first of the two."""
    expect(message).to_have_attribute("aria-label", re.compile(r": [^…]"))
    first = text(message)
    expect(message).not_to_have_attribute("aria-label", re.compile(f"{re.escape(first)}\ufffd*$"))
    assert text(message).startswith(first)
    return first


def answered(page: Page, turns: int = 1) -> None:
    """Wait until both sides have answered and a vote is possible.

    A random base now and then begins with the end, which leaves nothing to vote on.
    """
    for _ in range(6):
        for side in ("left", "right"):
            expect(messages(page, side, "bot")).to_have_count(turns)
        expect(page.locator("#chat-votes")).to_be_visible()
        if all(text(messages(page, side, "bot").last).strip("… ") for side in ("left", "right")):
            return
        page.get_by_role("button", name="Answer again").click()
        page.wait_for_timeout(SETTLED_MS)


def vote(page: Page, name: str) -> None:
    page.locator("#chat-votes").get_by_role("button", name=name, exact=True).click()


# ---- answers


def test_an_answer_streams_and_stops(chat: Any, open_page: Any, project: Project) -> None:
    page = chat(tokens=LONGEST, temperature=0)
    ask(page, "Tell me a long story.")
    answer = messages(page, who="bot")
    expect(page.get_by_label("Your message")).to_have_value("")
    grows(answer)
    page.get_by_role("button", name="Stop").click()
    page.wait_for_timeout(1000)  # what was on its way
    kept = said(answer)
    page.wait_for_timeout(1500)
    assert said(answer) == kept
    number(page, "Longest answer, in tokens", 16)
    ask(page, "And a short one?")  # would be refused while an answer is being written
    expect(messages(page, who="bot")).to_have_count(2)
    expect(page.locator("#chat-said")).not_to_contain_text("Still answering")
    assert texts(page)[:3] == ["Tell me a long story.", kept, "And a short one?"]
    expect(page.locator("#chat-votes")).to_be_hidden()
    assert texts(visit(open_page, project))[1] == kept


def test_both_sides_stream_and_what_was_stopped_can_be_compared(
    chat: Any, project: Project
) -> None:
    page = chat(RUN, tokens=LONGEST, temperature=0)
    ask(page, "Who?")
    for side in ("left", "right"):
        grows(messages(page, side, "bot"))
    expect(page.locator("#chat-votes")).to_be_hidden()
    page.get_by_role("button", name="Stop").click()
    answered(page)
    shown = [texts(page, side)[1] for side in ("left", "right")]
    vote(page, "Tie")
    expect(page.locator("#chat-said")).to_have_text(KEPT)
    (kept,) = project.votes()
    assert list(map(letters, kept.completions)) == list(map(letters, shown))


def test_an_empty_question_is_refused(chat: Any) -> None:
    page = chat()
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#chat-said")).to_have_text("Type something first.")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator("#chat-said")).to_have_text("There is nothing to answer yet.")
    expect(messages(page)).to_have_count(0)


def test_a_question_that_comes_before_the_page_is_filled_is_answered(
    open_page: Any, chat: Any, project: Project
) -> None:
    chat().close()
    page = open_page("about:blank")
    held = []

    def hold(route: Route) -> None:
        """The page's own first question, for the models there are, waits for the person's."""
        if not held:
            held.append(route)
        else:
            route.continue_()

    page.route(re.compile("queue/join"), hold)
    page.goto(f"{project.url}/chat")
    ask(page, "Early?")
    expect(messages(page, who="user")).to_have_text("Early?")
    expect(messages(page, who="bot")).to_have_attribute("aria-label", re.compile(r": [^…]"))
    held[0].continue_()
    ready(page)
    expect(messages(page, who="user")).to_have_text("Early?")


# ---- side by side


@pytest.mark.parametrize(("button", "best"), [("Left is better", 0), ("Right is better", 1)])
def test_a_vote_lands_with_both_sources(
    chat: Any, project: Project, button: str, best: int
) -> None:
    page = chat(RUN)
    ask(page, "A colour?")
    answered(page)
    shown = [texts(page, side)[1] for side in ("left", "right")]
    page.locator("#chat-votes").get_by_role("button", name=button).dblclick()
    expect(page.locator("#chat-votes")).to_be_hidden()
    expect(page.locator("#chat-said")).to_have_text(re.compile("Kept|You have voted"))
    (vote,) = project.votes()
    assert project.rows() == 1
    assert vote.prompt == [{"role": "user", "content": "A colour?"}]
    assert vote.sources == ["base", f"runs/{RUN}"]
    assert list(map(letters, vote.completions)) == list(map(letters, shown))
    assert (vote.verdict.verdict, vote.verdict.ranking) == ("ranked", [[best], [1 - best]])
    assert (vote.purpose, vote.rater, vote.origin) == ("train", ME, {"page": "chat"})
    assert vote.sampling == [{"temperature": 0.7, "max_new_tokens": 16}] * 2


@pytest.mark.parametrize("verdict", ["tie", "both_good", "both_bad"])
def test_verdicts_without_a_better_one(chat: Any, project: Project, verdict: str) -> None:
    page = chat(RUN)
    ask(page, "A colour?")
    answered(page)
    vote(page, verdict.replace("_", " ").capitalize())
    expect(page.locator("#chat-said")).to_have_text(KEPT)
    assert [vote.verdict.verdict for vote in project.votes()] == [verdict]


def test_another_tab_votes_too_late(chat: Any, open_page: Any, project: Project) -> None:
    page = chat(RUN)
    ask(page, "A colour?")
    answered(page)
    other = visit(open_page, project)
    answered(other)
    vote(page, "Tie")
    expect(page.locator("#chat-said")).to_have_text(KEPT)
    vote(other, "Left is better")
    expect(other.locator("#chat-said")).to_contain_text("You have voted on these. Correct it on")
    expect(other.locator("#chat-votes")).to_be_hidden()
    assert [vote.verdict.verdict for vote in project.votes()] == ["tie"] and project.rows() == 1


def test_the_better_answer_goes_on_on_both_sides(chat: Any, project: Project) -> None:
    page = chat(RUN)
    page.get_by_label("System prompt, of a new conversation").fill("Be brief.")
    ask(page, "First?")
    answered(page)
    left, right = (texts(page, side)[1] for side in ("left", "right"))
    assert left != right
    vote(page, "Right is better")
    expect(page.locator("#chat-said")).to_have_text(KEPT)
    ask(page, "Second?")
    answered(page, 2)
    assert texts(page)[:3] == texts(page, "right")[:3] == ["First?", right, "Second?"]
    vote(page, "Left is better")
    expect(page.locator("#chat-said")).to_have_text(KEPT)
    first, second = project.votes()
    assert first.prompt == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "First?"},
    ]
    asked = [message["content"] for message in second.prompt]  # type: ignore[index]
    expected = ["Be brief.", "First?", right, "Second?"]
    assert list(map(letters, asked)) == list(map(letters, expected))


def test_the_reward_roles_scores(chat: Any) -> None:
    page = chat(RUN)
    ask(page, "Without?")
    answered(page)
    expect(page.locator("#chat-said")).to_have_text("")
    page.get_by_label("Show the reward role's score of each answer").check()
    page.get_by_role("button", name="Answer again").click()
    number = r"(-?\d+\.\d\d)"
    told = page.locator("#chat-said")
    expect(told).to_have_text(re.compile(f"Reward role's score: {number} and {number}\\."))
    one, other = re.findall(number, told.inner_text())
    assert one != other


# ---- the conversation


def test_an_answer_is_written_again(chat: Any) -> None:
    page = chat(RUN, temperature=1.5)
    ask(page, "A colour?")
    answered(page)
    before = again = ""
    for _ in range(8):  # a random base may say a letter and end: two answers of three are wanted
        before = again if len(again) >= 3 else before
        page.get_by_role("button", name="Answer again").click()
        page.wait_for_timeout(SETTLED_MS)
        answered(page)
        again = text(messages(page, who="bot"))
        if before and len(again) >= 3:
            break
    assert len(again) >= 3 and not again.startswith(before[:3])
    assert texts(page)[0] == "A colour?" and len(texts(page)) == 2


def test_a_question_is_asked_in_other_words(chat: Any, project: Project) -> None:
    page = chat(RUN)
    for number, question in enumerate(("First?", "Second?"), 1):
        ask(page, question)
        answered(page, number)
    edit = page.locator("#chat-left-side").get_by_role("button", name="Edit")
    edit.first.click()
    field = page.locator("#chat-left-side textarea")
    expect(field).to_have_value("First?")
    field.fill("Other?")
    page.get_by_role("button", name="Submit").click()
    answered(page)
    assert texts(page)[0] == texts(page, "right")[0] == "Other?"
    vote(page, "Tie")
    expect(page.locator("#chat-said")).to_have_text(KEPT)
    assert [vote.prompt for vote in project.votes()] == [[{"role": "user", "content": "Other?"}]]


def test_a_new_conversation_ends_the_old_one(chat: Any, open_page: Any, project: Project) -> None:
    page = chat(tokens=LONGEST, temperature=0)
    ask(page, "A long story?")
    grows(messages(page, who="bot"))
    page.get_by_role("button", name="New conversation").click()
    expect(messages(page)).to_have_count(0)
    page.wait_for_timeout(1000)  # what was on its way is not drawn
    expect(messages(page)).to_have_count(0)
    number(page, "Longest answer, in tokens", 16)
    ask(page, "A short one?")
    expect(messages(page, who="user")).to_have_text("A short one?")
    expect(messages(page, who="bot")).to_have_attribute("aria-label", re.compile(r": [^…]"))


def test_a_reload_keeps_the_conversation_and_who_answered(chat: Any) -> None:
    page = chat(RUN)
    ask(page, "A colour?")
    answered(page)
    shown = [texts(page, side) for side in ("left", "right")]
    page.reload()
    ready(page)
    answered(page)
    assert [texts(page, side) for side in ("left", "right")] == shown
    expect(page.locator("#chat-left-model input")).to_have_value("base")
    expect(page.locator("#chat-right-model input")).to_have_value(RUN)


# ---- what is shown


def test_markdown_is_drawn(chat: Any) -> None:
    page = chat()
    ask(page, MARKDOWN)  # a question is drawn as an answer is
    shown = messages(page, who="user")
    for tag, inner in {"h1": "Head", "strong": "bold", "li": "one", "td": "blue"}.items():
        expect(shown.locator(tag)).to_have_text(inner)
    expect(shown.locator("pre code")).to_have_text("print('<b>')\n")
    expect(shown.locator("pre").locator("..").get_by_role("button")).to_be_visible()


def test_hostile_text_does_nothing(chat: Any, open_page: Any) -> None:
    open_page.allow(REFUSED)
    page = chat()
    ask(page, HOSTILE)
    shown = messages(page, who="user")
    expect(shown).to_contain_text("<img src=x onerror=")
    expect(shown).to_contain_text("<form action=/logout method=post>")
    tags = "img, script, iframe, form, input, style, [onerror], [onload], [href^=javascript]"
    expect(shown.locator(tags)).to_have_count(0)
    assert page.title() == "lorarlhf"
    assert said(shown) == HOSTILE  # kept as it was typed


def test_no_text_covers_the_page(chat: Any, open_page: Any) -> None:
    open_page.allow(REFUSED)  # of the conversation before, until a new one begins
    page = chat()
    ask(page, COVER)
    cover = messages(page, who="user").get_by_text("cover")
    expect(cover).to_be_attached()
    box, message = cover.bounding_box(), messages(page, who="user").bounding_box()
    assert box is None or (message and box["height"] <= message["height"] + 1)
    page.get_by_role("button", name="Stop").click()  # nothing lies over it
    page.locator("#chat-left-model input").click()
