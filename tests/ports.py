"""Ports of this machine for tests that have to name one before something listens there."""

import contextlib
import random
import socket

# Below the ports that Linux gives to whoever asks for any: those may be taken a moment later.
PORTS = range(10_000, 32_000)


def free_port() -> int:
    """A port at which nothing listens."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("none of 100 ports is free")
