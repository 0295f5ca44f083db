"""What a rater sees and types: texts whole and raw, the place, drafts, a lost login."""

import re
from typing import Any

from playwright.sync_api import Page, Route, expect

from lorarlhf.preferences.accounts import set_password
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.project.project import create
from lorarlhf_ui.markdown import render
from tests.browser.projects import ME, ServedProject, ends, part, press, shows
from tests.odd_texts import odd_texts, seen

PASSWORD = "quiet harbour 7"
POEM = "Roses are red,\nviolets are blue;\n  vector<int> is no tag\n# done\n\\(a_1 * b_2 * c\\)"
HEBREW = "שלום עולם\n\n```python\nx = 1\n```"
LONG = "\n\n".join(f"Paragraph {n}. " + "The tide comes and goes again. " * 12 for n in range(14))
PAGES = {
    "/": ".vote-widget",
    "/compare": ".vote-widget",
    "/chat": ".thread",
    "/history": ".history",
    "/insights": ".insights",
}
# The 500 texts as the page's own styles draw them: those of which a character is not seen.
UNSEEN = """([host, markup]) => {
  const place = document.createElement("div");
  document.querySelector(host).append(place);
  const found = markup.map((html) => { place.innerHTML = html; return place.innerText; });
  const active = place.querySelectorAll("script, img, svg, iframe, [onerror], [onload]").length;
  place.remove();
  return [found, active];
}"""


# ---- texts


def test_every_character_of_five_hundred_texts_is_seen(
    open_page: Any, project: ServedProject
) -> None:
    project.ask("Question?")
    texts = odd_texts()
    markup = [render(text) for text in texts]
    for path, host in PAGES.items():
        page = open_page(project.url + path)
        page.locator(host).first.wait_for()
        found, active = page.evaluate(UNSEEN, [host, markup])
        wrong = [one for one, drawn in zip(texts, found, strict=True) if seen(drawn) != seen(one)]
        assert len(texts) == 500 and not wrong and not active
        print(f"{path}: {len(texts)} texts, {len(wrong)} with a character that is not seen")


def test_texts_are_drawn_and_shown_raw(open_page: Any, project: ServedProject) -> None:
    project.ask("*Which*\nline?", (POEM, HEBREW))
    verdict = Verdict("ranked", [[0], [1]], note=HEBREW)
    answers = ((POEM, "a"), (HEBREW, "b"))
    add_votes(project.store, [ImportedVote("Old?", answers, verdict, rater=ME)])
    page = open_page(project.url)
    shows(page, "*Which*\nline?")
    texts = page.locator(".vote-widget .answer .written")
    poem = texts.filter(has_text="Roses")
    assert poem.inner_text() == POEM and poem.locator("h1").count() == 0
    other = texts.filter(has_text="שלום")
    assert other.locator("p").first.evaluate("node => getComputedStyle(node).direction") == "rtl"
    assert other.locator("pre").evaluate("node => getComputedStyle(node).direction") == "ltr"
    expect(other.locator(".code-mi")).to_have_text("1")
    page.keyboard.press("r")
    assert sorted(texts.all_inner_texts()) == sorted([POEM, HEBREW])
    expect(part(page, "prompt").locator("em")).to_have_count(0)
    expect(page.locator("[data-raw-toggle]")).to_have_attribute("aria-pressed", "true")
    page.goto(f"{project.url}/history")  # it stays raw
    page.locator("#history .rows > li button").first.click()
    shown = page.locator("#history .details .written")
    expect(shown).to_have_count(3)
    assert shown.all_inner_texts() == ["Old?", POEM, HEBREW]
    page.locator("#history [data-raw-toggle]").click()
    expect(shown.locator("pre")).to_have_count(1)
    page.locator("#votes-words").focus()
    page.keyboard.type("r")
    expect(shown.locator("pre")).to_have_count(1)  # a letter, while somebody types


# ---- the place


def test_on_a_phone_the_next_answers_begin_at_their_top(
    open_page: Any, project: ServedProject
) -> None:
    for number in range(3):
        project.ask(f"Question {number}?", (LONG, LONG[:2000]))
    page = open_page(project.url, width=390, height=740, has_touch=True, is_mobile=True)
    shows(page, "Question 0?")
    unfold = page.get_by_role("button", name="Show all")
    unfold.first.wait_for()
    for button in unfold.all():  # where the eye meets it, and at the end of the page
        for scroll in ("node.scrollIntoView({block: 'nearest'})", "scrollTo(0, 99999)"):
            button.evaluate(f"node => {scroll}")
            assert button.evaluate(UNCOVERED) is True
    unfold.first.tap()
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    first = page.locator('.vote-widget [data-do="first"]')
    before = first.evaluate("node => getComputedStyle(node).backgroundColor")
    first.tap()
    shows(page, "Question 1?")
    assert (
        0 <= page.locator(".vote-widget").evaluate("node => node.getBoundingClientRect().top") < 5
    )
    assert first.evaluate("node => getComputedStyle(node).backgroundColor") == before
    assert page.locator('.vote-widget [aria-label="Answer A"]').evaluate(
        "node => node.getBoundingClientRect().top < innerHeight / 2"
    )


UNCOVERED = """node => {
  const box = node.getBoundingClientRect();
  const middle = box.top + box.height / 2;
  if (middle < 0 || middle > innerHeight) return true; // out of the window
  const at = document.elementFromPoint(box.left + box.width / 2, middle);
  return at === node;
}"""


