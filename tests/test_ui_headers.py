"""The headers of the rating pages' answers, and the guard on a real server."""

import http.client
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
import pytest
import uvicorn
from starlette.testclient import TestClient

from lorarlhf.preferences.store import Store
from lorarlhf_ui.security import SAFE_LAUNCH, Guard
from tests.guarded import PAGES, browser, digest, enter, guard, pages_app

pytest_plugins = ("tests.guarded",)

ASKED: list[tuple[str, str, int]] = [
    ("GET", "/", 200),
    ("GET", "/chat", 200),
    ("HEAD", "/", 200),
    ("GET", "/config", 200),
    ("GET", "/favicon.ico", 200),
    ("GET", "/theme.css", 200),
    ("GET", "/assets/nothing.js", 404),
    ("GET", "/nothing", 404),
    ("POST", "/", 405),
    ("POST", "/gradio_api/queue/join", 422),
    ("POST", "/gradio_api/component_server", 400),
    ("GET", "/login", 303),
    ("GET", "/files/votes.jsonl", 200),
]


@pytest.mark.parametrize(("method", "path", "status"), ASKED)
def test_every_answer_has_its_headers(
    open_pages: TestClient, method: str, path: str, status: int
) -> None:
    answer = open_pages.request(method, path)
    assert answer.status_code == status
    check_headers(answer.headers)
    asset = path.startswith(("/assets", "/theme", "/favicon"))
    assert (answer.headers.get("cache-control") == "no-store") is not asset


def test_refusals_have_them_as_well(closed: Guard, app: Any, store: Store) -> None:
    client = browser(closed)
    strange = TestClient(closed, "http://evil.example", follow_redirects=False)
    for answer, status in (
        (client.get("/"), 303),
        (client.get("/login"), 200),
        (client.get("/config"), 401),
        (enter(client, "ann", "wrong"), 401),
        (enter(client), 303),
        (client.post("/login", headers={"Origin": "null"}), 403),
        (client.post("/login", content=b"x" * 9000), 413),
        (strange.get("/"), 421),
    ):
        assert answer.status_code == status
        check_headers(answer.headers, opener=None if status == 421 else "same-origin")
        assert answer.headers["cache-control"] == "no-store"


def check_headers(headers: Any, opener: str | None = "same-origin") -> None:
    wanted = {
        "x-content-type-options": "nosniff",
        "referrer-policy": "same-origin",
        "x-frame-options": "DENY",
        "cross-origin-opener-policy": opener,  # by an address in the LAN it counts for nothing
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), microphone=(), geolocation=()",
    }
    assert {name: headers.get(name) for name in wanted} == wanted
    policy = headers["content-security-policy"]
    for part in ("default-src 'none'", "form-action 'self'", "frame-ancestors 'none'"):
        assert part in policy
    assert "*" not in policy and "http" not in policy and "script-src 'unsafe" not in policy
    assert "server" not in headers
    assert not [name for name in headers if name.startswith("access-control")]


def test_only_the_pages_own_scripts_run(open_pages: TestClient) -> None:
    for path in PAGES:
        answer = open_pages.get(path, headers={"accept-encoding": "br, gzip"})
        policy = answer.headers["content-security-policy"]
        (rule,) = [part for part in policy.split("; ") if part.startswith("script-src")]
        scripts = re.findall(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", answer.text, re.S)
        assert len(scripts) >= 4 and all(digest(script) in rule for script in scripts)
        assert digest("window.keys = 1") in rule  # of `head=`
        assert digest("alert(1)") not in rule and "'unsafe-inline'" not in rule
        assert rule.count("sha256-") == len(scripts) + 1
        assert int(answer.headers["content-length"]) == len(answer.content)


def test_the_launch_arguments_exist_and_are_safe() -> None:
    import inspect

    known = inspect.signature(gr.mount_gradio_app).parameters
    assert set(SAFE_LAUNCH) <= set(known)
    assert not any(SAFE_LAUNCH[name] for name in ("run_history", "enable_monitoring", "mcp_server"))


# ---- on a real server


@contextmanager
def served(guard: Guard) -> Iterator[int]:
    """Served by uvicorn as the pages are; yields the port."""
    config = uvicorn.Config(
        guard, port=0, log_level="error", server_header=False, proxy_headers=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


def spoken(port: int, text: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 10) as line:
        line.sendall(text)
        line.settimeout(5)
        answer = b""
        while b"\r\n\r\n" not in answer and (part := line.recv(65536)):
            answer += part
    return answer


def test_the_guard_on_a_real_server(store: Store) -> None:
    api, ids = pages_app()
    with served(guard((api, ids), store)) as port:
        host = f"Host: localhost:{port}\r\n".encode()
        assert b" 200 " in spoken(port, b"GET / HTTP/1.1\r\n" + host + b"\r\n")[:20]
        for target in (
            *(b"/gradio_api/%66ile=/etc/passwd", b"/assets/%2e%2e/%2e%2e/routes.py", b"//config"),
            *(b"/assets/../../routes.py", b"/gradio_api/file=/etc/passwd", b"/..\\x"),
        ):
            said = spoken(port, b"GET " + target + b" HTTP/1.1\r\n" + host + b"\r\n")
            assert said.split(b"\r\n")[0] == b"HTTP/1.1 404 Not Found", target
        evil = spoken(port, b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert b" 421 " in evil[:20] and b"server:" not in evil.lower()
        chunked = b"Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n"
        body = (b"10000\r\n" + b" " * 65536 + b"\r\n") * 17 + b"0\r\n\r\n"
        join = b"POST /gradio_api/queue/join HTTP/1.1\r\n" + host + chunked + body
        assert b" 413 " in spoken(port, join)[:20]
        upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        assert b" 101 " not in spoken(port, b"GET / HTTP/1.1\r\n" + host + upgrade + key)[:20]


def test_streams_are_not_held_back(store: Store) -> None:
    """A heartbeat never ends; its first line arrives all the same."""
    api, ids = pages_app()
    with served(guard((api, ids), store)) as port:
        line = http.client.HTTPConnection("localhost", port, timeout=10)
        line.request("GET", "/gradio_api/heartbeat/abc")
        answer = line.getresponse()
        assert answer.status == 200 and answer.fp.readline().strip()
        line.close()
