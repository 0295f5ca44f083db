"""What owners and raters may do: every page, every event and every server function, as both."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from lorarlhf.preferences import queue
from lorarlhf.preferences.accounts import is_owner, set_password, set_role
from lorarlhf.preferences.imports import read_votes
from lorarlhf.preferences.merge import merge_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.app import Pages, open_pages, web_app
from lorarlhf_ui.history import NOT_OWNER, ONLY_OWNERS
from lorarlhf_ui.page_frame import OWNER_PAGES, PAGES, PageFrame, Visitor
from lorarlhf_ui.security import Access, Guard
from tests.guarded import PASSWORD, browser, enter
from tests.pages import pair

pytest_plugins = ("tests.pages",)

# Whoever adds an event or a server function says here who may use it.
OF_ALL = {"begin", "vote", "undo", "ask", "watch", "progress"}  # the vote widgets
OF_ALL |= {"search", "open", "shares", "correct", "export", "import_file"}  # the History page
OF_ALL |= {"look", "own_axis"}  # the Insights page
OF_ALL |= {"fill", "on_send", "on_stop", "on_retry", "on_edit", "on_restart", "on_tick"}
OF_ALL |= {f"on_vote_{choice}" for choice in ("left", "right", "tie", "both_good", "both_bad")}
OF_OWNERS = {"/compare start_comparison", "/settings fill", "/settings change_settings"}
OF_OWNERS |= {f"/runs {name}" for name in ("runs", "details", "curves", "rename", "keep")}
OF_OWNERS |= {"/runs delete", "/runs export"}
OF_OWNERS |= {f"/train {name}" for name in ("look", "estimate", "start", "tonight")}
OF_OWNERS |= {f"/train {name}" for name in ("stop", "resume", "keep", "drop")}
REFUSED = "Only an owner of this project can do this."
VOTE: dict[str, Any] = {"prompt": "Why?", "verdict": "ranked", "ranking": [[0], [1]], "item": 1}
VOTE |= {"completions": [{"text": text, "source": "base"} for text in ("So.", "Because.")]}
VOTE |= {"shown": [0, 1], "purpose": "train", "origin": {}}
VOTE |= dict.fromkeys(("strength", "note", "edited", "milliseconds", "created_at"))


@pytest.fixture
def pages(project: Project) -> Iterator[Pages]:
    """A project's pages without a model; ann is an owner and bob is a rater."""
    opened = open_pages(project, None)
    set_password(opened.store, "ann", PASSWORD, "owner")
    set_password(opened.store, "bob", PASSWORD)
    yield opened
    opened.close()


def guarded(pages: Pages) -> Guard:
    access = Access(frozenset({"localhost"}), login=True, default_rater="me", project="mine")
    return web_app(pages, access)


def events(client: TestClient) -> dict[str, tuple[str, Any]]:
    """Every event and every server function, by page and name, with what calls it."""
    found: dict[str, tuple[str, Any]] = {}
    blocks = client.app._app.routes[-1].app.get_blocks()  # type: ignore[attr-defined]
    for fn in blocks.fns.values():
        if fn.fn is not None:
            page = f"/{fn.page}"
            name = fn.fn.__name__
            key = f"{page} {name}"
            found[key if key not in found else f"{key} again"] = ("event", fn)
    for block in blocks.blocks.values():
        for name, handler in vars(block).items():
            if getattr(handler, "_is_server_fn", False):
                found[f"/{block.page} {name}"] = ("server", block)
    return found


def call(client: TestClient, what: str, target: Any, name: str) -> str:
    """What the server says to an event or a server function without usable data."""
    if what == "server":
        body = {"data": {}, "component_id": target._id, "fn_name": name, "session_hash": "s"}
        return client.post("/gradio_api/component_server/", json=body).text
    session = f"session{target._id}"
    data = [getattr(block, "minimum", None) for block in target.inputs]
    event = {"data": data, "fn_index": target._id, "session_hash": session}
    event["event_data"] = {"index": 0, "value": "x", "previous_value": ""}
    assert client.post("/gradio_api/queue/join", json=event).status_code == 200
    return client.get("/gradio_api/queue/data", params={"session_hash": session}).text


def test_every_event_and_every_function_knows_who_may_use_it(pages: Pages) -> None:
    guard = guarded(pages)
    said: dict[str, dict[str, str]] = {}
    with browser(guard) as client:  # one event loop, as Gradio has one queue
        walked = events(client)
        for rater in ("ann", "bob"):
            enter(client, rater)
            said[rater] = {
                key: call(client, *target, key.split()[1]) for key, target in walked.items()
            }
    assert walked.keys() >= OF_OWNERS and len(walked) > 25
    unknown = {key for key in walked if key not in OF_OWNERS and key.split()[1] not in OF_ALL}
    assert not unknown, "say in OF_ALL or OF_OWNERS who may use these"
    refused = {rater: {key for key in walked if REFUSED in said[rater][key]} for rater in said}
    assert refused == {"ann": set(), "bob": OF_OWNERS}
    assert pages.store.count() == 0 and pages.comparisons.newest() is None


