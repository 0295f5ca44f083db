"""What the browser tests share: a real Chromium, pages that are watched, the real command.

A page is watched from its first request to the end of the test: an error on its console, an
exception in its scripts, or a request to any other machine fails the test. LORARLHF_SCREENSHOTS
names a folder for pictures of the pages of a failed test.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    expect,
    sync_playwright,
)

from tests.browser import chromium

COMMAND = (sys.executable, "-m", "lorarlhf.cli", "ui")
SCREENSHOTS = "LORARLHF_SCREENSHOTS"
NETWORK = ("http", "https", "ws", "wss")
# Gradio takes some seconds to import, and many more when every core is busy.
START_SECONDS = 300
END_SECONDS = 10
LOG_SHOWN = 6000
# Playwright's own five seconds are short next to a test process that uses the same cores, and to a
# model that writes with what they leave it: what is waited for may take minutes.
WAIT_MS = 180_000
expect.set_options(timeout=WAIT_MS)


# ---- pages


class Pages:
    """Opens pages and keeps what they should not have done. The fixture `open_page` is one.

    Attributes:
        opened: the pages of this test, in order.
    """

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.opened: list[Page] = []
        self._contexts: list[BrowserContext] = []
        self._hosts: set[str | None] = set()
        self._noted: list[str] = []
        self._allowed: list[str] = []

    def __call__(
        self,
        url: str,
        width: int = 1280,
        height: int = 800,
        dark: bool = False,
        storage: Any = None,
        **options: Any,
    ) -> Page:
        """Open an address in a context of its own: as another person on another computer.

        Args:
            url: the address; its host is the only one that pages may talk to.
            width: of the window, in pixels.
            height: of the window, in pixels.
            dark: whether the person prefers dark colours.
            storage: cookies and localStorage to begin with: what `page.context.storage_state()`
                gave, or a file of it.
            **options: of playwright's `new_context`, as `has_touch=True`.
        """
        self._hosts.add(urlsplit(url).hostname)
        context = self.browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            storage_state=storage,
            **options,
        )
        context.set_default_timeout(WAIT_MS)
        self._contexts.append(context)
        self._watch(context)
        page = context.new_page()
        page.goto(url)
        return page

    def _watch(self, context: BrowserContext) -> None:
        """Note what goes wrong on every page of the context, those that a page opens too."""
        context.on("console", self._console)
        context.on("weberror", lambda problem: self._note(f"page error: {problem.error}"))
        context.on("request", lambda request: self._request(request.url))
        context.on("page", self._new_page)

    def _new_page(self, page: Page) -> None:
        self.opened.append(page)
        page.on("websocket", lambda connection: self._request(connection.url))

    def _console(self, message: ConsoleMessage) -> None:
        """Note an error, with its address where the text does not say what failed to load."""
        if message.type == "error":
            where = message.location.get("url", "")
            place = f" ({where})" if message.text.startswith("Failed to load") else ""
            self._note(f"console error: {message.text}{place}")

    def _request(self, url: str) -> None:
        """Note a request to another host; data:, blob: and about: stay inside the browser."""
        parts = urlsplit(url)
        if parts.scheme in NETWORK and parts.hostname not in self._hosts:
            self._note(f"outside request: {url}")

    def _note(self, text: str) -> None:
        self._noted.append(text)

    def allow(self, pattern: str) -> None:
        """Let pass what matches this regular expression, whether it happened before or comes.

        The texts begin with `console error: `, `page error: ` or `outside request: `.
        """
        self._allowed.append(pattern)

    def problems(self) -> list[str]:
        """What was noted until now and is not allowed, each once."""
        return [
            text
            for text in dict.fromkeys(self._noted)
            if not any(re.search(pattern, text) for pattern in self._allowed)
        ]

    def check(self) -> None:
        """Fail when a page did what it should not have done."""
        for page in self.opened:
            if not page.is_closed():  # an answer of the page: what it said before has arrived
                with contextlib.suppress(Exception):
                    page.evaluate("1")
        found = self.problems()
        if found:
            pytest.fail("the pages had problems:\n  " + "\n  ".join(found), pytrace=False)

    def save_pictures(self, folder: Path, name: str) -> None:
        """A picture of each page that is still open; a page that cannot be drawn is left out."""
        folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^\w.-]+", "_", name)
        for number, page in enumerate(self.opened, 1):
            with contextlib.suppress(Exception):
                page.screenshot(path=folder / f"{name}-{number}.png", timeout=5000)

    def close(self) -> None:
        for context in self._contexts:
            context.close()


# Not one for the session: while playwright's loop runs in this thread, `asyncio.run` refuses to
# work, and other files' tests run in this process too. A start takes half a second.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium without a window, for the tests of one file."""
    path = chromium.find()
    if path is None:
        pytest.fail("No Chromium that starts was found; `make test` provides one.", pytrace=False)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=chromium.FLAGS)
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser, serve: Any) -> Iterator[Pages]:
    """`open_page(url, width=1280, height=800, dark=False, storage=None)`: a watched page.

    It asks for `serve` so that the pages are closed before their servers end.
    """
    pages = Pages(browser)
    yield pages
    pages.close()


