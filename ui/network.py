"""How other machines reach this one: sockets, addresses, names, and a QR code of a link."""

import io
import ipaddress
import re
import socket
from collections.abc import Sequence
from pathlib import Path

import psutil
import segno

from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.sockets import LOOPBACK
from lorarlhf_ui.page_frame import PAGES

_CONTAINER_SIGNS = (Path("/.dockerenv"), Path("/run/.containerenv"))  # Docker's, Podman's
_OWN_PATHS = {"assets", "static", "files", "gradio_api", "config", "login", "logout"}
_OWN_PATHS |= {path.strip("/") for path in PAGES}


def addresses() -> list[str]:
    """This machine's IPv4 addresses, the one that others most likely use first.

    No packet is sent.
    """
    found = [_towards_the_world(), *_of_interfaces()]
    return list(dict.fromkeys(address for address in found if _reachable(address)))


def in_container() -> bool:
    """Whether this is a container, whose addresses only its own host reaches."""
    return any(sign.exists() for sign in _CONTAINER_SIGNS)


def allowed_hosts(lan: bool, more: Sequence[str] = ()) -> frozenset[str]:
    """The host names that requests may have, in lower case and without a port.

    Args:
        lan: whether other machines may use the pages, by address or by this machine's name.
        more: names under which a proxy or a tailnet serves the pages.

    Raises:
        UserError: one of `more` is no host name.
    """
    known = LOOPBACK | {_host(name) for name in more}
    if not lan:
        return known
    name = socket.gethostname().lower().rstrip(".")
    names = {name, f"{name.partition('.')[0]}.local"} if name else set()
    return known | names | set(addresses())


def _host(name: str) -> str:
    plain = name.lower().rstrip(".").strip("[]")
    # A name without its scheme, port and path: those are the proxy's.
    if not re.fullmatch(r"[0-9a-f:]*:[0-9a-f:.]*|[\w-]+(\.[\w-]+)*", plain, re.A):
        raise UserError(
            f"--allowed-host {name} is no host name. Give it as rate.example.org, without https:// "
            "and without a port."
        )
    return plain


def root_path(text: str) -> str:
    """The path under which a proxy serves the pages, such as `/x`; "" for none.

    Raises:
        UserError: it is no path, or begins with a path of the pages themselves.
    """
    path = text.rstrip("/")
    first = path.split("/")[1] if path.startswith("/") else ""
    if path and (not re.fullmatch(r"(/[\w.~-]*[\w~-])+", path, re.A) or first in _OWN_PATHS):
        raise UserError(
            f"--root-path {text} can't be used. Give a path of letters and digits that is none of "
            "the pages' own, such as /lorarlhf."
        )
    return path


def qr_lines(url: str) -> str:
    """A link's QR code as text for a terminal.

    The light squares are drawn, for terminals with a dark background. On a light background the
    code appears inverted, and phones read that too.
    """
    out = io.StringIO()
    # With fewer than four squares of margin, some phones find no code on a dark background.
    segno.make(url, micro=False).terminal(out, border=4, compact=True)
    return out.getvalue().rstrip("\n")


def _towards_the_world() -> str:
    """The source address of a packet to the internet; connecting a UDP socket sends none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation (RFC 5737)
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def _of_interfaces() -> list[str]:
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    return [
        entry.address
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if name in up and entry.family == socket.AF_INET
    ]


def _reachable(address: str) -> bool:
    try:
        known = ipaddress.IPv4Address(address)
    except ValueError:
        return False
    return not (known.is_loopback or known.is_unspecified or known.is_link_local)
