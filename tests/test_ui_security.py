"""The guard before the rating pages: hosts, other sites, paths and sizes."""

import re
from typing import Any

import anyio
import pytest
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from lorarlhf.preferences.store import Store
from lorarlhf_ui.security import Guard
from tests.guarded import HERE, PAGES, READS, WRITES, browser, guard, raw

pytest_plugins = ("tests.guarded",)


# ---- the Host header


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


# ---- requests from other sites


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


# ---- paths


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


# ---- sizes


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
