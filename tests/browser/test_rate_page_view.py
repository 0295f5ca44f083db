"""The Rate page in a real browser: what it shows, settings, and live answers."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from lorarlhf.preferences.guesses import Guess, add_guess
from lorarlhf.preferences.records import Verdict
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


# ---- what is shown


def test_the_meter_tells_the_sure_predictions_apart(open_page: Any, project: ServedProject) -> None:
    for n, (right, confidence) in enumerate([(1.0, 0.9), (0.0, 0.6), (1.0, 0.8), (0.0, None)]):
        shown = project.store.present(project.ask(f"Before {n}?"), ME)
        number = project.store.judge(shown.token, Verdict("ranked", [[0], [1]]))
        add_guess(project.store, Guess(number, right, 0.25, 0.5, 4 + n, confidence))
    project.ask("Now?")
    page = open_page(project.url)
    shows(page, "Now?")
    expect(part(page, "meter")).to_have_text(
        "50% of your last 4 votes were predicted correctly (15% to 85%); of the 2 sure "
        "predictions, 100% were correct (34% to 100%). Guessing gets 50%, “the longer one” 25%."
    )


def test_answers_are_shown_as_markdown_and_folded(open_page: Any, project: ServedProject) -> None:
    project.ask("Long?", (LONG, MARKDOWN))
    project.ask("Short?", ("I am ChatGPT, made by OpenAI.", "Anthropic is a company."))
    page = open_page(project.url)
    shows(page, "Long?")
    marked = page.locator(".vote-widget .answer", has=page.locator("table"))
    drawn = {"h1": "# Head", "strong": "**bold**", "ul li": "- one", "ol li": "1. first"}
    for tag, text in drawn.items():
        expect(marked.locator(tag).first).to_have_text(text)
    expect(marked.locator("p code")).to_have_text("`code`")
    expect(marked.locator("pre")).to_contain_text("print('a wide line'")
    expect(marked.locator("tr").last).to_have_text("| blue| green |")
    expect(marked.locator("td").first).to_have_text("|---|---|")
    expect(marked.locator("blockquote")).to_have_text("> quoted")
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
    assert page.title() == "Rate · project"
    verdict = project.votes()[0].verdict
    assert verdict.note == HOSTILE and HOSTILE in (verdict.edited or "")


def test_no_name_of_a_model_reaches_the_browser(open_page: Any, project: ServedProject) -> None:
    sources = ("runs/0042-secretive", "runs/0043-veiled")
    for number in range(3):
        project.ask(f"Question {number}?", sources=sources)
    page = open_page(project.url)
    replies: list[str] = []
    page.on("response", lambda reply: replies.append(_body(reply)))
    page.reload()
    for number, key in enumerate("12"):
        shows(page, f"Question {number}?")
        page.keyboard.press(key)
    shows(page, "Question 2?")
    page.keyboard.press("u")
    shows(page, "Question 1?")
    everything = page.content() + "".join(replies)
    assert "Question 1?" in "".join(replies)
    for name in ("secretive", "0042", "0043-", "veiled", "runs/"):
        assert name not in everything, name
    assert project.votes()[0].sources == list(sources)


def _body(reply: Any) -> str:
    asked = "component_server" in reply.url or "queue/data" in reply.url or "/config" in reply.url
    try:
        return reply.text() if asked else ""
    except Exception:  # a stream that is still open
        return ""


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
    order = page.locator("#settings-order input")
    expect(order).to_have_value("at random")
    order.click()
    page.get_by_role("option", name="most informative first").click()
    repeats = page.locator('#settings-repeats input[type="number"]')
    expect(repeats).to_have_value("0.05")
    repeats.fill("0.2")
    repeats.blur()
    page.locator("#settings-save").click()
    expect(page.locator("#settings-message")).to_contain_text("Saved.")
    page.reload()
    expect(number).to_have_value("4")
    expect(order).to_have_value("most informative first")
    expect(repeats).to_have_value("0.2")
    rows = project.store.rows("SELECT value FROM setting WHERE name = 'collect'")
    kept = json.loads(rows[0]["value"])
    assert (kept["answers"], kept["order"], kept["repeats"]) == (4, "information", 0.2)


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
    # Half a character may be drawn in another form.
    kept = [re.sub(r"[\W_]", "", vote.completions[n]) for n in vote.shown]
    seen = [re.sub(r"[\W_]", "", text)[:6] for text in early]  # as far as it was written by then
    assert all(whole.startswith(part) for whole, part in zip(kept, seen, strict=True))
    assert all(seen)
    assert vote.shown.index(vote.verdict.ranking[0][0]) == 1
    assert [how["ended"] for how in vote.sampling] == [False, False]
    asked = [json.loads(line)["prompt"] for line in live.project.prompts.read_text().splitlines()]
    assert asked.count(OWN) == 1 and len(live.votes()) == 1
    assert vote.rater == ME
