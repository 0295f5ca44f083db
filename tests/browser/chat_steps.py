"""What the browser tests of the Chat page share: its project, and a person's steps."""

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.projects import ServedProject, put_runs, running

RUN = "0001-sft"
LONGEST = 2048  # takes many seconds
# Gradio loses what is asked in the very moment in which its stream of answers is being closed.
SETTLED_MS = 300
KEPT = re.compile(
    r"^\s*Saved\. The left answer is by \S+, the right one by \S+\. "
    r"The conversation continues with the better answer\.\s*$"
)


@contextlib.contextmanager
def chat_project(
    tmp_path_factory: pytest.TempPathFactory, make_base: Callable[..., Path]
) -> Iterator[ServedProject]:
    """A base whose long answers take many seconds, a run with a policy and one with a reward."""
    base = make_base(num_hidden_layers=12, max_position_embeddings=8192)
    runs = partial(put_runs, base=base, names=[RUN, "0002-reward"], tokens=8)
    with running(tmp_path_factory, base=base, runs=runs) as project:
        yield project


def new_conversation(
    open_page: Any,
    project: ServedProject,
    beside: str = "",
    tokens: int = 16,
    temperature: float = 0,  # otherwise a random base now and then ends before its first letter
) -> Page:
    """The Chat page with a new conversation: with the base, and the model `beside` it."""
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


def visit(open_page: Any, project: ServedProject) -> Page:
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
    return written(message).rstrip("\ufffd")


def said(page: Page, side: str = "left", who: str = "") -> Locator:
    """The texts of the messages on a side; an answer that is still empty has none."""
    return messages(page, side, who).locator(".written")


def written(message: Locator) -> str:
    text = message.locator(".written")
    return (text.get_attribute("data-raw") or "") if text.count() else ""


def texts(page: Page, side: str = "left") -> list[str]:
    return [written(message) for message in messages(page, side).all()]


def letters(text: str) -> str:
    """A text without signs: an attribute holds some of them in another form."""
    return re.sub(r"\W", "", text)


def ask(page: Page, question: str) -> None:
    page.get_by_label("Your message").fill(question)
    page.keyboard.press("Enter")


def grows(message: Locator) -> str:
    """Wait until there is a text and then more of it; gives the first of the two."""
    shown = message.locator(".written")
    expect(shown).to_have_attribute("data-raw", re.compile(r"\S"))
    first = text(message)
    expect(shown).not_to_have_attribute("data-raw", re.compile(f"{re.escape(first)}\ufffd*$"))
    assert text(message).startswith(first)
    return first


def answered(page: Page, turns: int = 1) -> None:
    """Wait until both sides have answered and a vote is possible.

    A random base now and then begins with the end, which leaves nothing to vote on.
    """
    for _ in range(6):
        for side in ("left", "right"):
            expect(messages(page, side, "bot")).to_have_count(turns)
        done = page.locator("#chat-votes:visible").or_(page.get_by_text("answers is empty"))
        expect(done.first).to_be_visible()
        if page.locator("#chat-votes").is_visible():
            return
        page.get_by_role("button", name="Answer again").click()
        page.wait_for_timeout(SETTLED_MS)


def vote(page: Page, name: str) -> None:
    page.locator("#chat-votes").get_by_role("button", name=name, exact=True).click()
