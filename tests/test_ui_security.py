"""The guard before the rating pages, with a real Gradio app behind it."""

import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from lorarlhf.preferences.accounts import log_in, set_password
from lorarlhf.preferences.store import Store
from lorarlhf_ui import login
from lorarlhf_ui import network as address
from lorarlhf_ui.login import MOST_FAILURES, WINDOW_SECONDS, WRONG, Attempts, network
from lorarlhf_ui.security import SAFE_LAUNCH, Access, Guard, host_name, rater_of

PASSWORD = "quiet harbour 7"
HERE = "http://localhost:7860"
PAGES = ("/", "/chat")
HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
READS = ("/config", "/gradio_api/queue/data?session_hash=x", "/gradio_api/app_id")
WRITES = (
    "/gradio_api/queue/join",
    "/gradio_api/component_server",
    "/gradio_api/component_server/",
    "/gradio_api/upload",
    "/gradio_api/cancel",
    "/gradio_api/reset",
)
FORM = {"content-type": "application/x-www-form-urlencoded"}


def ask_rater(data: Any, request: gr.Request) -> dict[str, Any]:
    """A server function of gr.HTML: `data` is what the page sent."""
    return {"sent": data, "rater": rater_of(request)}


def pages_app() -> tuple[FastAPI, dict[str, int]]:
    """A small Gradio app as the rating pages are made, and ids to call it by."""

    def who(request: gr.Request) -> str:
        return f"{request.username} {rater_of(request)}"

    with gr.Blocks(title="Tiny") as demo:
        html = gr.HTML("x", html_template="<b>${value}</b>", server_functions=[ask_rater])
        gr.Markdown("# Tiny </script><script>alert(1)</script>")
        said, button = gr.Textbox(), gr.Button("Go")
        button.click(who, None, said)
    with demo.route("Chat", "/chat"):
        gr.Markdown("A second page")
    api = FastAPI()

    @api.get("/files/votes.jsonl")
    def votes(request: Request) -> dict[str, str | None]:
        return {"rater": rater_of(request)}

    launch = {**SAFE_LAUNCH, "head": "<script>window.keys = 1</script>"}
    gr.mount_gradio_app(api, demo, path="/", auth_dependency=rater_of, **launch)
    return api, {"html": html._id, "event": 0}


@pytest.fixture(scope="module")
def two_raters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store's file, made once because passwords take long on purpose."""
    store = Store(tmp_path_factory.mktemp("raters") / "preferences.sqlite")
    for name in ("ann", "bob"):
        set_password(store, name, PASSWORD)
    store.close()
    return store.path


@pytest.fixture
def store(two_raters: Path, tmp_path: Path) -> Store:
    return Store(shutil.copy(two_raters, tmp_path / "preferences.sqlite"))


@pytest.fixture(scope="module")
def app() -> tuple[FastAPI, dict[str, int]]:
    return pages_app()


def guard(app: Any, store: Store, **changes: Any) -> Guard:
    access = Access(**{"hosts": HOSTS, "login": False, "default_rater": "me", **changes})
    return Guard(app[0], store, access, PAGES)


def browser(guard: Guard, address: str = "192.168.1.7", **more: Any) -> TestClient:
    return TestClient(guard, HERE, client=(address, 50000), follow_redirects=False, **more)


@pytest.fixture
def open_pages(app: Any, store: Store) -> TestClient:
    """No login is asked."""
    return browser(guard(app, store))


@pytest.fixture
def closed(app: Any, store: Store) -> Guard:
    """Every request needs a login."""
    return guard(app, store, login=True)


def enter(client: TestClient, name: str = "ann", password: str = PASSWORD, to: str = "/") -> Any:
    return client.post("/login", data={"name": name, "password": password, "to": to})


def raw(
    guard: Guard,
    method: str = "GET",
    path: str = "/",
    headers: tuple[tuple[str, str], ...] = (("host", "localhost:7860"),),
    chunks: tuple[bytes, ...] = (b"",),
) -> tuple[int, str]:
    """Ask with exactly this path and these headers; returns status and text."""
    sent: list[Any] = []
    waiting = [
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}
        for number, chunk in enumerate(chunks, 1)
    ]

    async def receive() -> Any:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers],
        "client": ("192.168.1.7", 50000),
        "server": ("localhost", 7860),
    }
    anyio.run(guard, scope, receive, send)
    body = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
    return sent[0]["status"], body.decode(errors="replace")


