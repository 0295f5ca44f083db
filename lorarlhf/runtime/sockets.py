"""Sockets that a server listens on: this machine's own addresses, or all of them."""

import contextlib
import errno
import ipaddress
import re
import socket

from lorarlhf.runtime.errors import UserError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""The names by which programs of this machine reach it."""
_NAME = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@?#\s]+)(:\d{1,5})?")


def host_name(header: str) -> str:
    """The name in a Host header: lower case, without port, brackets and a final dot."""
    found = _NAME.fullmatch(header.lower())
    return found[1].strip("[]").removesuffix(".") if found else ""


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int, who: str) -> list[socket.socket]:
    """Sockets that accept connections from now on; on ::1 as well, if there is IPv6.

    Args:
        host: an address of this machine; 0.0.0.0 for all of IPv4.
        port: of all of them; 0 takes a free one.
        who: listens, for the message, such as `The pages`.

    Raises:
        UserError: the port is in use or is not a valid port, or this machine lacks the address.
    """
    host = "127.0.0.1" if host.lower() == "localhost" else host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sockets = [_listen(family, host, port, who)]
    except _NoAddress as error:
        raise UserError(
            f"{who} can't use the address {host}, which this machine does not have. Leave --host "
            "out for this machine alone, or name one of its own addresses; 0.0.0.0 means all."
        ) from error
    if host in ("127.0.0.1", "0.0.0.0"):
        # `localhost` may mean ::1, and nobody else must answer there.
        with contextlib.suppress(_NoAddress):
            try:
                sockets.append(_listen(socket.AF_INET6, "::1", sockets[0].getsockname()[1], who))
            except UserError:
                sockets[0].close()
                raise
    return sockets


class _NoAddress(Exception):
    """This machine does not have the address."""


def _listen(family: socket.AddressFamily, host: str, port: int, who: str) -> socket.socket:
    try:
        sock = socket.socket(family)
    except OSError as error:
        raise _NoAddress from error
    # On Windows SO_REUSEADDR would let another program listen on the same port at the same time.
    exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
    sock.setsockopt(socket.SOL_SOCKET, exclusive or socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen()
    except (OSError, OverflowError) as error:
        sock.close()
        missing = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
        if isinstance(error, socket.gaierror) or getattr(error, "errno", None) in missing:
            raise _NoAddress from error
        raise UserError(
            f"{who} can't use port {port} ({getattr(error, 'strerror', None) or error}). Something "
            "may listen there already. Choose another port with --port N; 0 takes a free one."
        ) from error
    return sock
