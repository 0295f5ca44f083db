"""The guard in front of the pages: which requests are allowed.

Gradio does not check the Host header, checks the origin of a request only on localhost, and answers
many more paths than its pages use. `Guard` passes on only requests that pass every check. It is
plain ASGI because Starlette's BaseHTTPMiddleware buffers streams.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorarlhf.preferences.store import Store
from lorarlhf.runtime.sockets import host_name
from lorarlhf_ui.login import Login, not_logged_in
from lorarlhf_ui.page_frame import (
    OWNER_PAGES,
    PageFrame,
    Visitor,
    put_visitor,
    refusal_page,
    visitor_in,
)
from lorarlhf_ui.responses import ASSETS, SINGLE_ASSETS, Answer

MOST_UPLOAD_BYTES = 20 * 2**20

SAFE_LAUNCH: dict[str, Any] = {
    "run_history": False,  # otherwise the browser stores all inputs and outputs
    "enable_monitoring": False,
    "ssr_mode": False,
    "footer_links": [],
    "allowed_paths": [],
    "max_file_size": MOST_UPLOAD_BYTES,
    "mcp_server": False,
    "pwa": False,
    "show_error": False,  # a gr.Error is still shown, but no traceback
}
"""The arguments of `gr.mount_gradio_app` that belong to the guard."""

_API = "/gradio_api/"
_READ = re.compile(_API + r"(queue/data|upload_progress|heartbeat/[\w-]+|app_id)|/config", re.A)
_WRITE = re.compile(_API + r"(queue/join|component_server/?|upload|cancel|reset)", re.A)
_FILES = re.compile(r"/files(/[\w.@+-]+)+", re.A)

_SMALL = 2**20
_FORM = 8 * 2**10  # a name and a password

# Gradio derives the page's address from these headers. Behind a proxy it has the root path.
_MISLEADING = (b"x-forwarded-", b"forwarded", b"x-gradio-server")


@dataclass(frozen=True)
class Access:
    """Who may use the pages.

    Args:
        hosts: the host names and addresses that requests may have; lower case, no port.
        login: whether every request needs a login.
        default_rater: the rater if there is no login: an owner.
        max_body_bytes: the largest upload; other bodies may have up to 1 MB.
        project: its name, as the pages show it.
        root: the path under which a proxy serves the pages, such as `/x`, or "".
        proxied: whether a proxy on this machine passes requests on, with the sender's address.
    """

    hosts: frozenset[str]
    login: bool
    default_rater: str
    max_body_bytes: int = MOST_UPLOAD_BYTES
    project: str = ""
    root: str = ""
    proxied: bool = False


def rater_of(request: Any) -> str | None:
    """The rater of a request that passed the guard.

    Args:
        request: Starlette's, as FastAPI passes it to routes and to `auth_dependency` and Gradio to
            the server functions of gr.HTML; or Gradio's own, as events receive it.
    """
    visitor = _visitor(request)
    return None if visitor is None else visitor.name


def is_owner(request: Any) -> bool:
    """Whether the rater of a request, as in `rater_of`, is an owner of the project."""
    visitor = _visitor(request)
    return visitor is not None and visitor.owner


def _visitor(request: Any) -> Visitor | None:
    inner = request if isinstance(request, HTTPConnection) else getattr(request, "request", None)
    return visitor_in(inner.scope) if isinstance(inner, HTTPConnection) else None


class Guard:
    """An ASGI app that checks every request before it passes it on to the pages.

    Args:
        app: the FastAPI app that Gradio is mounted on.
        store: the raters and their logins.
        access: who may use the pages.
        pages: the paths of all pages; a login leads to the first one.
    """

    def __init__(
        self, app: ASGIApp, store: Store, access: Access, pages: Collection[str] = ("/",)
    ) -> None:
        self._app, self._access, self._pages = app, access, tuple(pages)
        self._login = Login(store, self._pages, access.root, access.proxied)
        self._frame = PageFrame(
            access.project, access.root, access.login, self._pages, str(store.path.resolve())
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":  # no page has one
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            scope = self._below_root(scope)
            frame = self._frame if self._kind(scope["path"]) == "page" else None
            await self._http(scope, receive, Answer(scope, send, frame))

    def _below_root(self, scope: Scope) -> Scope:
        """The request without the root path, which some proxies pass on and others do not."""
        root, path = self._access.root, scope["path"]
        if not root or not path.startswith(f"{root}/"):
            return scope
        raw = (scope.get("raw_path") or path.encode()).removeprefix(root.encode())
        return {**scope, "path": path.removeprefix(root), "raw_path": raw}

    async def _http(self, scope: Scope, receive: Receive, send: Answer) -> None:
        refused = self._refusal(Request(scope))
        if refused is None:
            body = _Body(receive, send, self._most_bytes(scope["path"]))
            refused = await body.read_by(self._inside, scope)
        if refused is not None:
            await refused(scope, receive, send)

    async def _inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that passed the checks."""
        request = Request(scope, receive)
        if self._kind(scope["path"]) == "login":
            answer: Response | None = await self._at_login(request)
        else:
            answer = await self._who(request)
        await (answer or self._app)(scope, receive, send)

    async def _at_login(self, request: Request) -> Response:
        if not self._access.login:
            return RedirectResponse(self._access.root + self._pages[0], 303)
        return await self._login.answer(request)

    async def _who(self, request: Request) -> Response | None:
        """Set the visitor of the request; returns a refusal if a login or a role is missing."""
        scope, path = request.scope, request.scope["path"]
        visitor: Visitor | None = Visitor(self._access.default_rater, owner=True)
        is_page = self._kind(path) == "page"
        if self._access.login:
            visitor = await self._login.visitor(request)
            # Browsers request the manifest without cookies; it holds the title and an icon.
            if visitor is None and path != "/manifest.json":
                return self._login.elsewhere(path) if is_page else not_logged_in()
        put_visitor(scope, visitor)
        if path in OWNER_PAGES and not (visitor and visitor.owner):
            return HTMLResponse(refusal_page(path), 403)
        dropped = _MISLEADING if not is_page else (*_MISLEADING, b"accept-encoding")
        scope["headers"] = [h for h in scope["headers"] if not h[0].lower().startswith(dropped)]
        return None

    # ---- checks

    def _refusal(self, request: Request) -> Response | None:
        checks = (self._host, self._site, self._path, self._size)
        return next((answer for check in checks if (answer := check(request))), None)

    def _host(self, request: Request) -> Response | None:
        """Only known host names; otherwise another site could use its own (DNS rebinding)."""
        hosts = request.headers.getlist("host")
        if len(hosts) == 1 and host_name(hosts[0]) in self._access.hosts:
            return None
        return PlainTextResponse(
            "These pages are not served under this name. Use the address that the terminal shows.",
            421,
        )

    def _site(self, request: Request) -> Response | None:
        """Other sites may link to the pages, and nothing else."""
        origins = request.headers.getlist("origin")
        fetch_site = request.headers.get("sec-fetch-site", "none")
        kind = self._kind(request.scope["path"])
        linked = request.method in ("GET", "HEAD") and kind in ("page", "login")
        ours = all(_same(origin, request.headers["host"]) for origin in origins)
        # On plain http beyond localhost there is no Sec-Fetch-Site; Origin and cookie are checked.
        if ours and (linked or fetch_site in ("same-origin", "none")):
            return None
        return PlainTextResponse(
            "Refused: this request comes from another site. A proxy has to pass the Host header on "
            "as it came.",
            403,
        )

    def _path(self, request: Request) -> Response | None:
        path = request.scope["path"]
        kind = self._kind(path)
        if path and path == self._access.root:  # without the slash, a page finds no files
            return RedirectResponse(f"{path}/", 308)
        if not kind:
            return PlainTextResponse("There is nothing here.", 404)
        allowed = _METHODS[kind] if path != "/logout" else ("POST",)
        if request.method in allowed:
            return None
        return PlainTextResponse("Not this way.", 405, {"Allow": ", ".join(allowed)})

    def _size(self, request: Request) -> Response | None:
        length = request.headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return PlainTextResponse("The length is no number.", 400)
        # Twelve digits exceed every limit, and int() is slow for very long numbers.
        if len(length) <= 12 and int(length) <= self._most_bytes(request.scope["path"]):
            return None
        return _too_large()

    def _kind(self, path: str) -> str:
        """The kind of a path, which is decoded already; empty if the pages do not use it."""
        if ".." in path:  # other tricks match none of the patterns
            return ""
        if path in self._pages:
            return "page"
        if path in ("/login", "/logout"):
            return "login"
        if path in SINGLE_ASSETS or ASSETS.fullmatch(path):
            return "asset"
        patterns = (("read", _READ), ("write", _WRITE), ("file", _FILES))
        return next((kind for kind, pattern in patterns if pattern.fullmatch(path)), "")

    def _most_bytes(self, path: str) -> int:
        if path == "/gradio_api/upload":
            return self._access.max_body_bytes
        return _FORM if self._kind(path) == "login" else min(_SMALL, self._access.max_body_bytes)