# ---- a: the Host header


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:7860", "localhost.:7860", "127.0.0.1:1", "[::1]", "[::1]:7860"],
)
def test_known_hosts_are_served(closed: Guard, host: str) -> None:
    assert raw(closed, path="/login", headers=(("host", host),))[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:7860", "localhost.evil.example", "127.0.0.1.nip.io", ""),
        *("192.168.1.7", "0.0.0.0:7860", "::1", "[::1", "[::1].evil.example", "localhost:evil"),
        *("localhost@evil.example", "evil.example/localhost", "localhost localhost", "[localhost"),
        *("localhost:7860:7860", "localhost..", "localhost#", "localhost,evil.example"),
    ],
)
def test_dns_rebinding_is_refused(
    open_pages: TestClient, app: Any, store: Store, host: str
) -> None:
    for path in ("/", "/login", "/config", "/assets/x.js", "/nothing"):
        assert raw(guard(app, store), path=path, headers=(("host", host),))[0] == 421
    assert raw(guard(app, store), "POST", WRITES[0], (("host", host),))[0] == 421


def test_there_is_exactly_one_host(app: Any, store: Store) -> None:
    twice = (("host", "localhost"), ("host", "evil.example"))
    for headers in ((), twice, twice[::-1], (twice[0], twice[0])):
        assert raw(guard(app, store), headers=headers)[0] == 421


def test_forwarded_hosts_do_not_reach_gradio(open_pages: TestClient) -> None:
    for name in ("X-Forwarded-Host", "X-Gradio-Server", "X-Forwarded-Proto", "Forwarded"):
        page = open_pages.get("/", headers={name: "https://evil.example"})
        assert page.status_code == 200 and "evil.example" not in page.text
        assert f'"root":"{HERE}"' in page.text
        config = open_pages.get("/config", headers={name: "https://evil.example"})
        assert config.json()["root"] == HERE


def test_pages_are_asked_for_uncompressed(store: Store) -> None:
    """Their scripts have to be read; all else may be compressed."""

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        await JSONResponse(headers)(scope, receive, send)

    client = browser(guard((echo,), store))
    assert "accept-encoding" not in client.get("/").json()
    assert "accept-encoding" in client.get("/assets/x.js").json()


def test_websockets_are_closed(app: Any, store: Store) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/", "headers": [(b"host", b"localhost")]}
    anyio.run(guard(app, store), scope, None, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


# ---- b: requests from other sites


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost"},  # another port is another site
        {"Origin": "http://localhost:8000"},
        {"Origin": "http://localhost:78600"},
        {"Origin": "http://localhost:7860.evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "file://"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": HERE},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"},
    ],
)
def test_posts_from_other_sites_are_refused(
    open_pages: TestClient, headers: dict[str, str]
) -> None:
    for path in (*WRITES, "/login", "/logout"):
        assert open_pages.post(path, json={}, headers=headers).status_code == 403
    for path in (*READS, "/files/votes.jsonl"):  # and nothing is read from there
        assert open_pages.get(path, headers=headers).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": HERE},
        {"Origin": HERE.upper()},
        {"Sec-Fetch-Site": "same-origin", "Origin": HERE},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_the_pages_own_requests_are_let_in(open_pages: TestClient, headers: dict[str, str]) -> None:
    body = {"session_hash": "s", "event_id": "e", "fn_index": 0}
    assert open_pages.post("/gradio_api/reset", json=body, headers=headers).status_code == 200
    assert open_pages.get("/config", headers=headers).status_code == 200


def test_a_link_from_elsewhere_opens_a_page_or_the_login(
    open_pages: TestClient, closed: Guard
) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert open_pages.get("/chat", headers=link).status_code == 200
    # The cookie is strict, so a link leads to the login even for those who are logged in.
    asked = browser(closed).get("/chat", headers=link)
    assert asked.status_code == 303
    assert browser(closed).get(asked.headers["location"], headers=link).status_code == 200


def test_no_preflight_is_answered_and_no_cors_header_leaves(
    open_pages: TestClient, store: Store
) -> None:
    for origin in (HERE, "http://evil.example"):
        asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        for path in (*WRITES, "/", "/login"):
            answer = open_pages.options(path, headers=asks)
            assert answer.status_code in (403, 405)
            assert not [name for name in answer.headers if name.startswith("access-control")]
    # Gradio's own, for an origin that is allowed, goes as well.
    answer = open_pages.get("/config", headers={"Origin": HERE})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


# ---- c: paths


