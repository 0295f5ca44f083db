"""What the tests of the guard share: a real Gradio app behind it, and browsers that ask it.

A plugin, as tests/pages.py. PYTEST_DONT_REWRITE
"""

import hashlib
import os
import shutil
from base64 import b64encode
from pathlib import Path
from typing import Any

import anyio
import gradio as gr
import pytest
from fastapi import FastAPI, Request
from starlette.testclient import TestClient

from lorarlhf.preferences.accounts import set_password
from lorarlhf.preferences.store import Store
from lorarlhf_ui.security import SAFE_LAUNCH, Access, Guard, rater_of

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

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


def digest(script: str) -> str:
    return "sha256-" + b64encode(hashlib.sha256(script.encode()).digest()).decode()
