"""What the reward role likes, in a real browser: colours, numbers that add up, a table."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from tests.browser.chat_steps import (
    SETTLED_MS,
    answered,
    ask,
    choose,
    letters,
    messages,
    new_conversation,
    number,
    ready,
    said,
    texts,
    vote,
    written,
)
from tests.browser.projects import ME, ServedProject, ends, press, put_runs, running
from tests.browser.test_compare_page import asked, begin, compared
from tests.browser.test_looks import FAINT

RUN, REWARD = "0001-sft", "0002-reward"
HOSTILE = "<img src=x onerror=\"document.title='taken'\">"
TEXTS = ("Chess, reading and **long** walks in the rain.", f"Drums and trumpets! {HOSTILE}")


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, make_base: Callable[..., Path]
) -> Iterator[ServedProject]:
    base = make_base(max_position_embeddings=2048)
    runs = partial(put_runs, base=base, names=[RUN, REWARD], tokens=8)
    with running(tmp_path_factory, base=base, runs=runs) as project:
        answers = tuple((text, "base") for text in TEXTS)
        first = Verdict("ranked", [[0], [1]])
        add_votes(project.store, [ImportedVote("A quiet hobby?", answers, first, rater=ME)])
        yield project


def numbers(heat: Locator) -> tuple[list[float], float]:
    """The shares in the table, and the score below them."""
    cells = [
        float(text.replace("\u2212", "-"))
        for text in heat.locator("td:last-child").all_inner_texts()
    ]
    return cells[:-1], cells[-1]


def adds_up(heat: Locator, text: str) -> None:
    table(heat)
    shares, score = numbers(heat)
    assert abs(sum(shares) - score) <= 0.0005 * (len(shares) + 1)  # each is rounded
    assert heat.locator(".heat-words").inner_text() == text
    titles = heat.locator(".heat-words span").evaluate_all("all => all.map((one) => one.title)")
    assert [float(title.replace("\u2212", "-")) for title in titles] == shares
    assert heat.locator('.heat-words [class^="more"], .heat-words [class^="less"]').count() > 2
    assert heat.locator("thead th").all_inner_texts() == ["Word", "Adds"]


def table(heat: Locator) -> None:
    """Open the table: it is one for a screen reader, and the keyboard can scroll it."""
    heat.get_by_text("The numbers as a table").click()
    expect(heat.get_by_role("table")).to_be_visible()
    rows = heat.get_by_role("group", name="What each word adds")
    rows.focus()
    expect(rows).to_be_focused()
    assert heat.get_by_role("rowheader").count() == heat.locator("td").count()


def readable(page: Page) -> None:
    count, faint = page.evaluate(FAINT)
    assert count > 2 and not faint, "\n".join(faint)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_history(open_page: Any, project: ServedProject, scheme: str) -> None:
    page = open_page(f"{project.url}/history", dark=scheme == "dark")
    page.locator("#history .rows > li button").first.click()
    page.get_by_role("button", name="What the reward role likes here").click()
    heats = page.locator("#history .answer .heat")
    expect(heats).to_have_count(2)
    for place, text in enumerate(TEXTS):
        adds_up(heats.nth(place), text)
    assert page.title() != "taken"
    readable(page)
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 1


def test_beside_a_chat_answer_and_the_best_of_four(open_page: Any, project: ServedProject) -> None:
    page = open_page(f"{project.url}/chat")
    ready(page)
    page.get_by_role("button", name="System prompt and sampling").click()
    best = page.locator("#chat-best")
    expect(best).to_be_visible()
    best.get_by_label("4", exact=True).check()
    number(page, "Longest answer, in tokens", 16)
    page.wait_for_timeout(SETTLED_MS)
    ask(page, "A quiet hobby?")
    message = page.locator("#chat-message")
    expect(message).to_have_text(
        re.compile(
            r"The best of 4 answers, picked by the reward role, with a score of -?\d+\.\d\d\. "
            r"Picking moves the model by at most 0\.64 nats \(KL\)\."
        )
    )
    answer = messages(page, "left", "bot").last
    answer.get_by_role("button", name="What the reward role likes").click()
    heat = answer.locator(".heat")
    expect(heat).to_be_visible()
    assert letters(heat.locator(".heat-words").inner_text()) == letters(written(answer))
    heat.get_by_text("The numbers as a table").click()
    shares, score = numbers(heat)
    assert abs(sum(shares) - score) <= 0.0005 * (len(shares) + 1)
    readable(page)
    picked = re.search(r"score of (-?\d+\.\d\d)", message.inner_text())
    assert picked and abs(float(picked[1]) - score) <= 0.0105


def test_the_best_of_four_is_compared_blind(open_page: Any, project: ServedProject) -> None:
    best = f"base, best of 4 by {REWARD}"
    page = open_page(f"{project.url}/compare")
    begin(page, best, "base")
    for votes in range(5):
        asked(page, votes)
        assert "best of" not in page.locator(".vote-widget").inner_text()
        press(page, "first")
    ends(page, f"base against {best}: wins")
    votes = compared(project)
    assert len(votes) == 5 and {source for vote in votes for source in vote.sources} == {
        best,
        "base",
    }
    counts = {sampling.get("best_of") for vote in votes for sampling in vote.sampling}
    assert counts == {None, 4}


def test_a_pair_does_not_show_it_before_its_vote(open_page: Any, project: ServedProject) -> None:
    page = new_conversation(open_page, project, RUN)
    page.locator("#chat-best").get_by_label("1", exact=True).check()
    page.wait_for_timeout(SETTLED_MS)
    ask(page, "A quiet hobby?")
    answered(page)
    vote(page, "Tie")
    heats = page.locator(".message .heat")
    answer = messages(page, "left", "bot").last
    button = answer.get_by_role("button", name="What the reward role likes")
    button.click()
    expect(answer.locator(".heat")).to_be_visible()
    expect(answer.locator(".said")).to_have_text("Shown below the answer.")
    expect(button).to_be_focused()  # the thread is not drawn anew
    # The likeliest tokens: the same two answers come again, on sides that are drawn anew.
    told = texts(page)[1]
    for _ in range(4):
        page.get_by_role("button", name="Answer again").click()
        page.wait_for_timeout(SETTLED_MS)
        answered(page)
        expect(heats).to_have_count(0)
    assert told in (texts(page)[1], texts(page, "right")[1])
    vote(page, "Tie")
    expect(page.locator(".message .heat")).to_have_count(int(texts(page)[1] == told))
    page.get_by_role("button", name="New conversation").click()
    expect(messages(page)).to_have_count(0)
    choose(page, "right", "nobody")
    page.wait_for_timeout(SETTLED_MS)
    ask(page, "A quiet hobby?")
    expect(said(page, who="bot")).to_have_count(1)
    expect(
        messages(page, "left", "bot").get_by_role("button", name="What the reward")
    ).to_be_visible()
    expect(heats).to_have_count(0)  # nobody has asked in this conversation
