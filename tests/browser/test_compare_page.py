"""The Compare page in a real browser: blind until the end, and counted correctly."""

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from lorarlhf.data.readers import bundled, read_prompts
from lorarlhf.preferences.records import Vote
from tests.browser.projects import (
    ServedProject,
    bodies,
    ends,
    judge,
    part,
    press,
    put_runs,
    ready,
    running,
)

FIRST, SECOND = "0041-veiled", "0042-masked"
NAMES = re.compile(r"veiled|masked|runs/")
# Keeps everything that the server sends; nothing else sees the stream of Gradio's answers.
LISTEN = """
window.heard = [];
const ask = window.fetch;
window.fetch = async (...words) => {
  const answer = await ask(...words);
  const place = window.heard.push("") - 1;
  const [reader, decoder] = [answer.clone().body.getReader(), new TextDecoder()];
  const read = async () => {
    const { value, done } = await reader.read();
    if (done) return;
    window.heard[place] += decoder.decode(value, { stream: true });
    await read();
  };
  read().catch(() => {});
  return answer;
};
"""
WITHOUT_CHOICES = """() => {
  const page = document.documentElement.cloneNode(true);
  for (const part of page.querySelectorAll("#compare-new, #compare-earlier")) part.remove();
  return page.outerHTML;
}"""


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, make_base: Callable[..., Path]
) -> Iterator[ServedProject]:
    """Two runs whose answers are a few tokens long."""
    base = make_base()
    runs = partial(put_runs, base=base, names=[FIRST, SECOND], tokens=12)
    with running(tmp_path_factory, base=base, runs=runs) as project:
        yield project


def begin(page: Page, first: str = FIRST, second: str = SECOND, wanted: int = 5) -> None:
    """Choose two models and press Start."""
    for side, name in (("first", first), ("second", second)):
        model = page.locator(f"#compare-{side}")
        expect(model.locator("input")).not_to_have_value("")
        model.locator("input").click()
        model.get_by_role("option", name=name, exact=True).click()
        expect(model.locator("input")).to_have_value(name)
    number = page.get_by_label("number input for Held-out prompts")
    number.fill(str(wanted))
    number.press("Tab")
    page.get_by_role("button", name="Start").click()


def started(open_page: Any, project: ServedProject) -> Page:
    """A page with the first pair of a new test of five prompts."""
    page = open_page(f"{project.url}/compare")
    ends(page, "No blind comparison yet.")
    begin(page)
    asked(page, 0)
    return page


def asked(page: Page, votes: int) -> None:
    """Wait for the pair that comes after so many votes."""
    expect(part(page, "progress")).to_have_text(f"{votes} of 5 votes")
    expect(part(page, "item")).to_be_visible()
    ready(page)


def compared(project: ServedProject) -> list[Vote]:
    return project.votes(purpose="compare")


def winner(vote: Vote) -> str:
    """The source that won, or the verdict."""
    ranking = vote.verdict.ranking
    return vote.sources[ranking[0][0]] if ranking else vote.verdict.verdict


def test_a_comparison_from_start_to_end(open_page: Any, project: ServedProject) -> None:
    page = open_page(f"{project.url}/manifest.json")
    page.add_init_script(LISTEN)
    page.goto(f"{project.url}/compare")
    ends(page, "No blind comparison yet.")
    expect(page.locator("#compare-first input")).not_to_have_value("")
    expect(page.get_by_role("button", name="Start")).to_be_enabled()
    page.evaluate("window.heard.fill('')")  # it had the dropdowns' choices
    begin(page)
    expect(page.locator("#compare-message")).to_contain_text("names are shown at the end.")
    chosen = []
    for number, key in enumerate(["1", "2", "t", "ArrowRight", "g"]):
        asked(page, number)
        blind(page)
        chosen.append(bodies(page)[key in ("2", "ArrowRight")])
        expect(judge(page)).not_to_contain_text("wins")  # who is ahead would sway the next vote
        page.keyboard.press(key)
    ends(page, f"runs/{SECOND} against runs/{FIRST}: wins ")
    expect(part(page, "progress")).to_have_text("5 of 5 votes")

    votes = compared(project)
    assert [vote.verdict.verdict for vote in votes] == ["ranked", "ranked", "tie", "ranked"] + [
        "both_good"
    ]
    for vote, text in zip(votes, chosen, strict=True):
        if vote.verdict.ranking:
            assert letters(vote.completions[vote.verdict.ranking[0][0]]) == letters(text)
    won, lost = (sum(winner(v) == f"runs/{name}" for v in votes) for name in (SECOND, FIRST))
    assert won + lost == 3
    said = part(page, "empty").inner_text()
    assert f"wins {round(100 * (won + 1) / 5)}% of 5 (" in said
    assert f"Wins of runs/{SECOND}: {won}, of runs/{FIRST}: {lost}, ties: 2." in said

    row = project.store.rows("SELECT * FROM taste_test")[0]
    assert (row["first"], row["second"], row["wanted"]) == (f"runs/{FIRST}", f"runs/{SECOND}", 5)