_METHODS = {
    **dict.fromkeys(("page", "asset", "read", "file"), ("GET", "HEAD")),
    "write": ("POST",),
    "login": ("GET", "HEAD", "POST"),
}


# ---- requests


def _same(origin: str, host: str) -> bool:
    scheme, _, name = origin.lower().partition("://")
    return scheme in ("http", "https") and name == host.lower()


def _too_large() -> Response:
    return PlainTextResponse("This is too large.", 413)


class _Body:
    """A request's body up to a limit. It is counted, since Content-Length may be wrong."""

    def __init__(self, receive: Receive, send: Answer, limit: int) -> None:
        self._receive, self._send = receive, send
        self._left = limit

    async def read_by(self, app: ASGIApp, scope: Scope) -> Response | None:
        """Let an app answer; returns a refusal if the body exceeded the limit before that."""
        try:
            await app(scope, self._next, self._pass_on)
        except Exception:
            if self._left >= 0:
                raise
        return _too_large() if self._left < 0 and not self._send.started else None

    async def _next(self) -> Message:
        message = await self._receive() if self._left >= 0 else {"type": "http.disconnect"}
        self._left -= len(message.get("body", b""))
        return message if self._left >= 0 else {"type": "http.disconnect"}

    async def _pass_on(self, message: Message) -> None:
        # The app's answer to a truncated body would be misleading.
        if self._left >= 0 or self._send.started:
            await self._send(message)
