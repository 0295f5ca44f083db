"""Let the running step finish after Ctrl-C, so that nothing is lost."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar

from transformers import TrainerCallback

from lorarlhf.runtime import distributed

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGBREAK") if hasattr(signal, name)]
"""Ctrl-C; on Windows also Ctrl-Break, by which another program stops this one (`process.py`)."""
NOTICE = b"\nStopping after this update; Ctrl-C again stops at once and loses it.\n"
LAUNCHER_NOTICE = (
    b"The launcher kills processes that still run after 30 seconds; then --resume continues from "
    b"the last checkpoint. Set TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600 to make it wait longer.\n"
)


class StopAfterUpdate(TrainerCallback):
    """A callback and context manager: the first Ctrl-C ends training after the current update.

    The trainer then writes a checkpoint, as after the last update. The second Ctrl-C raises
    `KeyboardInterrupt` at once. Outside the main thread nothing changes. Several processes stop
    after the same update, whichever of them received the signal.

    Args:
        steps: optimizer steps in an update, for trainers that count these.

    Attributes:
        requested: whether Ctrl-C was pressed.
        presses: how often it was, in all trainings of this process.
    """

    presses: ClassVar[int] = 0

    def __init__(self, steps: int = 1) -> None:
        self.requested, self.steps = False, steps
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopAfterUpdate":
        if threading.current_thread() is threading.main_thread():
            self._before = {name: signal.signal(name, self._on_signal) for name in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for name, before in self._before.items():
            signal.signal(name, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        StopAfterUpdate.presses += 1
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if distributed.is_main():
            # Not print(): the signal may have interrupted a write to the same stream.
            launched = "LOCAL_RANK" in os.environ
            short = launched and "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in os.environ
            os.write(2, NOTICE + LAUNCHER_NOTICE if short else NOTICE)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the training and save, if any process has received Ctrl-C."""
        if state.global_step % self.steps == 0 and distributed.any_process(self.requested):
            self.requested = control.should_training_stop = control.should_save = True


@contextmanager
def stopping_what_follows() -> Iterator[None]:
    """Around a training that is a part of something longer.

    Ctrl-C in its last update comes too late to stop the training, and is meant for the rest.

    Raises:
        KeyboardInterrupt: after a training that was done in spite of Ctrl-C.
    """
    before = StopAfterUpdate.presses
    yield
    if StopAfterUpdate.presses > before:
        raise KeyboardInterrupt
