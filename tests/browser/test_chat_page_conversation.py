"""The Chat page in a real browser: retries, edits, reloads, and what is drawn."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chat_steps import (
    KEPT,
    LONGEST,
    RUN,
    SETTLED_MS,
    answered,
    ask,
    chat_project,
    grows,
    messages,
    new_conversation,
    number,
    ready,
    said,
    text,
    texts,
    vote,
    written,
)
from tests.browser.projects import ServedProject

HOSTILE = (
    "<img src=x onerror=\"document.title='taken'\"> <script>document.title='taken'</script> "
    "![a picture](http://example.invalid/x.png) ![mine](/logout) [a link](javascript:alert(1)) "
    "<svg onload=\"document.title='taken'\"></svg> <iframe src=/></iframe> "
    "<form action=/logout method=post><input name=password></form> <style>#root{}</style>"
)
TAGS = "{{value}} ${1+1} vector<int> <think>Hm.</think> <ANSWER>4</ANSWER> \\(a_1 * b\\) and more"
COVER = '<div style="position: fixed; inset: 0; background: red; z-index: 9999">cover</div>'
MARKDOWN = (
    "# Head\n\nSome **bold**.\n\n- one\n\n```python\nprint('<b>')\n```\n\n| sea |\n|---|\n| blue |"
)


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


def test_a_question_is_asked_in_other_words(chat: Any, project: ServedProject) -> None:
    page = chat(RUN)
    for turn, question in enumerate(("First?", "Second?"), 1):
        ask(page, question)
        answered(page, turn)
    edit = page.locator("#chat-left-side").get_by_role("button", name="Edit")
    edit.first.click()
    field = page.get_by_label("Your message in other words")
    expect(field).to_have_value("First?")
    field.fill("Other?")
    page.get_by_role("button", name="Submit").click()
    answered(page)
    assert texts(page)[0] == texts(page, "right")[0] == "Other?"
    vote(page, "Tie")
    expect(page.locator("#chat-message")).to_have_text(KEPT)
    assert [vote.prompt for vote in project.votes()] == [[{"role": "user", "content": "Other?"}]]


def test_a_new_conversation_ends_the_old_one(
    chat: Any, open_page: Any, project: ServedProject
) -> None:
    page = chat(tokens=LONGEST, temperature=0)
    ask(page, "A long story?")
    grows(messages(page, who="bot"))
    page.get_by_role("button", name="New conversation").click()
    expect(messages(page)).to_have_count(0)
    page.wait_for_timeout(1000)  # what was on its way is not drawn
    expect(messages(page)).to_have_count(0)
    number(page, "Longest answer, in tokens", 16)
    ask(page, "A short one?")
    expect(said(page, who="user")).to_have_text("A short one?")
    expect(said(page, who="bot")).to_have_attribute("data-raw", re.compile(r"\S"))


def test_no_message_is_dropped_while_an_earlier_answer_ends(chat: Any) -> None:
    page = chat(tokens=LONGEST, temperature=0)
    ask(page, "A long story?")
    grows(messages(page, who="bot"))
    ask(page, "And now?")  # said, and the message stays in the field
    expect(page.locator("#chat-message")).to_have_text("Still answering. Stop that first.")
    expect(page.get_by_label("Your message")).to_have_value("And now?")
    for number_of_answers in (2, 3):
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("button", name="Send").click()
        expect(messages(page, who="bot")).to_have_count(number_of_answers)
        page.get_by_label("Your message").fill("And now?")
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="New conversation").click()
    page.get_by_role("button", name="Send").click()
    expect(said(page, who="user")).to_have_text(["And now?"])  # alone
    grows(messages(page, who="bot"))


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
    page.get_by_role("button", name="System prompt and sampling").click()
    for label, value in {"Longest answer, in tokens": "16", "Temperature": "0"}.items():
        expect(page.get_by_label(f"number input for {label}")).to_have_value(value)


def test_a_reload_in_the_middle_of_an_answer_goes_on(chat: Any, open_page: Any) -> None:
    open_page.allow("Connection errored out")  # Gradio's stream, by the reload
    page = chat(tokens=LONGEST, temperature=0)
    ask(page, "A long story?")
    before = grows(messages(page, who="bot"))
    page.reload()
    ready(page)
    expect(said(page, who="user")).to_have_text("A long story?")
    assert grows(messages(page, who="bot")).startswith(before)  # it is still being written
    page.get_by_role("button", name="Stop").click()
    page.wait_for_timeout(1000)
    kept = written(messages(page, who="bot"))
    page.get_by_role("button", name="New conversation").click()
    page.get_by_label("Your message").fill("And now?")
    page.get_by_role("button", name="Send").click()
    expect(said(page, who="user")).to_have_text(["And now?"])  # alone
    grows(messages(page, who="bot"))
    assert len(kept) > len(before)


# ---- what is shown


def test_markdown_is_drawn(chat: Any) -> None:
    page = chat()
    ask(page, MARKDOWN)  # a question is drawn as an answer is
    shown = said(page, who="user")
    for tag, inner in {"h1": "# Head", "strong": "**bold**", "li": "- one"}.items():
        expect(shown.locator(tag)).to_have_text(inner)
    expect(shown.locator("td").last).to_have_text("| blue |")
    expect(shown.locator("pre code")).to_have_text("print('<b>')\n")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Raw text").click()
    assert shown.inner_text() == MARKDOWN
    page.get_by_role("button", name="Raw text").click()
    expect(shown.locator("h1")).to_have_count(1)


def test_hostile_text_does_nothing(chat: Any) -> None:
    page = chat()
    title = page.title()
    ask(page, f"{HOSTILE} {COVER} {TAGS}")
    shown = said(page, who="user")
    for part in (HOSTILE, COVER, TAGS):
        expect(shown).to_contain_text(part)
    tags = "img, script, iframe, form, input, style, [onerror], [onload], [href^=javascript]"
    expect(shown.locator(tags)).to_have_count(0)
    assert page.title() == title
    assert written(messages(page, who="user")) == f"{HOSTILE} {COVER} {TAGS}"
