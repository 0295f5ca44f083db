"""Waiting for something that other processes do."""

import time
from collections.abc import Callable
from typing import Any


def until(happened: Callable[[], Any], seconds: float = 600.0) -> Any:
    """Wait until something is true, and return it; a busy machine may need minutes."""
    end = time.monotonic() + seconds
    while not (value := happened()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return value