# ---- servers


class Server:
    """A running `lorarlhf ui` in a process group of its own.

    Attributes:
        url: its address, without a slash at the end.
        process: the command's process.
        log: the file with all that it said.
    """

    def __init__(self, command: Sequence[str], port: int, log: Path, env: dict[str, str]) -> None:
        self.command, self.log = list(command), log
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", **env}
        self.url = f"http://127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        """Start the command and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        self._gone = False
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def _wait(self) -> None:
        until = time.monotonic() + START_SECONDS
        while not self.answers():
            if self.process.poll() is not None:
                self._fail(f"ended with status {self.process.returncode} before it answered")
            if time.monotonic() > until:
                self._fail(f"did not answer at {self.url} within {START_SECONDS} seconds")
            time.sleep(0.05)

    def _fail(self, what: str) -> None:
        words = " ".join(self.command)
        pytest.fail(f"`{words}` {what}. It said:\n{self.said()}", pytrace=False)

    def answers(self) -> bool:
        """Whether the process lives and its port speaks HTTP; a refusal is an answer too."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            opener.open(self.url, timeout=10).close()
        except urllib.error.HTTPError:
            pass
        except OSError:
            return False
        return self.process.poll() is None

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-LOG_SHOWN:]

    def kill(self) -> None:
        """SIGKILL to the whole group, as when the machine goes down."""
        self._signal(signal.SIGKILL)
        self.process.wait()
        self._gone = True

    def end(self) -> None:
        """End it politely; what is left of its group afterwards is killed."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        self.kill()

    def restart(self) -> None:
        """Start it again on the same port, after `kill()` or while it runs."""
        self.end()
        self.start()

    def _signal(self, number: int) -> None:
        """To the whole group, once: the number of a group that is gone may be another's."""
        if not self._gone:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Servers:
    """Starts servers and remembers them. The fixture `serve` is one."""

    def __init__(self, make_folder: Callable[[], Path]) -> None:
        self.make_folder = make_folder
        self.started: list[Server] = []

    def __call__(
        self,
        folder: str | Path,
        *words: str,
        env: dict[str, str] | None = None,
        command: Sequence[str] = COMMAND,
    ) -> Server:
        """Start `lorarlhf ui FOLDER --no-browser --port N` with more words, and wait for it.

        Args:
            folder: the project.
            *words: more of the command line, as "--no-model".
            env: environment variables on top of the test's own.
            command: what stands before the folder.
        """
        port = free_port()
        line = [*command, str(folder), "--no-browser", "--port", str(port), *words]
        server = Server(line, port, self.make_folder() / "log.txt", env or {})
        self.started.append(server)
        return server


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """`serve(folder, *words, env=None)`: the real command, ended after the test."""
    servers = Servers(lambda: tmp_path_factory.mktemp("server"))
    yield servers
    for server in servers.started:
        server.end()


# ---- the end of a test


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Check the pages as part of the test itself, and tell what a failed one leaves to see."""
    pages, servers = (pyfuncitem.funcargs.get(name) for name in ("open_page", "serve"))
    try:
        result = yield
        if isinstance(pages, Pages):
            pages.check()
    except BaseException:
        if isinstance(pages, Pages):
            _show_pages(pyfuncitem, pages)
        for server in servers.started if isinstance(servers, Servers) else []:
            pyfuncitem.add_report_section("call", server.url, server.said())
        raise
    return result


def _show_pages(item: pytest.Item, pages: Pages) -> None:
    """What the pages did, in the report; what they looked like, where a folder is named."""
    found = pages.problems()
    if found:
        item.add_report_section("call", "pages", "\n".join(found))
    folder = os.environ.get(SCREENSHOTS)
    if folder:
        pages.save_pictures(Path(folder), item.nodeid.removeprefix("tests/browser/"))