def test_no_vote_while_an_answer_is_still_empty(open_page: Any, project: ServedProject) -> None:
    def answer(text: str) -> dict[str, Any]:
        return {"html": render(text), "text": text, "flag": False}

    live: dict[str, Any] = {
        "token": "live-1",
        "streaming": True,
        "prompt": render("Question?"),
        "seen": ["", ""],
    }
    watched: list[Route] = []

    def stand_in(route: Route) -> None:
        """The server while a model writes: one answer has text, then both."""
        name = (route.request.post_data_json or {}).get("fn_name")
        if name == "begin":
            route.fulfill(json=live | {"answers": [answer("Red."), answer("")]})
        elif name == "watch":
            watched.append(route)
        else:
            route.continue_()

    page = open_page(f"{project.url}/manifest.json")
    page.route(re.compile("component_server"), stand_in)
    page.goto(project.url)
    shows(page, "Question?")
    for name in ("first", "second", "tie", "both_good", "both_bad"):
        expect(page.locator(f'.vote-widget [data-do="{name}"]')).to_be_disabled()
    expect(page.locator('.vote-widget [data-do="skip"]')).to_be_enabled()
    page.keyboard.press("1")
    expect(part(page, "status")).to_have_text(
        "An answer is still empty. Wait for its text, or skip."
    )
    watched[0].fulfill(json=live | {"answers": [answer("Red."), answer("Blue.")]})
    for name in ("first", "second", "tie", "both_good", "both_bad"):
        expect(page.locator(f'.vote-widget [data-do="{name}"]')).to_be_enabled()
    assert project.rows() == 0


# ---- what is typed


def note(page: Page) -> Any:
    return part(page, "note")


def test_drafts_survive_undo_and_reload_and_end_with_the_vote(
    open_page: Any, project: ServedProject
) -> None:
    for number in range(2):
        project.ask(f"Question {number}?")
    page = open_page(project.url)
    shows(page, "Question 0?")
    page.get_by_text("Add a note").click()
    note(page).fill("The first note.")
    part(page, "edited").fill("A better one.")
    part(page, "own").evaluate("node => node.closest('details').open = true")
    part(page, "own").fill("My own prompt?")
    page.keyboard.press("Escape")
    page.keyboard.press("w")
    page.reload()
    shows(page, "Question 0?")
    expect(note(page)).to_have_value("The first note.")
    expect(part(page, "edited")).to_have_value("A better one.")
    expect(part(page, "own")).to_have_value("My own prompt?")
    page.keyboard.press("1")
    shows(page, "Question 1?")
    expect(note(page)).to_have_value("")
    page.get_by_text("Add a note").click()
    note(page).fill("The second note.")
    page.keyboard.press("Escape")
    page.keyboard.press("u")  # the first comes back whole, and the second is not lost
    shows(page, "Question 0?")
    expect(note(page)).to_have_value("The first note.")
    expect(part(page, "edited")).to_have_value("A better one.")
    page.keyboard.press("1")
    shows(page, "Question 1?")
    expect(note(page)).to_have_value("The second note.")
    page.keyboard.press("2")
    ends(page)
    verdicts = [vote.verdict for vote in project.votes()]
    assert [verdict.note for verdict in verdicts] == ["The first note.", "The second note."]
    assert (verdicts[0].edited, verdicts[0].strength) == ("A better one.", "clearly")
    kept = page.evaluate("Object.keys(localStorage).filter((key) => key.includes('draft'))")
    assert len(kept) == 1 and kept[0].endswith("own prompt")  # what was sent is not kept


# What the browser and Gradio's client say of a request that is refused: the client writes the
# answer itself, "Response", where it waits for the end of a stream.
REFUSED = "401|Connection errored out|Could not|console error: Response$"


def test_a_lost_login_loses_nothing(open_page: Any, serve: Any, tmp_path: Any) -> None:
    project = create(tmp_path / "project")
    store = project.store()
    set_password(store, "ann", PASSWORD)
    store.add_item("Question?", [("Red.", "base"), ("Blue.", "base")])
    first = Verdict("ranked", [[0], [1]])
    add_votes(store, [ImportedVote("Old?", (("a", "x"), ("b", "y")), first, rater="ann")])
    server = serve(project.folder, "--no-model", "--lan")
    page = open_page(server.url)
    open_page.allow(REFUSED)
    log_in(page)
    shows(page, "Question?")
    page.get_by_text("Add a note").click()
    note(page).fill("Do not lose me.")
    page.context.clear_cookies()
    press(page, "first")
    status = part(page, "status")
    expect(status).to_contain_text("You are not logged in any more. What you typed is kept")
    status.get_by_role("link", name="Log in again").click()
    log_in(page)
    shows(page, "Question?")
    expect(note(page)).to_have_value("Do not lose me.")
    press(page, "first")
    ends(page)
    page.goto(f"{server.url}/history")
    row = page.locator("#history .rows > li", has_text="Old?")
    row.get_by_role("button").first.click()
    row.locator("summary").click()
    row.get_by_label("Note").fill("A later thought.")
    page.context.clear_cookies()
    row.get_by_role("button", name="Save the correction").click()
    row.get_by_role("link", name="Log in again").click()
    log_in(page)
    row.get_by_role("button").first.click()
    expect(row.get_by_label("Note")).to_have_value("A later thought.")
    page.goto(f"{server.url}/chat")
    page.get_by_label("Your message").fill("Hello?")
    page.context.clear_cookies()
    page.keyboard.press("Enter")
    page.locator("#chat-left-side").get_by_role("link", name="Log in again").click()
    log_in(page)
    expect(page.get_by_label("Your message")).to_have_value("Hello?")
    assert [vote.verdict.note for vote in store.votes(rater="ann")] == [None, "Do not lose me."]


def log_in(page: Page) -> None:
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page).not_to_have_url(re.compile("login"))
