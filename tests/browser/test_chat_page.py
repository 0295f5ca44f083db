"""The Chat page in a real browser: answers stream and stop, side by side, and votes."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.chat_steps import (
    KEPT,
    LONGEST,
    RUN,
    SETTLED_MS,
    answered,
    ask,
    chat_project,
    grows,
    letters,
    messages,
    new_conversation,
    number,
    ready,
    said,
    texts,
    visit,
    vote,
    written,
)
from tests.browser.projects import ME, ServedProject


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, make_base: Callable[..., Path]
) -> Iterator[ServedProject]:
    with chat_project(tmp_path_factory, make_base) as project:
        yield project


@pytest.fixture(autouse=True)
def nobody_was_here(project: ServedProject) -> None:
    project.forget()


@pytest.fixture
def chat(open_page: Any, project: ServedProject) -> Callable[..., Page]:
    """`chat(beside="", tokens=16, temperature=0)`: the page with a new conversation."""
    return partial(new_conversation, open_page, project)


# ---- answers


def test_an_answer_streams_and_stops(chat: Any, open_page: Any, project: ServedProject) -> None:
    page = chat(tokens=LONGEST, temperature=0)
    ask(page, "Tell me a long story.")
    answer = messages(page, who="bot")
    expect(page.get_by_label("Your message")).to_have_value("")
    grows(answer)
    page.get_by_role("button", name="Stop").click()
    page.wait_for_timeout(1000)  # what was on its way
    kept = written(answer)
    page.wait_for_timeout(1500)
    assert written(answer) == kept
    number(page, "Longest answer, in tokens", 16)
    ask(page, "And a short one?")  # would be refused while an answer is being written
    expect(messages(page, who="bot")).to_have_count(2)
    expect(page.locator("#chat-message")).not_to_contain_text("Still answering")
    assert texts(page)[:3] == ["Tell me a long story.", kept, "And a short one?"]
    expect(page.locator("#chat-votes")).to_be_hidden()
    assert texts(visit(open_page, project))[1] == kept


def test_both_sides_stream_and_what_was_stopped_can_be_compared(
    chat: Any, project: ServedProject
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
    expect(page.locator("#chat-message")).to_have_text(KEPT)
    (kept,) = project.votes()
    assert list(map(letters, kept.completions)) == list(map(letters, shown))


def test_an_empty_question_is_refused(chat: Any) -> None:
    page = chat()
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#chat-message")).to_have_text("Type something first.")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator("#chat-message")).to_have_text("There is nothing to answer yet.")
    expect(messages(page)).to_have_count(0)


def test_a_question_that_comes_before_the_page_is_filled_is_answered(
    open_page: Any, chat: Any, project: ServedProject
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
    expect(said(page, who="user")).to_have_text("Early?")
    expect(said(page, who="bot")).to_have_attribute("data-raw", re.compile(r"\S"))
    page.wait_for_timeout(SETTLED_MS)
    held[0].continue_()
    ready(page)
    expect(said(page, who="user")).to_have_text("Early?")


def test_the_models_are_asked_for_again_if_the_question_was_lost(
    open_page: Any, project: ServedProject
) -> None:
    page = open_page(f"{project.url}/history")
    lost = []
    page.route(
        re.compile("queue/join"),
        lambda route: route.continue_() if lost else lost.append(route),
    )
    page.goto(f"{project.url}/chat")
    ready(page)
    assert len(lost) == 1


# ---- side by side


@pytest.mark.parametrize(("button", "best"), [("Left is better", 0), ("Right is better", 1)])
def test_a_vote_lands_with_both_sources(
    chat: Any, project: ServedProject, button: str, best: int
) -> None:
    page = chat(RUN)
    ask(page, "A colour?")
    answered(page)
    shown = [texts(page, side)[1] for side in ("left", "right")]
    page.locator("#chat-votes").get_by_role("button", name=button).dblclick()
    expect(page.locator("#chat-votes")).to_be_hidden()
    expect(page.locator("#chat-message")).to_have_text(re.compile("Saved|You have voted"))
    (vote,) = project.votes()
    assert project.rows() == 1
    assert vote.prompt == [{"role": "user", "content": "A colour?"}]
    assert sorted(vote.sources) == ["base", f"runs/{RUN}"]  # the sides are shuffled
    assert list(map(letters, vote.completions)) == list(map(letters, shown))
    assert (vote.verdict.verdict, vote.verdict.ranking) == ("ranked", [[best], [1 - best]])
    assert (vote.purpose, vote.rater, vote.origin) == ("train", ME, {"page": "chat"})
    assert vote.sampling == [{"temperature": 0, "max_new_tokens": 16}] * 2


@pytest.mark.parametrize("verdict", ["tie", "both_good", "both_bad"])
def test_verdicts_without_a_better_one(chat: Any, project: ServedProject, verdict: str) -> None:
    page = chat(RUN)
    ask(page, "A colour?")
    answered(page)
    vote(page, verdict.replace("_", " ").capitalize())
    expect(page.locator("#chat-message")).to_have_text(KEPT)
    assert [vote.verdict.verdict for vote in project.votes()] == [verdict]


def test_another_tab_votes_too_late(chat: Any, open_page: Any, project: ServedProject) -> None:
    page = chat(RUN)
    ask(page, "A colour?")
    answered(page)
    other = visit(open_page, project)
    answered(other)
    vote(page, "Tie")
    expect(page.locator("#chat-message")).to_have_text(KEPT)
    vote(other, "Left is better")
    expect(other.locator("#chat-message")).to_contain_text(
        "You have voted on these. Correct your vote on"
    )
    expect(other.locator("#chat-votes")).to_be_hidden()
    assert [vote.verdict.verdict for vote in project.votes()] == ["tie"] and project.rows() == 1


def test_the_better_answer_goes_on_on_both_sides(chat: Any, project: ServedProject) -> None:
    page = chat(RUN)
    page.get_by_label("System prompt of a new conversation").fill("Be brief.")
    ask(page, "First?")
    answered(page)
    left, right = (texts(page, side)[1] for side in ("left", "right"))
    assert left != right
    vote(page, "Right is better")
    expect(page.locator("#chat-message")).to_have_text(KEPT)
    ask(page, "Second?")
    answered(page, 2)
    assert texts(page)[:3] == texts(page, "right")[:3] == ["First?", right, "Second?"]
    vote(page, "Left is better")
    expect(page.locator("#chat-message")).to_have_text(KEPT)
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
    expect(page.locator("#chat-message")).to_have_text("")
    page.get_by_label("Show the reward role's score of each answer").check()
    page.wait_for_timeout(SETTLED_MS)
    page.get_by_role("button", name="Answer again").click()
    answered(page)
    number = r"(-?\d+\.\d\d)"
    message = page.locator("#chat-message")
    page.wait_for_timeout(1000)
    expect(message).to_have_text("")  # before the vote
    vote(page, "Tie")
    expect(message).to_have_text(re.compile(f"Reward role's score: {number} and {number}\\."))
    one, other = re.findall(number, message.inner_text())
    assert one != other
