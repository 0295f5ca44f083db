"""Ctrl-C that lets the running step finish, so that nothing of it is lost."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from lorarlhf.runtime import distributed

NOTICE = b"\nStopping after this update; Ctrl-C again stops at once and loses it.\n"
LIMIT = (
    b"The launcher kills what still runs after 30 seconds, and then --resume goes on from the last "
    b"checkpoint; with TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600 in its environment it waits longer.\n"
)


class StopAfterUpdate(TrainerCallback):
    """A callback and context manager: the first Ctrl-C ends training after the update.

    The trainer then writes its checkpoint as after any last update. The second Ctrl-C raises
    `KeyboardInterrupt` where it stands. Outside the main thread nothing is changed. Of several
    processes all stop after the same update, whichever heard it first.

    Attributes:
        requested: whether somebody pressed Ctrl-C.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> "StopAfterUpdate":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if distributed.is_main():
            # Not print(): the signal may have come in the middle of a write to the same stream.
            launched = "LOCAL_RANK" in os.environ
            told = launched and "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in os.environ
            os.write(2, NOTICE + LIMIT if told else NOTICE)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if distributed.any_process(self.requested):
            self.requested = control.should_training_stop = control.should_save = True
