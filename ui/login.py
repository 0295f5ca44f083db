"""Logging in: the login page, the session cookie, and a limit on wrong passwords."""

import base64
import hashlib
import html
import ipaddress
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from urllib.parse import parse_qs, quote

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from lorarlhf.preferences.accounts import (
    SESSION_SECONDS,
    is_owner,
    log_in,
    log_out,
    logged_in,
    password_fits,
)
from lorarlhf.preferences.records import spellings
from lorarlhf.preferences.store import Store
from lorarlhf_ui.page_frame import Visitor

COOKIE = "lorarlhf"
MOST_FAILURES = 5
WINDOW_SECONDS = 300.0
_MOST_KEYS = 4096  # remembered addresses and names
_MOST_HASHES = 2  # at the same time; each takes 32 MB and a core
_MOST_WAITING = 20
_LONGEST_NAME = 200

WRONG = "This name and password do not fit together."


class Attempts:
    """Failed logins of the last five minutes, by address and by name; kept in memory.

    Each address has five attempts, and each name has five attempts from all addresses together. An
    address without a failure of its own always has one attempt, so a stranger who guesses at a name
    can't block the rater who knows the password. Refused attempts do not count, so every limit
    ends after five minutes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[tuple[str, str], deque[float]] = OrderedDict()

    def begin(self, address: str, name: str) -> int:
        """Seconds to wait; 0 allows an attempt, which counts as failed until `succeeded`."""
        here, there = ("address", network(address)), ("name", name[:_LONGEST_NAME])
        own, others = self._recent(here), self._recent(there)
        if len(own) == MOST_FAILURES:
            return self._left(own[0])
        if own and len(others) == MOST_FAILURES:
            return min(self._left(own[-1]), self._left(others[0]))
        for key in (here, there):
            self._add(key)
        return 0

    def succeeded(self, address: str, name: str) -> None:
        """The last attempt was successful and does not count."""
        for key in (("address", network(address)), ("name", name[:_LONGEST_NAME])):
            if times := self._failures.get(key):
                times.pop()
                if not times:
                    del self._failures[key]

    def __len__(self) -> int:
        return len(self._failures)

    def _recent(self, key: tuple[str, str]) -> list[float]:
        since = self._clock() - WINDOW_SECONDS
        return [then for then in self._failures.get(key, ()) if then > since]

    def _add(self, key: tuple[str, str]) -> None:
        # Five times are enough: an attempt is allowed again when the oldest of them is too old.
        self._failures.setdefault(key, deque(maxlen=MOST_FAILURES)).append(self._clock())
        self._failures.move_to_end(key)
        if len(self._failures) > _MOST_KEYS:
            self._failures.popitem(last=False)

    def _left(self, since: float) -> int:
        return max(1, math.ceil(since + WINDOW_SECONDS - self._clock()))


def network(address: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 network of one IPv6 host."""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(known, ipaddress.IPv6Address):
        mapped = known.ipv4_mapped
        return str(mapped or ipaddress.ip_network((known, 64), strict=False))
    return str(known)