def blind(page: Page) -> None:
    """No name is shown, and nothing but the texts that could identify a side."""
    heard = page.evaluate("window.heard")
    assert not NAMES.search("".join(heard)), heard
    assert not NAMES.search(page.evaluate(WITHOUT_CHOICES))
    views = [json.loads(text) for text in heard if text.startswith('{"token"')]
    assert views
    for view in views:
        known = {"token", "prompt", "answers", "progress", "voted", "last"}
        assert set(view) <= known | {"draft"}
        assert all(set(answer) == {"html", "text", "flag"} for answer in view["answers"])
    assert any("names are shown at the end" in text for text in heard)  # the stream was heard


def letters(text: str) -> str:
    """A text without signs and spaces, which Markdown draws or swallows."""
    return re.sub(r"[\W_]", "", text)


def test_votes_are_kept_apart_from_training(open_page: Any, project: ServedProject) -> None:
    page = started(open_page, project)
    page.keyboard.press("1")
    asked(page, 1)
    page.keyboard.press("t")
    asked(page, 2)
    votes = compared(project)
    assert len(votes) == 2 and project.votes(purpose="train") == []
    held_out = [row["prompt"] for row in read_prompts(bundled("prompts_heldout"))]
    assert all(vote.prompt[-1]["content"] in held_out for vote in votes)  # type: ignore[index]
    test = project.store.rows("SELECT id FROM taste_test")[0]["id"]
    rows = project.store.rows(
        "SELECT DISTINCT i.purpose, i.taste_test FROM item i JOIN presentation p "
        "ON p.item_id = i.id JOIN judgement j ON j.presentation_id = p.id JOIN rater r "
        "ON r.id = p.rater_id WHERE r.name = 'me'"
    )
    assert [tuple(row) for row in rows] == [("compare", test)]
    for form in ("trl", "own", "kto"):
        assert page.request.get(f"{project.url}/files/votes?form={form}").text() == ""
    asked_for = page.request.get(f"{project.url}/files/votes?form=own&purpose=all").text()
    assert [json.loads(line)["purpose"] for line in asked_for.splitlines()] == ["compare"] * 2


def test_a_reload_in_the_middle_goes_on(open_page: Any, project: ServedProject) -> None:
    page = started(open_page, project)
    page.keyboard.press("2")
    asked(page, 1)
    before, prompt = bodies(page), part(page, "prompt").inner_text()
    page.reload()
    asked(page, 1)
    assert (bodies(page), part(page, "prompt").inner_text()) == (before, prompt)
    page.keyboard.press("s")
    expect(part(page, "prompt")).not_to_have_text(prompt)
    asked(page, 1)  # a skip counts for nothing
    assert [vote.verdict.verdict for vote in compared(project)] == ["ranked", "skip"]


def test_undo_in_the_middle_and_at_the_end(open_page: Any, project: ServedProject) -> None:
    page = started(open_page, project)
    before = bodies(page)
    page.keyboard.press("1")
    asked(page, 1)
    page.keyboard.press("u")
    asked(page, 0)
    assert bodies(page) == before and compared(project) == [] and project.rows() == 2
    for number in range(5):
        asked(page, number)
        press(page, "tie")
    ends(page, "wins 50% of 5")
    page.get_by_role("button", name="Undo the last vote").click()
    asked(page, 4)
    assert not NAMES.search(judge(page).inner_html())
    press(page, "both_bad")
    ends(page, "ties: 5.")
    assert [vote.verdict.verdict for vote in compared(project)] == ["tie"] * 4 + ["both_bad"]


def test_a_new_comparison_moves_the_old_one_to_the_earlier_ones(
    open_page: Any, project: ServedProject
) -> None:
    page = started(open_page, project)
    for number in range(5):
        asked(page, number)
        page.keyboard.press("t")
    ends(page, "wins 50% of 5")
    begin(page, FIRST, "base")
    asked(page, 0)
    page.keyboard.press("1")
    asked(page, 1)
    page.reload()
    asked(page, 1)
    page.get_by_role("button", name="Earlier comparisons").click()
    earlier = page.locator("#compare-results li")
    expect(earlier).to_have_count(1)  # nothing of the one that goes on
    expect(earlier).to_contain_text(f"runs/{SECOND} against runs/{FIRST}: wins 50% of 5")


def test_two_equal_models_are_refused(open_page: Any, project: ServedProject) -> None:
    page = open_page(f"{project.url}/compare")
    ends(page, "No blind comparison yet.")
    begin(page, FIRST, FIRST)
    expect(page.locator("#compare-message")).to_contain_text("Choose two different models.")
    ends(page, "No blind comparison yet.")
    assert project.store.rows("SELECT count(*) FROM taste_test")[0][0] == 0
