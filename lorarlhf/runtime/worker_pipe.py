"""A worker process's end of its pipe to the process that started it.

Messages are plain tuples: (number, kind, value). Number 0 is about the process itself. Once the
other end is closed, the process ends: it has nothing to save.
"""

import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any

Message = tuple[int, str, Any]
BROKEN = (
    *("device-side assert", "illegal memory access", "illegal instruction", "misaligned address"),
    *("launch failure", "hardware stack error", "uncorrectable ECC"),
)
"""What PyTorch says of a card that computes nothing more in this process."""
NO_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class WorkerPipe:
    """Reads messages in a thread of its own, so that none waits in the pipe, and sends others."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._arrived: SimpleQueue[Message] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True, name="pipe").start()

    def send(self, number: int, kind: str, value: Any) -> None:
        """Send a message."""
        try:
            self._connection.send((number, kind, value))
        except (BrokenPipeError, OSError):
            os._exit(0)

    def messages(self, idle: Callable[[], bool]) -> Iterator[Message]:
        """The messages that have arrived, the first one first.

        Args:
            idle: whether there is nothing else to do, so that it waits for one. It is asked again
                after each message.
        """
        while True:
            try:
                message = self._arrived.get(block=idle())
            except Empty:
                return
            yield message

    def _read(self) -> None:
        while True:
            try:
                self._arrived.put(self._connection.recv())
            except (EOFError, OSError):
                os._exit(0)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; imports no torch."""
    told = str(error).lower()
    return isinstance(error, MemoryError) or any(text.lower() in told for text in NO_MEMORY)


def breaks_device(error: BaseException) -> bool:
    """Whether the device computes nothing more in this process after this error.

    A failed assertion or an illegal access of a card stays until the process ends.
    """
    return isinstance(error, RuntimeError) and any(text in str(error) for text in BROKEN)


def end_if_broken(error: BaseException) -> None:
    """Show an error that breaks the device, and end this process at once with status 1."""
    if breaks_device(error):
        traceback.print_exception(error, file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)
