"""The rating pages behind a proxy: who the sender is, and the path that it serves them under."""

from typing import Any

import pytest

from lorarlhf.preferences.store import Store
from lorarlhf_ui.login import MOST_FAILURES
from tests.guarded import PASSWORD, browser, enter, guard

pytest_plugins = ("tests.guarded",)


def test_behind_a_proxy_tries_count_by_the_sender(app: Any, store: Store) -> None:
    """The last address is the proxy's own word; what the sender wrote before it counts nothing."""
    closed = guard(app, store, login=True, proxied=True)

    def wrong(number: int, sender: str, peer: str = "127.0.0.1") -> int:
        headers = {"X-Forwarded-For": f"10.9.9.{number}, {sender}"}
        return enter(browser(closed, peer, headers=headers), f"name {number}", "x").status_code

    assert [wrong(n, "203.0.113.5") for n in range(6)] == [401] * MOST_FAILURES + [429]
    assert wrong(7, "203.0.113.6") == 401  # others are not concerned
    # Who comes without the proxy can't choose an address.
    assert [wrong(n, f"203.0.113.{n}", "192.168.1.9") for n in range(20, 26)][-1] == 429
    direct = guard(app, store, login=True)
    headers = [{"X-Forwarded-For": f"203.0.113.{n}"} for n in range(6)]
    codes = [enter(browser(direct, headers=one), "eve", "x").status_code for one in headers]
    assert codes[-1] == 429


@pytest.mark.parametrize("path", ["/x/chat", "/chat"])  # the proxy keeps the path, or cuts it off
def test_the_root_path_is_in_every_address(app: Any, store: Store, path: str) -> None:
    client = browser(guard(app, store, login=True, root="/x", project="mine"))
    assert client.get(path).headers["location"] == "/x/login?to=/chat"
    login_page = client.get("/x/login").text
    assert 'action="/x/login"' in login_page
    answer = client.post("/x/login", data={"name": "ann", "password": PASSWORD, "to": "/chat"})
    assert answer.headers["location"] == "/x/chat" and "Path=/x;" in answer.headers["set-cookie"]
    page = client.get("/x/chat").text  # the browser sends the cookie below its path only
    assert 'href="/x/chat" aria-current=page' in page and 'action="/x/logout"' in page
    assert client.get("/x").headers["location"] == "/x/"
    assert client.post("/x/logout").headers["location"] == "/x/login"
