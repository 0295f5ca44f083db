"""The history page in a real browser: find, correct and undo votes, download and import files."""

import contextlib
import json
import re
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from lorarlhf.preferences.accounts import set_password
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.preferences.store import Store
from lorarlhf.project.project import VOTES
from tests.browser.history_votes import FIRST, HOSTILE, SECOND, pair, votes
from tests.browser.servers import Server, Servers

PASSWORD = "quiet harbour 7"

# The page by itself, behind the real guard: `lorarlhf ui` without the engine.
SERVER = """
import sys
import fastapi, gradio as gr, uvicorn
from lorarlhf.preferences.store import Store
from lorarlhf_ui.downloads import add_files
from lorarlhf_ui.history_page import history_page
from lorarlhf_ui.security import SAFE_LAUNCH, Access, Guard, rater_of
from lorarlhf_ui.theme import static, theme

folder, login = sys.argv[1], "--login" in sys.argv
port = int(sys.argv[sys.argv.index("--port") + 1])
store = Store(f"{folder}/preferences.sqlite")
with gr.Blocks(title="History", analytics_enabled=False) as blocks:
    gr.Markdown("Here votes are cast.")
with blocks.route("History", "/history"):
    history_page(store, lambda rater: print("changed", rater, flush=True), not login)
app = fastapi.FastAPI()
add_files(app, store, not login)
app = gr.mount_gradio_app(app, blocks, path="/", auth_dependency=rater_of, theme=theme(),
    css=static("pages.css") + static("text.css"),
    head='<meta name="viewport" content="width=device-width, initial-scale=1">', **SAFE_LAUNCH)
access = Access(frozenset({"127.0.0.1"}), login, "me")
uvicorn.run(Guard(app, store, access, ("/", "/history")), port=port, log_level="warning")
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests: a start takes seconds."""
    servers = Servers(lambda: tmp_path_factory.mktemp("server"))
    yield start(servers, tmp_path_factory.mktemp("project"))
    for server in servers.started:
        server.end()


@pytest.fixture
def project(shared: Server, tmp_path: Path) -> Path:
    """The server's folder with seventy-four votes, as if nobody had been here."""
    return fill(shared, tmp_path, votes())


@pytest.fixture
def server(shared: Server, project: Path) -> Server:
    return shared


def fill(server: Server, new: Path, made: list[ImportedVote]) -> Path:
    """Let the store that a server has open hold these votes and nothing else; gives its folder."""
    folder = Path(server.command[2])
    old = sqlite3.connect(folder / VOTES, timeout=30)
    with contextlib.closing(Store(new / VOTES)) as store, contextlib.closing(old):
        add_votes(store, made)
        store._db.backup(old)
    return folder


def start(serve: Servers, folder: Path, *words: str) -> Server:
    program = folder / "server.py"
    program.write_text(SERVER)
    return serve(folder, *words, command=(sys.executable, str(program)))


def rows(page: Page) -> Any:
    return page.locator("#history .rows > li")


def status(page: Page) -> Any:
    return page.locator("#history [data-part=status]")


def open_first(page: Page) -> Any:
    row = rows(page).first
    row.get_by_role("button").first.click()
    expect(row.locator(".details")).to_be_visible()
    return row


