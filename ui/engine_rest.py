"""The answering model makes room: it rests while a job has the device, and comes back after it.

The queue is that of the machine, so jobs of other projects count, too.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lorarlhf.project import device_queue
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.engine_client import FAILED, READY, RESTING, STARTING, Engine

LOOK_SECONDS = 0.5
AGAIN_SECONDS = 60.0
"""How long after a rest the base is loaded again if that has failed: a training in a terminal,
which waits for no turn, may have the memory."""

RESTS = (
    "The answering model rests while a training runs, which needs the memory. It comes back by "
    "itself afterwards. Pairs that wait can be rated meanwhile."
)
"""It does not say what is trained: raters must not learn which models there are."""


def resting_words() -> str:
    """Why the model rests now; "" if it need not."""
    return RESTS if device_queue.queue() else ""


class EngineRest:
    """Watches the queue in a thread, and lets the engine rest or wake.

    Args:
        engine: of the pages.
        project: their project's folder.
        woken: called after the engine was woken.
    """

    def __init__(
        self, engine: Engine, project: Path, woken: Callable[[], None] = lambda: None
    ) -> None:
        self.engine, self.project, self.woken = engine, project, woken
        self._registered: Path | None = None
        self._woken_at: float | None = None
        self._closed = threading.Event()
        self._look_if_possible()
        threading.Thread(target=self._watch, daemon=True, name="engine rest").start()

    def look(self) -> None:
        """Let the engine rest or wake, as the queue says; tell others whether it has memory."""
        reason = resting_words()
        if reason:
            self.engine.rest(reason)
        elif self.engine.state == RESTING:
            self._wake(self.engine.wake)
        elif self.engine.state == FAILED and self._is_due():
            self._wake(self.engine.load_again)
        self._register()

    def close(self) -> None:
        """Stop watching; call it after the engine was closed."""
        self._closed.set()
        self._unregister()

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            self._look_if_possible()

    def _look_if_possible(self) -> None:
        with contextlib.suppress(OSError, UserError):  # the cache folder; it is tried again
            self.look()

    def _is_due(self) -> bool:
        """Whether to load again; never before the first rest, since it may be a wrong base then."""
        at = self._woken_at
        return at is not None and time.monotonic() - at > AGAIN_SECONDS

    def _wake(self, load: Callable[[], None]) -> None:
        self._woken_at = time.monotonic()
        load()
        self.woken()

    def _register(self) -> None:
        """Note in the machine's list whether this engine has memory."""
        if self.engine.state in (STARTING, READY):
            if self._registered is None or not self._registered.exists():
                self._registered = device_queue.register_model(self.project)
        else:
            self._unregister()

    def _unregister(self) -> None:
        if self._registered is not None:
            self._registered.unlink(missing_ok=True)
            self._registered = None
