"""What every response gets: the headers that protect a page, and the frame around it."""

import base64
import hashlib
import json
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Scope, Send

from lorarlhf.runtime.sockets import LOOPBACK, host_name
from lorarlhf_ui.page_frame import PageFrame, visitor_in

ASSETS = re.compile(r"/(assets|static)(/[\w.@+-]+)+", re.A)
SINGLE_ASSETS = ("/theme.css", "/favicon.ico", "/manifest.json")

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
_INLINE = re.compile(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.S)
_CONFIG = "window.gradio_config = "


class Answer:
    """Sends a response on, with the headers that every response gets.

    A page is buffered until it is complete: its policy contains the hashes of its scripts, and
    the frame is put around it.

    Args:
        frame: of the pages; None if the response is no page.
    """

    def __init__(self, scope: Scope, send: Send, frame: PageFrame | None) -> None:
        self._path, self._send, self._frame = scope["path"], send, frame
        self._scope = scope
        self._loopback = host_name(Headers(scope=scope).get("host", "")) in LOOPBACK
        self._start: Message | None = None
        self._page = bytearray()
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = self._marked(message)
            if self._frame is not None and headers.get("content-type", "").startswith("text/html"):
                self._start = message
                return
        elif self._start is not None and message["type"] == "http.response.body":
            self._page += message.get("body", b"")
            if message.get("more_body"):
                return
            message = {"type": "http.response.body", "body": self._complete(self._start)}
            await self._send(self._start)
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
        if not ASSETS.fullmatch(self._path) and self._path not in SINGLE_ASSETS:
            headers["Cache-Control"] = "no-store"
        return headers

    def _complete(self, start: Message) -> bytes:
        """The page in its frame; `start` gets the headers that belong to it."""
        page = self._page.decode()
        headers = MutableHeaders(scope=start)
        hashes = "".join(f" '{digest}'" for digest in script_hashes(page))
        headers["Content-Security-Policy"] = _POLICY.format(hashes=hashes)
        if self._frame is not None:
            page = self._frame.around(page, self._path, visitor_in(self._scope))
        body = page.encode()
        if "content-length" in headers:
            headers["Content-Length"] = str(len(body))
        return body


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