def test_the_owners_pages_are_closed_to_raters(pages: Pages) -> None:
    guard = guarded(pages)
    for rater, status in (("ann", 200), ("bob", 403)):
        client = browser(guard)
        enter(client, rater)
        for path in PAGES:
            page = client.get(path)
            assert page.status_code == (status if path in OWNER_PAGES else 200)
            assert ("/settings" in page.text.split("</header>")[0]) == (rater == "ann")
            assert f"<b>{rater}</b>" in page.text and "Log out" in page.text
    assert "open to the owners" in page.text
    set_role(pages.store, "bob", "owner")  # from the next request on
    assert client.get("/settings").status_code == 200


def test_without_a_login_the_rater_is_an_owner(pages: Pages) -> None:
    access = Access(frozenset({"localhost"}), login=False, default_rater="me")
    client = browser(web_app(pages, access))
    page = client.get("/settings").text
    assert "<b>me</b>" in page and "Log out" not in page


def test_only_owners_add_what_everybody_is_asked(pages: Pages) -> None:
    from lorarlhf_ui.history import History

    chat = str(Path(__file__).parent / "data/imports/sillytavern.jsonl")
    history = History(pages.store, lambda rater: None)
    said = history.import_file("bob", chat)
    assert said.splitlines()[0].endswith(f"1 {ONLY_OWNERS}.") and queue.waiting(pages.store) == 0
    said = history.import_file("ann", chat)
    assert "1 messages without another answer to compare (line 7)" in said
    assert "1 set of answers waits on the Rate page." in said.splitlines()
    assert queue.waiting(pages.store) == 1
    again = history.import_file("ann", chat)
    assert "1 sets of answers already in the store" in again and queue.waiting(pages.store) == 1


def test_a_single_answer_that_was_called_good_is_listed_and_can_be_undone(pages: Pages) -> None:
    from lorarlhf_ui.history import History

    vote = ImportedVote("Why?", (("So.", "x"),), Verdict("both_good"), "bob", key="thumb 1")
    merge_votes(pages.store, [vote])
    history = History(pages.store, lambda rater: None)
    (row,) = history.search("bob", {})["rows"]
    assert row["summary"] == "good"
    wrong = {"id": row["id"], "vote": {"verdict": "ranked", "ranking": "A"}}
    with pytest.raises(UserError, match="call it good or bad"):
        history.correct("bob", wrong)
    with pytest.raises(UserError, match="called good or bad, or skipped"):
        history.correct("bob", {"id": row["id"], "vote": {"verdict": "tie"}})
    bad = history.correct("bob", {"id": row["id"], "vote": {"verdict": "both_bad"}})
    assert bad["summary"] == "bad"
    assert history.undo("bob", {"id": bad["id"]})["message"] == "The vote is undone."
    assert queue.next_shown(pages.store, "bob") is None


def test_a_rater_imports_own_votes_only(pages: Pages, tmp_path: Any) -> None:
    file = tmp_path / "in.jsonl"
    rows = [VOTE | {"rater": name} for name in ("bob", "ann", "eve")]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    assert len(read_votes(file).votes) == 3
    from lorarlhf_ui.history import History

    history = History(pages.store, lambda rater: None)
    assert history.import_file("bob", str(file)) == (
        f"Imported 1 vote from in.jsonl. Left out: 2 {NOT_OWNER}."
    )
    history.import_file("ann", str(file))
    assert {vote.rater for vote in pages.store.votes()} == {"ann", "bob", "eve"}
    # The owner finds what nobody who logs in has cast, and raters find their own votes.
    for rater, names in (("ann", {"ann", "eve"}), ("bob", {"bob"})):
        rows = history.search(rater, {})["rows"]
        assert {row["rater"] for row in rows} == names and all(row["imported"] for row in rows)
        assert all(history.open(rater, {"id": row["id"]})["imported"] for row in rows)


def test_a_raters_own_prompt_is_not_asked_of_others(pages: Pages) -> None:
    before = pages.project.prompts.read_text("utf-8")
    with browser(guarded(pages)) as client:
        target = events(client)["/ ask"][1]
        for rater, text in (("bob", "Whose sea is it?"), ("ann", "Whose land is it?")):
            enter(client, rater)
            body = {"component_id": target._id, "fn_name": "ask", "session_hash": "s"}
            client.post("/gradio_api/component_server/", json={**body, "data": {"text": text}})
    added = pages.project.prompts.read_text("utf-8").removeprefix(before)
    assert "land" in added and "sea" not in added
    assert [row["source"] for row in pages.store.rows("SELECT source FROM prompt ORDER BY id")] == [
        "typed by bob",
        "typed by ann",
    ]


def test_roles_last_and_end(pages: Pages) -> None:
    pair(pages.store)
    set_password(pages.store, "ann", "another harbour")
    assert is_owner(pages.store, "ann")  # a new password changes no role
    set_role(pages.store, "ann", "rater")
    assert not is_owner(pages.store, "ann") and not is_owner(pages.store, "nobody")


def test_what_is_typed_is_kept_for_one_rater_of_one_project() -> None:
    kept = set()
    for votes in ("one", "other"):
        for name in ("ann", "bob"):
            frame = PageFrame("mine", votes=votes)
            page = frame.around("<head></head><body></body>", "/", Visitor(name, owner=False))
            kept |= set(re.findall(r'data-drafts="(\w+)"', page))
    assert len(kept) == 4
