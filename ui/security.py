"""The guard in front of the pages: which requests are allowed.

Gradio does not check the Host header, checks the origin of a request only on localhost, and answers
many more paths than its pages use. `Guard` passes on only requests that pass every check. It is
plain ASGI because Starlette's BaseHTTPMiddleware buffers streams.
"""

import base64
import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorarlhf.preferences.store import Store
from lorarlhf_ui.login import Login, not_logged_in

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

_RATER = "lorarlhf_rater"
_API = "/gradio_api/"
_READ = re.compile(_API + r"(queue/data|upload_progress|heartbeat/[\w-]+|app_id)|/config", re.A)
_WRITE = re.compile(_API + r"(queue/join|component_server/?|upload|cancel|reset)", re.A)
_ASSETS = re.compile(r"/(assets|static)(/[\w.@+-]+)+", re.A)
_SINGLE_ASSETS = ("/theme.css", "/favicon.ico", "/manifest.json")
_FILES = re.compile(r"/files(/[\w.@+-]+)+", re.A)
_NAME = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@?#\s]+)(:\d{1,5})?")

_SMALL = 2**20
_FORM = 8 * 2**10  # a name and a password

# Gradio derives the page's address from these headers, and there is no proxy that could set them.
_MISLEADING = (b"x-forwarded-", b"forwarded", b"x-gradio-server")

# What a page may load, send and run: nothing from or to another host, whatever a model wrote.
# Gradio needs its own files, inline styles, data: for fonts and plots, and `eval` for gr.HTML. An
# inline script needs a known hash, so an `onerror=` that Gradio's cleaning misses does not run.
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-eval'{hashes}; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
    "connect-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'self'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    # With `no-referrer` a form's Origin would be `null`, and the guard would refuse the login.
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "X-DNS-Prefetch-Control": "off",
}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_INLINE = re.compile(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.S)
_CONFIG = "window.gradio_config = "


@dataclass(frozen=True)
class Access:
    """Who may use the pages.

    Args:
        hosts: the host names and addresses that requests may have; lower case, no port.
        login: whether every request needs a login.
        default_rater: the rater if there is no login.
        max_body_bytes: the largest upload; other bodies may have up to 1 MB.
    """

    hosts: frozenset[str]
    login: bool
    default_rater: str
    max_body_bytes: int = MOST_UPLOAD_BYTES


def rater_of(request: Any) -> str | None:
    """The rater of a request that passed the guard.

    Args:
        request: Starlette's, as FastAPI passes it to routes and to `auth_dependency` and Gradio to
            the server functions of gr.HTML; or Gradio's own, as events receive it.
    """
    if isinstance(request, HTTPConnection):
        return request.scope.get(_RATER)
    return getattr(request, "username", None)  # what auth_dependency returned


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
        self._login = Login(store, self._pages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":  # no page has one
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            is_page = self._kind(scope["path"]) == "page"
            await self._http(scope, receive, _Answer(scope, send, is_page))

    async def _http(self, scope: Scope, receive: Receive, send: "_Answer") -> None:
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
            return RedirectResponse(self._pages[0], 303)
        return await self._login.answer(request)

    async def _who(self, request: Request) -> Response | None:
        """Set the rater of the request; returns a refusal if a login is required and missing."""
        scope, path = request.scope, request.scope["path"]
        rater: str | None = self._access.default_rater
        is_page = self._kind(path) == "page"
        if self._access.login:
            rater = await self._login.rater(request)
            # Browsers request the manifest without cookies; it holds the title and an icon.
            if rater is None and path != "/manifest.json":
                return self._login.elsewhere(path) if is_page else not_logged_in()
        scope[_RATER] = rater
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
        return PlainTextResponse("Refused: this request comes from another site.", 403)

    def _path(self, request: Request) -> Response | None:
        path = request.scope["path"]
        kind = self._kind(path)
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
        if path in _SINGLE_ASSETS or _ASSETS.fullmatch(path):
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


def host_name(header: str) -> str:
    """The name in a Host header: lower case, without port, brackets and a final dot."""
    found = _NAME.fullmatch(header.lower())
    return found[1].strip("[]").removesuffix(".") if found else ""


def _same(origin: str, host: str) -> bool:
    scheme, _, name = origin.lower().partition("://")
    return scheme in ("http", "https") and name == host.lower()


def _too_large() -> Response:
    return PlainTextResponse("This is too large.", 413)


class _Body:
    """A request's body up to a limit. It is counted, since Content-Length may be wrong."""

    def __init__(self, receive: Receive, send: "_Answer", limit: int) -> None:
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


# ---- answers


class _Answer:
    """Sends a response on, with the headers that every response gets.

    A page is buffered until it is complete, because its policy contains the hashes of its scripts.
    """

    def __init__(self, scope: Scope, send: Send, is_page: bool) -> None:
        self._path, self._send, self._is_page = scope["path"], send, is_page
        self._loopback = host_name(Headers(scope=scope).get("host", "")) in _LOOPBACK
        self._start: Message | None = None
        self._page = bytearray()
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = self._marked(message)
            if self._is_page and headers.get("content-type", "").startswith("text/html"):
                self._start = message
                return
        elif self._start is not None and message["type"] == "http.response.body":
            self._page += message.get("body", b"")
            if message.get("more_body"):
                return
            message = {"type": "http.response.body", "body": bytes(self._page)}
            await self._send(self._with_hashes(self._start))
        await self._send(message)

    def _marked(self, message: Message) -> MutableHeaders:
        message["headers"] = [
            pair
            for pair in message.get("headers", ())
            if not pair[0].lower().startswith((b"access-control-", b"server"))
        ]
        headers = MutableHeaders(scope=message)
        headers.update(_HEADERS)
        if self._loopback:  # on plain http elsewhere, browsers ignore it and log an error
            headers["Cross-Origin-Opener-Policy"] = "same-origin"
        headers.setdefault("Content-Security-Policy", _POLICY.format(hashes=""))
        if not _ASSETS.fullmatch(self._path) and self._path not in _SINGLE_ASSETS:
            headers["Cache-Control"] = "no-store"
        return headers

    def _with_hashes(self, start: Message) -> Message:
        hashes = "".join(f" '{digest}'" for digest in script_hashes(self._page.decode()))
        headers = MutableHeaders(scope=start)
        headers["Content-Security-Policy"] = _POLICY.format(hashes=hashes)
        return start


def script_hashes(page: str) -> list[str]:
    """The hashes of a Gradio page's inline scripts, and of those in its `head=`.

    The page contains text of raters and models only as JSON with each `<` escaped, so none of it
    can be taken for a script.
    """
    scripts = _INLINE.findall(page)
    for config in [script for script in scripts if script.startswith(_CONFIG)]:
        settings = json.loads(config.removeprefix(_CONFIG).rstrip(";"))
        scripts += _INLINE.findall(settings.get("head") or "")
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    return sorted({"sha256-" + base64.b64encode(digest).decode() for digest in digests})