@pytest.mark.parametrize(
    "path",
    [
        *("/gradio_api/file=/etc/passwd", "/gradio_api/file/etc/passwd", "/file=/etc/passwd"),
        *("/gradio_api/proxy=http://evil.example/", "/gradio_api/proxy=https://x.hf.space/"),
        *("/monitoring", "/monitoring/summary", "/monitoring/key", "/gradio_api/deep_link"),
        *("/docs", "/redoc", "/openapi.json", "/gradio_api/openapi.json", "/gradio_api/info"),
        *("/gradio_api/runs", "/gradio_api/run-history/buckets", "/gradio_api/user"),
        *("/gradio_api/token", "/gradio_api/login_check", "/gradio_api/dev/reload"),
        *("/gradio_api/vibe-code", "/gradio_api/queue/status", "/gradio_api/startup-events"),
        *("/gradio_api/stream/x/1/2/playlist.m3u8", "/gradio_api/call/who/x", "/gradio_api/mcp"),
        *("/gradio_api/custom_component/x/client/component/index.js", "/robots.txt", "/pwa_icon"),
        *(
            "/gradio_api",
            "/gradio_api/",
            "/nothing",
            "/login/",
            "/svelte/x.js",
            "/files",
            "/files/",
        ),
        *("/login/callback/huggingface", "/gradio_api/heartbeat/", "/gradio_api/heartbeat/a/b"),
    ],
)
def test_what_no_page_needs_is_not_there(open_pages: TestClient, path: str) -> None:
    assert open_pages.get(path).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        *("call/who", "call/v2/who", "run/who", "api/who", "stream/x", "process_recording"),
        *("vibe-edit", "undo-vibe-edit", "vibe-code", "run-history/connect", "profiling/clear"),
    ],
)
def test_nothing_is_called_by_name(open_pages: TestClient, path: str) -> None:
    assert open_pages.post(f"/gradio_api/{path}", json={"data": []}).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        *("/assets/../../routes.py", "/static/../index.html", "/assets/..", "/files/../config"),
        *("//", "//config", "/gradio_api//file=/etc/passwd", "/assets//x.js", "//evil.example/"),
        *("/assets/..\\..\\routes.py", "/assets\\x.js", "/\\evil.example", "/assets/x.js\x00"),
        *("/assets/%2e%2e/x.js", "/assets/%252e%252e/x.js", "/chat/..", "/config\n", "/config?"),
        *("/gradio_api/heartbeat/..", "/gradio_api/queue/data/../../config", "/chat ", "/CHAT", ""),
        *("/gradio_api/file%3d/etc/passwd", "/assets/é.js", "/gradio_api/queue/join;x"),
    ],
)
def test_path_tricks_lead_nowhere(app: Any, store: Store, path: str) -> None:
    assert raw(guard(app, store), path=path)[0] == 404


@pytest.mark.parametrize(
    "target",
    [
        *("/assets/%2e%2e/%2e%2e/routes.py", "/%2e%2e/etc/passwd", "/assets/%5c..%5croutes.py"),
        *("/gradio_api/file%3D/etc/passwd", "/gradio_api/%66ile=/etc/passwd", "/%2fconfig"),
        *("/gradio_api/fil%65=..%2f..%2fetc/passwd", "/monitoring%2Fsummary", "//monitoring"),
    ],
)
def test_encoded_paths_are_read_as_the_server_reads_them(
    open_pages: TestClient, target: str
) -> None:
    assert open_pages.get(HERE + target).status_code == 404


def test_methods_are_those_that_the_pages_use(open_pages: TestClient) -> None:
    for path in (*PAGES, "/config", "/theme.css"):
        for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE"):
            assert open_pages.request(method, path).status_code == 405
    for path in (*WRITES, "/logout"):
        assert open_pages.get(path).status_code == 405
    assert open_pages.get("/logout").headers["allow"] == "POST"


def test_all_that_a_page_loads_is_there(open_pages: TestClient) -> None:
    page = open_pages.get("/").text
    loaded = [path.removeprefix(".") for path in re.findall(r'(?:src|href)="(\.?/[^"]+)"', page)]
    assert any("/assets/index-" in path for path in loaded) and "/manifest.json" in loaded
    more = ("/theme.css?v=1", "/favicon.ico", "/static/js/iframeResizer.contentWindow.min.js")
    for path in (*loaded, *more, "/static/fonts/IBMPlexMono/IBMPlexMono-Regular.woff2"):
        if path != "/":
            assert open_pages.get(path).status_code == 200, path


