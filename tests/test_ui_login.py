"""Logins at the rating pages, how often one may try, and who votes."""

import json
import re
import threading
import time
from typing import Any

import gradio as gr
import pytest
from fastapi import Request
from starlette.testclient import TestClient

from lorarlhf.preferences.accounts import log_in, set_password
from lorarlhf.preferences.store import Store
from lorarlhf_ui import login
from lorarlhf_ui.login import MOST_FAILURES, WINDOW_SECONDS, WRONG, Attempts, network
from lorarlhf_ui.security import Guard, rater_of
from tests.guarded import (
    FORM,
    PAGES,
    READS,
    WRITES,
    browser,
    digest,
    enter,
    guard,
    pages_app,
)

pytest_plugins = ("tests.guarded",)


def test_without_a_login_nothing_is_served(closed: Guard) -> None:
    client = browser(closed)
    for path in PAGES:
        answer = client.get(path)
        assert answer.status_code == 303 and answer.headers["location"].startswith("/login")
    for path in (*READS, "/assets/x.js", "/theme.css", "/files/votes.jsonl", "/favicon.ico"):
        assert client.get(path).status_code == 401
    for path in WRITES:
        assert client.post(path, json={}).status_code == 401
    assert client.get("/manifest.json").status_code == 200


def test_the_login_page_is_plain_and_accessible(closed: Guard) -> None:
    answer = browser(closed).get("/login")
    page = answer.text
    assert answer.status_code == 200 and 'lang="en"' in page and "width=device-width" in page
    for field in ("name", "password"):
        assert f'<label for="{field}">' in page and f'<input id="{field}"' in page
    assert "prefers-color-scheme: dark" in page and "<script" not in page
    assert not re.findall(r"https?://|@import|url\(", page)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src" not in policy
    style = re.search(r"<style>(.*?)</style>", page, re.S)
    assert style and digest(style[1]) in policy


def test_logging_in_and_out(closed: Guard) -> None:
    client = browser(closed)
    answer = enter(client, to="/chat")
    assert (answer.status_code, answer.headers["location"]) == (303, "/chat")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("lorarlhf=") and "ann" not in cookie
    for part in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age=2592000"):
        assert part in cookie
    assert client.get("/").status_code == 200 and client.get("/config").status_code == 200
    assert client.get("/login").headers["location"] == "/"
    token = client.cookies["lorarlhf"]
    answer = client.post("/logout")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert "Max-Age=0" in answer.headers["set-cookie"]
    # The token itself is worth nothing any more.
    assert client.get("/config", headers={"cookie": f"lorarlhf={token}"}).status_code == 401


def test_a_new_login_ends_the_one_before(closed: Guard) -> None:
    client = browser(closed)
    enter(client)
    before = client.cookies["lorarlhf"]
    enter(client, "bob")
    assert client.cookies["lorarlhf"] != before
    stale = browser(closed).get("/config", headers={"cookie": f"lorarlhf={before}"})
    assert stale.status_code == 401


def test_a_cookie_is_only_a_token(closed: Guard) -> None:
    for value in ("ann", "", "x" * 43, '"ann"', "ann; rater=ann", "' OR 1=1 --"):
        answer = browser(closed).get("/config", headers={"cookie": f"lorarlhf={value}"})
        assert answer.status_code == 401
    for header in ("lorarlhf_rater", "x-rater", "authorization", "remote-user"):
        assert browser(closed).get("/config", headers={header: "ann"}).status_code == 401


def test_a_wrong_name_and_a_wrong_password_get_the_same_answer(closed: Guard) -> None:
    answers = [enter(browser(closed), name, "wrong") for name in ("ann", "xyz")]
    texts = {answer.text.replace("ann", "xyz") for answer in answers}
    assert {answer.status_code for answer in answers} == {401}
    assert len(texts) == 1 and WRONG in texts.pop()
    assert not any("set-cookie" in answer.headers for answer in answers)


def test_names_come_back_as_text(closed: Guard) -> None:
    page = enter(browser(closed), '"><script>alert(1)</script>', "wrong").text
    assert "<script" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize(
    "to", ["//evil.example", "https://evil.example", "/\\evil.example", "/config", "javascript:x"]
)
def test_a_login_leads_to_pages_only(closed: Guard, to: str) -> None:
    assert enter(browser(closed), to=to).headers["location"] == "/"
    page = browser(closed).get("/login", params={"to": to}).text
    assert 'name="to" value="/"' in page


@pytest.mark.parametrize(
    "body", [b"", b"name=ann", b"password=x", b"\xff\xfe=%ff&name=%00", b"&&="]
)
def test_odd_forms_are_a_wrong_password(closed: Guard, body: bytes) -> None:
    assert browser(closed).post("/login", content=body, headers=FORM).status_code == 401


def test_a_login_survives_a_restart_and_not_a_new_password(
    app: Any, closed: Guard, store: Store
) -> None:
    client = browser(closed)
    enter(client)
    token = {"cookie": f"lorarlhf={client.cookies['lorarlhf']}"}
    restarted = browser(guard(app, Store(store.path), login=True))
    assert restarted.get("/config", headers=token).status_code == 200
    set_password(store, "ann", "another harbour")
    assert restarted.get("/config", headers=token).status_code == 401


def test_where_no_login_is_asked_there_is_no_login_page(open_pages: TestClient) -> None:
    for answer in (open_pages.get("/login"), enter(open_pages), open_pages.post("/logout")):
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert "set-cookie" not in answer.headers


