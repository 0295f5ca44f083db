"""Where other machines find this one: its addresses, its names, and a QR code of a link."""

import io
import ipaddress
import socket

import psutil
import segno

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def addresses() -> list[str]:
    """This machine's IPv4 addresses in its networks, the one most likely meant first.

    Nothing is sent for this.
    """
    found = [_towards_the_world(), *_of_interfaces()]
    return list(dict.fromkeys(address for address in found if _reachable(address)))


def allowed_hosts(lan: bool) -> frozenset[str]:
    """The names under which the pages may be asked for, in lower case and without a port.

    Args:
        lan: other machines may ask as well, by address or by this machine's name.
    """
    if not lan:
        return _LOOPBACK
    name = socket.gethostname().lower().rstrip(".")
    names = {name, f"{name.partition('.')[0]}.local"} if name else set()
    return _LOOPBACK | names | set(addresses())


def qr_lines(url: str) -> str:
    """A link's QR code for a terminal, one line of it in each line of text.

    The light squares are drawn and the dark ones left out, as it must be on a dark background.
    Phones read it on a light one, too, where it appears inverted.
    """
    out = io.StringIO()
    # Four squares of margin: with fewer some phones find no code on a dark background.
    segno.make(url, micro=False).terminal(out, border=4, compact=True)
    return out.getvalue().rstrip("\n")


def _towards_the_world() -> str:
    """The address that a packet to the outside would carry; connecting UDP sends none."""
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