class Login:
    """The routes /login and /logout, and the rater of a request.

    Args:
        store: the raters with their passwords and sessions.
        pages: the paths that a login may lead to; the first is the default.
        root: the path under which a proxy serves the pages, or "".
        proxied: whether a proxy on this machine names the sender of a request.
    """

    def __init__(
        self, store: Store, pages: Collection[str], root: str = "", proxied: bool = False
    ) -> None:
        self.attempts = Attempts()
        self._store, self._pages = store, tuple(pages)
        self._root, self._proxied = root, proxied
        self._hashing = anyio.CapacityLimiter(_MOST_HASHES)

    async def visitor(self, request: Request) -> Visitor | None:
        """Who is logged in, according to the store; the cookie holds only a token."""
        token = request.cookies.get(COOKIE, "")
        if not token:
            return None
        # In a thread, because it may have to wait for the store.
        return await anyio.to_thread.run_sync(self._visitor, token)

    def _visitor(self, token: str) -> Visitor | None:
        name = logged_in(self._store, token)
        return None if name is None else Visitor(name, is_owner(self._store, name))

    def elsewhere(self, page: str) -> Response:
        """Redirect a page's visitor to the login, which leads back to the page."""
        to = "" if page == self._pages[0] else f"?to={quote(page)}"
        return RedirectResponse(f"{self._root}/login{to}", 303)

    async def answer(self, request: Request) -> Response:
        """The response to /login and /logout."""
        if request.scope["path"] == "/logout":
            return await self._out(request)
        if request.method == "POST":
            return await self._in(request)
        to = self._known(request.query_params.get("to", ""))
        if await self.visitor(request) is not None:
            return RedirectResponse(self._root + to, 303)
        return self._page(to=to)

    async def _in(self, request: Request) -> Response:
        form = parse_qs((await request.body()).decode(errors="replace"))
        name, password = (form.get(key, [""])[0] for key in ("name", "password"))
        name, to = spellings(name.strip())[0], self._known(form.get("to", [""])[0])
        address = self._address(request)
        if self._hashing.statistics().tasks_waiting >= _MOST_WAITING:
            return self._wait(5, name, to)
        if seconds := self.attempts.begin(address, name):
            return self._wait(seconds, name, to)
        if not await self._fits(name, password):
            return self._page(WRONG, name, to, 401)
        self.attempts.succeeded(address, name)
        await self._end(request)
        token = await anyio.to_thread.run_sync(log_in, self._store, name)
        return self._keep(RedirectResponse(self._root + to, 303), token, SESSION_SECONDS)

    def _address(self, request: Request) -> str:
        """Where a request came from.

        Otherwise all who come through a proxy would share five attempts. The last address is the
        one that the proxy added; those before it are whatever the sender wrote.
        """
        peer = request.client.host if request.client else ""
        senders = request.headers.getlist("x-forwarded-for")
        if self._proxied and senders and peer in ("127.0.0.1", "::1"):
            return senders[-1].rpartition(",")[2].strip()
        return peer

    async def _fits(self, name: str, password: str) -> bool:
        args = (self._store, name, password)
        return await anyio.to_thread.run_sync(password_fits, *args, limiter=self._hashing)

    async def _out(self, request: Request) -> Response:
        await self._end(request)
        return self._keep(RedirectResponse(f"{self._root}/login", 303), "", 0)

    async def _end(self, request: Request) -> None:
        """End the session of the browser's cookie."""
        if token := request.cookies.get(COOKIE, ""):
            await anyio.to_thread.run_sync(log_out, self._store, token)

    def _known(self, page: str) -> str:
        return page if page in self._pages else self._pages[0]

    def _keep(self, response: Response, token: str, seconds: int) -> Response:
        # Not `secure`, because the pages use plain http on a LAN.
        response.set_cookie(
            COOKIE,
            token,
            max_age=seconds,
            path=self._root or "/",
            httponly=True,
            samesite="strict",
        )
        return response

    def _wait(self, seconds: int, name: str, to: str) -> Response:
        minutes = -(-seconds // 60)
        span = "a few seconds" if seconds < 10 else f"{minutes} minute{'s' * (minutes > 1)}"
        response = self._page(f"Too many tries. Try again in {span}.", name, to, 429)
        response.headers["Retry-After"] = str(seconds)
        return response

    def _page(
        self, problem: str = "", name: str = "", to: str = "/", status: int = 200
    ) -> Response:
        said = f'<p class="problem" id="problem" role="alert">{html.escape(problem)}</p>'
        text = _PAGE.format(
            style=_STYLE,
            problem=said if problem else "",
            name=html.escape(name[:_LONGEST_NAME]),
            described=' aria-describedby="problem"' if problem else "",
            to=html.escape(to),
            action=f"{self._root}/login",
        )
        return HTMLResponse(text, status, {"Content-Security-Policy": _CSP})


def not_logged_in() -> Response:
    """The response to a request of a page whose session has ended."""
    return PlainTextResponse("You are not logged in any more. Reload the page.", 401)


_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #fafaf8; --card: #fff; --line: #8a8f98;
  --go: #2f5d8a; --on-go: #fff; --bad: #a1260d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e6; --paper: #17181a; --card: #202225;
  --line: #7d838c; --go: #9cc3ea; --on-go: #10202f; --bad: #ffb4a2; } }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1rem;
  background: var(--paper); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
main { width: 100%; max-width: 22rem; padding: 1.5rem; background: var(--card);
  border-radius: .75rem; }
h1 { margin: 0 0 1rem; font-size: 1.375rem; line-height: 1.25; }
label { display: block; margin: 0 0 .25rem; }
input, button { width: 100%; min-height: 2.75rem; margin: 0 0 1rem; padding: .5rem .75rem;
  font: inherit; color: inherit; background: transparent; border: 1px solid var(--line);
  border-radius: .5rem; }
button { margin: .25rem 0 0; background: var(--go); color: var(--on-go); border-color: var(--go);
  font-weight: 600; cursor: pointer; }
:focus-visible { outline: 3px solid var(--go); outline-offset: 2px; }
.problem { margin: 0 0 1rem; color: var(--bad); }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Log in</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><style>{style}</style></head>
<body><main><h1>Log in</h1>{problem}
<form method="post" action="{action}">
<label for="name">Name</label>
<input id="name" name="name" value="{name}" required maxlength="200" autocomplete="username"
 autocapitalize="none" spellcheck="false"{described}>
<label for="password">Password</label>
<input id="password" name="password" type="password" required autocomplete="current-password"
{described}>
<input type="hidden" name="to" value="{to}">
<button type="submit">Log in</button>
</form></main></body></html>
"""

_CSP = (
    "default-src 'none'; img-src data:; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    + "'"
)
