"""Fixtures of the browser tests: a real Chromium, watched pages, the real command.

A page is watched from its first request to the end of the test: an error on its console, an
exception in its scripts, or a request to any other machine fails the test. LORARLHF_SCREENSHOTS
names a folder for pictures of the pages of a failed test.
"""

import contextlib
import os
import re
from collections.abc import Generator, Iterator
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
from playwright.sync_api import Error as PlaywrightError

from tests.browser import chromium
from tests.browser.projects import ServedProject, running
from tests.browser.servers import Servers

SCREENSHOTS = "LORARLHF_SCREENSHOTS"
ABORTED = "console error: AbortError"
"""What Gradio's client says when a page is left or reloaded while an answer streams."""
NETWORK = ("http", "https", "ws", "wss")
# Playwright's default of five seconds is too short: the model and the tests share the same cores,
# and an answer may take minutes.
WAIT_MS = 180_000
expect.set_options(timeout=WAIT_MS)


# ---- pages


class Pages:
    """Opens pages and records what goes wrong on them. The fixture `open_page` is one.

    Attributes:
        opened: the pages of this test, in order.
    """

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.opened: list[Page] = []
        self._contexts: list[BrowserContext] = []
        self._hosts: set[str | None] = set()
        self._noted: list[str] = []
        self._allowed = [ABORTED]

    def __call__(
        self,
        url: str,
        width: int = 1280,
        height: int = 800,
        dark: bool = False,
        storage: Any = None,
        **options: Any,
    ) -> Page:
        """Open an address in a new context, as another person on another computer would.

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
        """Note what goes wrong on every page of the context, including those that a page opens."""
        context.on("console", self._console)
        context.on("weberror", lambda problem: self._note(f"page error: {problem.error}"))
        context.on("request", lambda request: self._request(request.url))
        context.on("page", self._new_page)

    def _new_page(self, page: Page) -> None:
        self.opened.append(page)
        page.on("websocket", lambda connection: self._request(connection.url))

    def _console(self, message: ConsoleMessage) -> None:
        """Note an error, with the address if the text does not name what failed to load."""
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
        """Ignore problems that match this regular expression, earlier and later ones.

        The texts begin with `console error: `, `page error: ` or `outside request: `.
        """
        self._allowed.append(pattern)

    def problems(self) -> list[str]:
        """The problems noted so far that are not allowed, each once."""
        return [
            text
            for text in dict.fromkeys(self._noted)
            if not any(re.search(pattern, text) for pattern in self._allowed)
        ]

    def check(self) -> None:
        """Fail the test if a page had a problem."""
        for page in self.opened:
            if not page.is_closed():  # after its answer, all earlier messages have arrived
                with contextlib.suppress(PlaywrightError):
                    page.evaluate("1")
        found = self.problems()
        if found:
            pytest.fail("the pages had problems:\n  " + "\n  ".join(found), pytrace=False)

    def save_pictures(self, folder: Path, name: str) -> None:
        """Save a picture of each open page; a page that cannot be drawn is left out."""
        folder.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^\w.-]+", "_", name)
        for number, page in enumerate(self.opened, 1):
            with contextlib.suppress(PlaywrightError):
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
    """Check the pages as part of the test itself; a failed test shows logs and problems."""
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
    """Put the pages' problems into the report; save pictures if a folder is named."""
    found = pages.problems()
    if found:
        item.add_report_section("call", "pages", "\n".join(found))
    folder = os.environ.get(SCREENSHOTS)
    if folder:
        pages.save_pictures(Path(folder), item.nodeid.removeprefix("tests/browser/"))


# ---- projects


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProject]:
    """A project without a model, and its server, for all tests of a file."""
    with running(tmp_path_factory) as project:
        yield project


@pytest.fixture
def project(shared: ServedProject) -> ServedProject:
    """The file's project, as if nobody had been there."""
    shared.forget()
    return shared