# ---- d: sizes


def test_bodies_have_a_limit_by_their_announced_length(open_pages: TestClient) -> None:
    for path, size in (("/login", 8 << 10), (WRITES[0], 1 << 20), (WRITES[1], 1 << 20)):
        answer = open_pages.post(path, content=b"x" * (size + 1))
        assert answer.status_code == 413, path
        assert open_pages.post(path, content=b"x" * size).status_code != 413, path


def test_a_body_that_grows_over_its_limit_is_cut_off(app: Any, store: Store) -> None:
    host, chunk = ("host", "localhost"), b" " * 65536
    as_json = (host, ("content-type", "application/json"))
    for path in ("/gradio_api/queue/join", "/gradio_api/component_server", "/gradio_api/reset"):
        assert raw(guard(app, store), "POST", path, as_json, (chunk,) * 17)[0] == 413
        assert raw(guard(app, store), "POST", path, as_json, (chunk,) * 15)[0] in (400, 422)
    closed = guard(app, store, login=True)
    assert raw(closed, "POST", "/login", (host,), (b"name=" + b"x" * 9000,))[0] == 413
    lies = (host, ("content-length", "10"))
    assert raw(guard(app, store), "POST", WRITES[0], lies, (chunk,) * 17)[0] == 413


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "", "9" * 5000, "٣", "+1"])
def test_a_length_is_a_number(app: Any, store: Store, length: str) -> None:
    headers = (("host", "localhost"), ("content-length", length))
    assert raw(guard(app, store), "POST", WRITES[0], headers)[0] in (400, 413)


def test_uploads_may_be_larger_up_to_their_own_limit(app: Any, store: Store) -> None:
    client = browser(guard(app, store, max_body_bytes=3 << 20))
    sizes = {}
    for size in (2 << 20, 4 << 20):
        answer = client.post("/gradio_api/upload", files={"files": ("a.jsonl", b"x" * size)})
        sizes[size] = answer.status_code
    assert sizes == {2 << 20: 200, 4 << 20: 413}
    parts = iter(
        [b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n']
        + [b"x" * 65536] * 64
    )
    as_form = {"content-type": "multipart/form-data; boundary=b"}
    answer = client.post("/gradio_api/upload", content=parts, headers=as_form)  # no length
    assert answer.status_code == 413 and "content-length" not in answer.request.headers


# ---- e: the login


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


def test_a_wrong_name_and_a_wrong_password_are_told_alike(closed: Guard) -> None:
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


# ---- e: how often one may try


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


# ---- f: who votes


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


# ---- g: headers


def digest(script: str) -> str:
    return "sha256-" + b64encode(hashlib.sha256(script.encode()).digest()).decode()


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


# ---- names and addresses


def test_hosts_are_this_machines_names_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "addresses", lambda: ["192.168.1.5", "10.0.0.2"])
    monkeypatch.setattr(address.socket, "gethostname", lambda: "Desk.home.arpa")
    assert address.allowed_hosts(False) == {"localhost", "127.0.0.1", "::1"}
    more = {"192.168.1.5", "10.0.0.2", "desk.home.arpa", "desk.local"}
    assert address.allowed_hosts(True) == address.allowed_hosts(False) | more
    assert all(host_name(f"[{n}]" if ":" in n else n) == n for n in address.allowed_hosts(True))


def test_addresses_are_those_that_others_reach() -> None:
    found = address.addresses()
    assert len(found) == len(set(found))
    for known in found:
        socket.inet_aton(known)
        assert not known.startswith(("127.", "169.254.", "0."))


def test_a_machine_without_a_network_has_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_towards_the_world", lambda: "")
    monkeypatch.setattr(address.psutil, "net_if_addrs", dict)
    assert address.addresses() == []


def test_the_qr_code_has_a_margin_of_light() -> None:
    lines = address.qr_lines("http://192.168.1.5:7860").split("\n")
    assert {len(line) for line in lines} == {len(lines[0])} and len(lines[0]) <= 80
    assert set("".join(lines)) <= set(" ▀▄█")
    assert set(lines[0]) == set(lines[1]) == {"█"}  # four squares above, two in a line of text
    assert all(line.startswith("████") and line.endswith("████") for line in lines[:-1])


def test_a_session_can_be_made_by_the_store_alone(closed: Guard, store: Store) -> None:
    token = log_in(store, "ann")
    assert browser(closed).get("/config", headers={"cookie": f"lorarlhf={token}"}).is_success
