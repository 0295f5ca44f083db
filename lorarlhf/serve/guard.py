"""The guard in front of the endpoint: which requests are allowed.

Without a key only programs of this machine are served, and no web page of another site: requests
have to name this machine as their host, which a site with a name of its own can't make a browser
do (DNS rebinding), and none may come from a foreign origin. With a key, whoever has it is served.
It is plain ASGI, so that streams are not buffered.
"""

import hashlib
import hmac
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorarlhf.runtime.sockets import LOOPBACK, host_name
from lorarlhf.serve.errors import ApiError

MOST_BYTES = 8 * 2**20
"""The largest body of a request: more text than any base reads."""
OPEN = ("/health",)
"""Paths that need no key. They tell nothing but that the server runs."""


@dataclass(frozen=True)
class Access:
    """Who may use the endpoint.

    Attributes:
        key: what requests have to send; "" for none, on this machine only.
        origins: sites whose pages may use the endpoint from a browser (CORS).
    """

    key: str = ""
    origins: Collection[str] = ()


class Guard:
    """An ASGI app that checks every request before it passes it on.

    Args:
        app: the endpoint.
        access: who may use it.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access
        self._digest = _digest(access.key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        allowed = origin in self._access.origins if origin is not None else False

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                _mark(MutableHeaders(scope=message), origin if allowed else None)
            await send(message)

        try:
            self._check(scope, headers)
        except ApiError as error:
            refusal = JSONResponse(error.body(), error.status, error.headers())
            await refusal(scope, receive, marked)
            return
        if allowed and scope["method"] == "OPTIONS":
            await _preflight()(scope, receive, marked)
            return
        await self._app(scope, receive, marked)

    def _check(self, scope: Scope, headers: Headers) -> None:
        self._check_host(headers)
        self._check_site(headers)
        # A browser asks first without the key whether it may ask.
        preflight = scope["method"] == "OPTIONS" and "origin" in headers
        if self._access.key and scope["path"] not in OPEN and not preflight:
            self._check_key(headers)
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or len(length) > 12:
            raise ApiError(400, "The length of the body is no number.")
        if int(length) > MOST_BYTES:
            raise ApiError(413, f"A request has up to {MOST_BYTES // 2**20} MB.")

    def _check_host(self, headers: Headers) -> None:
        if self._access.key:  # who knows it is no site that hides behind a name
            return
        hosts = headers.getlist("host")
        if len(hosts) != 1 or host_name(hosts[0]) not in LOOPBACK:
            raise ApiError(
                421,
                "This endpoint is served to this machine alone, as 127.0.0.1 or localhost. To use "
                "another name, start it with --key-file.",
            )

    def _check_site(self, headers: Headers) -> None:
        own = headers.get("host", "").lower()
        for origin in headers.getlist("origin"):
            scheme, _, name = origin.lower().partition("://")
            ours = scheme in ("http", "https") and name == own
            if not ours and origin not in self._access.origins:
                raise ApiError(
                    403,
                    f"Refused: the request comes from a page of {origin}. If that page is your "
                    f"own front end, start the server with --cors {origin}.",
                )
        foreign = headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
        if foreign and "origin" not in headers:
            raise ApiError(403, "Refused: this request comes from another site.")

    def _check_key(self, headers: Headers) -> None:
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        # Digests of one length: how long the comparison takes tells nothing about the key.
        right = hmac.compare_digest(_digest(sent.strip()), self._digest)
        if scheme.lower() != "bearer" or not right:
            raise ApiError(
                401,
                "This server needs its key: send it as `Authorization: Bearer KEY`, or set it as "
                "the API key of the program.",
                code="invalid_api_key",
            )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _preflight() -> Response:
    """What a browser wants to know before it lets a page send JSON and a key."""
    headers = {
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Stainless-Arch, "
        "X-Stainless-Lang, X-Stainless-OS, X-Stainless-Package-Version, X-Stainless-Retry-Count, "
        "X-Stainless-Runtime, X-Stainless-Runtime-Version, X-Stainless-Timeout",
        "Access-Control-Max-Age": "600",
    }
    return Response(status_code=204, headers=headers)


def _mark(headers: MutableHeaders, origin: str | None) -> None:
    """The headers of every response: nothing is kept, and only a named site may read it."""
    headers["Cache-Control"] = "no-store"
    headers["X-Content-Type-Options"] = "nosniff"
    if origin is not None:
        headers["Access-Control-Allow-Origin"] = origin
        headers["Vary"] = "Origin"
    else:
        headers["Cross-Origin-Resource-Policy"] = "same-origin"