# ---- how often one may try


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_an_address_has_five_tries(closed: Guard, clock: Clock) -> None:
    closed._login.attempts = Attempts(clock)
    client = browser(closed)
    for number in range(MOST_FAILURES):
        assert enter(client, f"name {number}", "wrong").status_code == 401
    refused = enter(client)  # even the right one
    assert refused.status_code == 429 and "set-cookie" not in refused.headers
    assert 290 < int(refused.headers["retry-after"]) <= 301
    assert "Too many tries. Try again in 5 minutes." in refused.text
    assert enter(browser(closed, "192.168.1.8")).status_code == 303  # others are not concerned
    clock.now += WINDOW_SECONDS + 1
    assert enter(client).status_code == 303


def test_refused_tries_do_not_make_the_wait_longer(clock: Clock) -> None:
    attempts = Attempts(clock)
    for _ in range(MOST_FAILURES):
        assert attempts.begin("a", "ann") == 0
    waits = []
    for _ in range(4):
        waits.append(attempts.begin("a", "ann"))
        clock.now += 60
    assert waits == sorted(waits, reverse=True) and 0 not in waits
    clock.now = 1000 + WINDOW_SECONDS + 1
    assert attempts.begin("a", "ann") == 0


def test_a_name_has_five_tries_and_its_rater_is_never_shut_out(clock: Clock) -> None:
    attempts = Attempts(clock)
    for _ in range(2):
        assert attempts.begin("b", "ann") == 0
    for _ in range(3):
        assert attempts.begin("c", "ann") == 0
    assert attempts.begin("b", "ann") > 0 and attempts.begin("c", "ann") > 0
    assert attempts.begin("b", "bob") == 0
    # A stranger goes on for hours; the rater knows the password and comes in at once.
    for _ in range(100):
        clock.now += 61
        attempts.begin("b", "ann")
        attempts.begin("c", "ann")
        assert attempts.begin("home", "ann") == 0
        attempts.succeeded("home", "ann")
    # Who mistypes waits, but never longer than five minutes.
    assert attempts.begin("home", "ann") == 0
    assert 0 < attempts.begin("home", "ann") <= WINDOW_SECONDS + 1


def test_tries_count_from_their_beginning(closed: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many at once are as many tries, though none has failed yet."""
    begun = threading.Semaphore(0)

    def slow(*_: Any) -> bool:
        begun.release()
        time.sleep(0.2)
        return False

    monkeypatch.setattr(login, "password_fits", slow)
    codes: list[int] = []
    with browser(closed) as client:
        threads = [
            threading.Thread(target=lambda: codes.append(enter(client, "ann", "x").status_code))
            for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(codes) == [401] * MOST_FAILURES + [429] * 7


def test_two_passwords_are_hashed_at_once(closed: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, running, most = threading.Lock(), 0, 0

    def slow(*_: Any) -> bool:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return False

    monkeypatch.setattr(login, "password_fits", slow)
    with browser(closed) as client:  # one event loop for all
        threads = [
            threading.Thread(target=enter, args=(client, f"name {number}", "x"))
            for number in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == 2


def test_what_is_remembered_has_a_bound(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "_MOST_KEYS", 50)
    attempts = Attempts(clock)
    for number in range(1000):
        attempts.begin(f"10.0.{number // 250}.{number % 250}", "x" * 10_000 + str(number))
    assert len(attempts) <= 50
    for number in range(1000):
        attempts.begin("10.9.9.9", f"name {number}")  # five are counted, the rest refused
    assert len(attempts) <= 50
    assert all(len(key[1]) <= 200 for key in attempts._failures)


def test_success_leaves_no_trace(closed: Guard, clock: Clock) -> None:
    assert all(enter(browser(closed)).status_code == 303 for _ in range(MOST_FAILURES + 1))
    attempts = Attempts(clock)
    for _ in range(20):
        assert attempts.begin("a", "ann") == 0
        attempts.succeeded("a", "ann")
    assert len(attempts) == 0


def test_an_ipv6_host_is_one_address() -> None:
    assert network("fe80::1%eth0") == network("fe80::2") == "fe80::/64"
    assert network("2001:db8:1::1") != network("2001:db8:2::1")
    assert network("::ffff:10.0.0.1") == network("10.0.0.1") == "10.0.0.1"
    assert network("testclient") == "testclient"


# ---- who votes


def call(client: TestClient, ids: dict[str, int]) -> tuple[Any, str]:
    """A server function's answer, and an event's output."""
    body = {"data": 7, "component_id": ids["html"], "fn_name": "ask_rater", "session_hash": "s"}
    server = client.post("/gradio_api/component_server/", json=body).json()
    event = {"data": [], "fn_index": ids["event"], "session_hash": "s"}
    assert client.post("/gradio_api/queue/join", json=event).status_code == 200
    stream = client.get("/gradio_api/queue/data", params={"session_hash": "s"}).text
    said = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
    done = next(message for message in said if message["msg"] == "process_completed")
    return server, done["output"]["data"][0]


@pytest.mark.parametrize("login_asked", [False, True])
def test_the_rater_reaches_events_and_server_functions(store: Store, login_asked: bool) -> None:
    api, ids = pages_app()
    with browser(guard((api, ids), store, login=login_asked)) as client:
        if login_asked:
            enter(client, "bob")
        rater = "bob" if login_asked else "me"
        server, event = call(client, ids)
        assert server == {"sent": 7, "rater": rater}
        assert event == f"{rater} {rater}"
        assert client.get("/files/votes.jsonl").json() == {"rater": rater}
        assert client.get("/config").json()["username"] == rater


def test_nobody_is_behind_a_request_that_passed_no_guard() -> None:
    assert rater_of(Request({"type": "http", "headers": []})) is None
    assert rater_of(gr.Request()) is None


def test_a_session_can_be_made_by_the_store_alone(closed: Guard, store: Store) -> None:
    token = log_in(store, "ann")
    assert browser(closed).get("/config", headers={"cookie": f"lorarlhf={token}"}).is_success
