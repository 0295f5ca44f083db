"""The fixtures of the browser tests notice what goes wrong on a page, in a real browser."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Without an icon of its own a page asks the server for one, a moment after it was loaded.
ICON = "<link rel='icon' href='data:,'>"
PAGES = {
    "/": "<h1>A page</h1>",
    "/console": "<h1>Loud</h1><script>console.warn('mild'); console.error('it broke')</script>",
    "/throws": "<h1>Throws</h1><script>null.answer</script>",
    "/outside": "<h1>Talks</h1><img src='http://example.invalid/x.png'>",
    "/later": "<button onclick=\"new WebSocket('ws://example.invalid/s')\">Go</button>",
    "/media": "<script>document.write(['dark', 'light'].filter(c => matchMedia("
    "`(prefers-color-scheme: ${c})`).matches), matchMedia('(prefers-reduced-motion)').matches, "
    "innerWidth, localStorage.rater)</script>",
}


class Handler(BaseHTTPRequestHandler):
    """Serves PAGES."""

    def do_GET(self) -> None:
        page = PAGES.get(self.path)
        self.send_response(404 if page is None else 200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(f"{ICON}{page or 'Nothing'}".encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    """The address of a server of small pages."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_quiet_page_has_no_problems(open_page: Any, site: str) -> None:
    page = open_page(f"{site}/")
    assert page.get_by_role("heading").inner_text() == "A page"
    open_page.check()
    assert open_page.problems() == [] and open_page.opened == [page]


@pytest.mark.parametrize(
    "path, problem",
    [
        ("console", "console error: it broke"),
        ("throws", "page error: Cannot read properties of null (reading 'answer')"),
        ("outside", "outside request: http://example.invalid/x.png"),
        ("nowhere", "responded with a status of 404 (Not Found) (http://127.0.0.1:"),
    ],
)
def test_a_problem_fails_the_test_unless_it_is_allowed(
    open_page: Any, site: str, path: str, problem: str
) -> None:
    open_page(f"{site}/{path}")
    with pytest.raises(pytest.fail.Exception) as failure:
        open_page.check()
    assert problem in str(failure.value) and "mild" not in str(failure.value)
    open_page.allow("it broke|Cannot read|example.invalid|Failed to load")
    open_page.check()


def test_a_web_socket_to_the_outside_is_noticed(open_page: Any, site: str) -> None:
    page = open_page(f"{site}/later")
    with page.expect_websocket():
        page.get_by_role("button").click()
    open_page.allow("^console error")
    assert open_page.problems() == ["outside request: ws://example.invalid/s"]
    open_page.allow("^outside request: ws:")


def test_pages_have_the_size_colours_and_storage_that_are_asked_for(
    open_page: Any, site: str
) -> None:
    text = open_page(f"{site}/media", width=390, height=844, dark=True).inner_text("body")
    assert text == "darktrue390undefined"
    stored = {"origin": site, "localStorage": [{"name": "rater", "value": "ann"}]}
    page = open_page(f"{site}/media", storage={"cookies": [], "origins": [stored]})
    assert page.inner_text("body") == "lighttrue1280ann"


WATCHED = """
def test_quiet(open_page):
    open_page("SITE/")

def test_loud(open_page):
    open_page("SITE/console")

def test_talks(open_page):
    open_page("SITE/outside")

def test_wrong(open_page):
    open_page("SITE/console")
    assert 1 == 2
"""


def test_tests_fail_by_what_their_pages_did_and_leave_pictures(site: str, tmp_path: Path) -> None:
    file = tmp_path / "test_watched.py"
    file.write_text(WATCHED.replace("SITE", site))
    words = ["-m", "pytest", "-q", "-p", "tests.browser.conftest", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, *words, "-c", os.devnull, f"--rootdir={tmp_path}", str(file)],
        cwd=ROOT,
        env={**os.environ, "LORARLHF_SCREENSHOTS": str(tmp_path / "pictures")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "3 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("console error: it broke") >= 2  # test_loud, and told by test_wrong
    assert "outside request: http://example.invalid/x.png" in done.stdout
    assert [path.name for path in sorted((tmp_path / "pictures").iterdir())] == [
        f"test_watched.py_test_{name}-1.png" for name in ("loud", "talks", "wrong")
    ]


SERVER = """
import os, sys, time
from http.server import HTTPServer, SimpleHTTPRequestHandler
folder, words = sys.argv[1], sys.argv[2:]
if "--broken" in words:
    sys.exit("this folder is no project")
os.chdir(folder)
print("hub offline:", os.environ["HF_HUB_OFFLINE"], words[3:], flush=True)
server = HTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), SimpleHTTPRequestHandler)
server.serve_forever()
"""


def test_a_server_is_started_killed_and_started_again(
    serve: Any, open_page: Any, tmp_path: Path
) -> None:
    (tmp_path / "index.html").write_text(f"{ICON}<h1>A project</h1>")
    program = tmp_path / "server.py"
    program.write_text(SERVER)
    command = (sys.executable, str(program))
    server = serve(tmp_path, "--no-model", command=command)
    assert server.answers() and "hub offline: 1 ['--no-model']" in server.said()
    page = open_page(server.url)
    url, first = server.url, server.process
    server.kill()
    assert first.returncode == -9 and not server.answers()
    server.restart()
    assert server.url == url and server.process.pid != first.pid
    page.reload()
    assert page.get_by_role("heading").inner_text() == "A project"


def test_a_server_that_does_not_start_says_why(serve: Any, tmp_path: Path) -> None:
    program = tmp_path / "server.py"
    program.write_text(SERVER)
    with pytest.raises(pytest.fail.Exception) as failure:
        serve(tmp_path, "--broken", command=(sys.executable, str(program)))
    text = str(failure.value)
    assert "ended with status 1 before it answered" in text and "this folder is no project" in text