def no_sideways(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


# ---- looking


def test_votes_are_listed_in_pages_and_filtered(open_page: Any, server: Any) -> None:
    page = open_page(f"{server.url}/history")
    # Everybody's where nobody logs in, so that imported votes are seen.
    expect(status(page)).to_have_text("Votes 1 to 50 of 74, the newest first.")
    page.locator("#history").get_by_label("Whose").select_option("mine")
    expect(status(page)).to_have_text("Votes 1 to 50 of 73, the newest first.")
    expect(rows(page)).to_have_count(50)
    page.get_by_role("button", name="Older").click()
    expect(status(page)).to_have_text("Votes 51 to 73 of 73, the newest first.")
    expect(page.get_by_role("button", name="Older")).to_be_disabled()
    page.locator("#history").get_by_label("Whose").select_option("all")
    expect(status(page)).to_contain_text("1 to 50 of 74")
    page.get_by_label("Verdict").select_option("skip")
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("imported · blind comparison")
    page.get_by_label("For", exact=True).select_option("train")
    expect(status(page)).to_have_text("No votes match. Change the filters above.")
    page.get_by_label("Verdict").select_option("")
    page.get_by_label("Words in").fill("ÜBER GREEN.")
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("B > A = C")


def test_the_first_click_on_a_result_opens_it(open_page: Any, server: Any) -> None:
    page = open_page(f"{server.url}/history")
    expect(rows(page)).to_have_count(50)
    words = page.get_by_label("Words in")
    words.press_sequentially("Über green.")
    expect(rows(page)).to_have_count(1)
    rows(page).first.get_by_role("button").first.click()  # the field reports its change only now
    expect(rows(page).first.locator(".details")).to_be_visible()
    page.wait_for_timeout(700)
    expect(rows(page).first.locator(".details")).to_be_visible()
    words.press_sequentially(" ")  # and while the next search is on its way
    rows(page).first.get_by_role("button").first.click()
    rows(page).first.get_by_role("button").first.click()
    page.wait_for_timeout(700)
    expect(rows(page).first.locator(".details")).to_be_visible()


def test_a_vote_is_opened_with_the_keyboard(open_page: Any, server: Any) -> None:
    page = open_page(f"{server.url}/history")
    first = rows(page).first.get_by_role("button").first
    first.focus()
    page.keyboard.press("Enter")
    details = rows(page).first.locator(".details")
    expect(details).to_contain_text("For training · after 8 s")
    expect(details.get_by_role("article", name="Answer B")).to_contain_text("runs/0003-ppo")
    expect(first).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Tab")
    expect(details.locator("summary")).to_be_focused()
    page.keyboard.press("Escape")
    expect(details).to_have_count(0)
    expect(first).to_be_focused()


def test_hostile_text_stays_text(open_page: Any, server: Any) -> None:
    page = open_page(f"{server.url}/history")
    row = rows(page).nth(1)
    row.get_by_role("button").first.click()
    details = row.locator(".details")
    expect(details.locator(".prompt")).to_have_text(HOSTILE)
    expect(details.locator(".note")).to_have_text(HOSTILE)
    expect(details.locator(".edited .text")).to_have_text(f"Mine. {HOSTILE}")
    expect(details.locator(".source").first).to_have_text(HOSTILE)
    expect(details.locator("a, img, script")).to_have_count(0)
    expect(page).to_have_title("History")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_window(
    open_page: Any, server: Any, width: int, dark: bool
) -> None:
    page = open_page(f"{server.url}/history", width=width, dark=dark)
    expect(rows(page)).to_have_count(50)
    no_sideways(page)
    for number in (0, 1, 2):
        row = rows(page).nth(number)
        row.get_by_role("button").first.click()
        row.locator("summary").click()
        expect(row.get_by_role("button", name="Save the correction")).to_be_visible()
        no_sideways(page)
    for name in ("Download votes", "Import votes from a file"):
        page.get_by_role("button", name=name).click()
    expect(page.get_by_role("link", name=re.compile("Download"))).to_be_visible()
    no_sideways(page)


# ---- changing


def test_a_vote_is_corrected(open_page: Any, server: Any, project: Path) -> None:
    heard = server.said().count("changed me")
    page = open_page(f"{server.url}/history")
    row = open_first(page)
    row.locator("summary").click()
    row.get_by_label("B is better").check()
    row.get_by_label("By how much").select_option("much")
    row.get_by_label("Note").fill("on second thought")
    row.get_by_role("button", name="Save the correction").click()
    expect(status(page)).to_have_text("The correction is saved.")
    expect(row.locator(".verdict")).to_have_text("B is better, much")
    expect(row.get_by_role("button").first).to_be_focused()
    newest = Store(project / VOTES).votes(rater="me", newest=1)[0]
    assert newest.verdict == Verdict("ranked", [[1], [0]], "much", "on second thought")
    assert server.said().count("changed me") == heard + 1
    page.reload()
    expect(rows(page).first).to_contain_text("B is better, much")


def test_a_ranking_is_corrected_in_letters(open_page: Any, server: Any, project: Path) -> None:
    page = open_page(f"{server.url}/history")
    row = rows(page).nth(2)
    row.get_by_role("button").first.click()
    row.locator("summary").click()
    expect(row.get_by_label("Ranking, the best")).to_have_value("B > A = C")
    row.get_by_label("Ranking, the best").fill("c > d")
    row.get_by_role("button", name="Save the correction").click()
    expect(row.locator(".problem")).to_contain_text("D is none of A, B, C")
    row.get_by_label("Ranking, the best").fill("c > a")
    row.get_by_role("button", name="Save the correction").click()
    expect(row.locator(".verdict")).to_have_text("C > A (B not ranked)")
    newest = Store(project / VOTES).votes(rater="me", newest=3)[0]
    assert newest.verdict.ranking == [[2], [0]]


def test_a_vote_is_undone(open_page: Any, server: Any, project: Path) -> None:
    page = open_page(f"{server.url}/history")
    row = open_first(page)
    row.locator("summary").click()
    row.get_by_role("button", name="Undo this vote").click()
    expect(status(page)).to_contain_text("The vote is undone.")
    expect(rows(page).first).to_contain_text("both bad")
    expect(rows(page).first.get_by_role("button").first).to_be_focused()
    assert Store(project / VOTES).count("me") == 72


def test_a_vote_changed_elsewhere_is_an_error(open_page: Any, server: Any, project: Path) -> None:
    page = open_page(f"{server.url}/history")
    row = open_first(page)
    row.locator("summary").click()
    store = Store(project / VOTES)
    store.correct(store.votes(rater="me", newest=1)[0].id, SECOND)
    row.get_by_role("button", name="Undo this vote").click()
    expect(row.locator(".problem")).to_contain_text("changed elsewhere")
    assert store.count("me") == 73


# ---- files


def test_what_is_downloaded_is_what_was_counted(open_page: Any, server: Any) -> None:
    page = open_page(f"{server.url}/history")
    page.get_by_role("button", name="Download votes").click()
    counted = page.locator("#export [data-part=status]")
    expect(counted).to_have_text("75 rows from 73 votes.")
    page.get_by_label("Form").select_option("own")
    page.get_by_label("Votes for").select_option("all")
    page.locator("#export").get_by_label("Whose").select_option("all")
    expect(counted).to_have_text("74 rows from 74 votes.")
    page.get_by_label("Form").select_option("trl")
    expect(counted).to_contain_text("1 skipped")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download 75 rows").click()
    assert download.value.suggested_filename == "votes-trl.jsonl"
    found = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert len(found) == 75 and all({"prompt", "chosen", "rejected"} <= set(row) for row in found)


def test_a_file_is_imported_once_and_a_broken_one_not_at_all(
    open_page: Any, server: Any, project: Path
) -> None:
    page = open_page(f"{server.url}/history")
    expect(rows(page)).to_have_count(50)
    page.get_by_role("button", name="Import votes from a file").click()
    good, broken = project / "good.jsonl", project / "broken.jsonl"
    row = {"prompt": "New?", "chosen": "Yes.", "rejected": HOSTILE}
    good.write_text("".join(json.dumps(row | {"prompt": f"New {n}?"}) + "\n" for n in range(3)))
    broken.write_text(good.read_text() + '{"prompt": "x", "chosen": 3, "rejected": "<b>"}\n')
    said = page.locator("#import-message")
    page.locator("#history").get_by_label("Whose").select_option("all")
    expect(status(page)).to_contain_text("of 74")
    bring(page, broken)
    expect(said.get_by_role("alert")).to_contain_text("broken.jsonl, line 4")
    assert Store(project / VOTES).count() == 74
    bring(page, good)
    expect(said.get_by_role("status")).to_have_text("Imported 3 votes from good.jsonl.")
    expect(status(page)).to_contain_text("of 77")  # by itself
    bring(page, good)
    expect(said).to_contain_text(
        "Imported 0 votes from good.jsonl. Left out: 3 already in the store."
    )
    assert Store(project / VOTES).count() == 77
    page.get_by_label("Leave out rows that can't be read").check()
    capital = broken.rename(project / "BROKEN.JSONL")  # gradio-app/gradio 10746
    bring(page, capital)
    expect(said).to_contain_text("1 rows that can't be read; 3 already in the store.")
    expect(said.get_by_role("status")).to_contain_text("BROKEN.JSONL, line 4")


def bring(page: Page, file: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a file").click()
    chooser.value.set_files(file)


# ---- others


def test_under_a_login_everybody_sees_their_own(open_page: Any, serve: Any, project: Path) -> None:
    set_password(Store(project / VOTES), "ann", PASSWORD)
    add_votes(Store(project / VOTES), [pair(99, FIRST, rater="ann")])
    server = start(serve, project, "--login")
    page = open_page(f"{server.url}/history")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(rows(page)).to_have_count(1)
    expect(page.locator("#history").get_by_label("Whose")).to_be_hidden()
    assert page.request.get(f"{server.url}/files/votes?scope=all").status == 400
    own = page.request.get(f"{server.url}/files/votes?form=own&purpose=all").text()
    assert [json.loads(line)["rater"] for line in own.splitlines()] == ["ann"]


def test_fifty_thousand_votes_are_looked_through_quickly(
    open_page: Any, shared: Server, tmp_path: Path
) -> None:
    made = [pair(n, FIRST, prompt=f"Question {n % 500}?") for n in range(50_000)]
    fill(shared, tmp_path, made)
    page = open_page(f"{shared.url}/history")
    expect(status(page)).to_have_text("Votes 1 to 50 of 50,000, the newest first.")
    started = time.monotonic()
    page.get_by_label("Words in").fill("Answer 49123")
    expect(rows(page)).to_have_count(1)
    assert time.monotonic() - started < 10
