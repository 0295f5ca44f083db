"""The endpoint's side of the model's process: send requests, follow them, stop them, let it rest.

Everything here runs in the thread of the event loop, but for one thread that reads the pipe. It
imports no torch.
"""

import asyncio
import contextlib
import multiprocessing
import threading
import time
from collections.abc import Callable
from typing import Any

from lorarlhf.project.settings import Settings
from lorarlhf.serve import worker
from lorarlhf.serve.errors import ApiError

START_METHOD = "spawn"
"""How the process starts. The tests start it from a server that has imported the libraries."""
STARTING, READY, RESTING, FAILED, CLOSED = "starting", "ready", "resting", "failed", "closed"
LOADING = "The model is being loaded. Ask again in some seconds."
DIED = (
    "The model's process has ended, probably because memory ran out or the device failed. It is "
    "started again; ask again in some seconds."
)
CLOSING = "The server is closing."


class Job:
    """A request that the model works on.

    Attributes:
        rows: how many answers it needs at once.
        begun: whether they are being written.
    """

    def __init__(self, rows: int) -> None:
        self.rows, self.begun = rows, False
        self.events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    async def next(self, seconds: float | None = None) -> tuple[str, Any] | None:
        """What happens next: `begun`, `pieces` of the texts, or at the end `done` with the result.

        Returns:
            None if nothing happens for so many seconds.

        Raises:
            ApiError: it failed.
        """
        try:
            kind, value = await asyncio.wait_for(self.events.get(), seconds)
        except asyncio.TimeoutError:
            return None
        if kind == "failed":
            raise value
        return kind, value


class Engine:
    """The process with the model, which is started, killed and started again.

    Args:
        settings: of the base, called in the process.
        rows: how many answers are written at once, at most.
        waiting: how many requests may wait beyond these.

    Attributes:
        state: `starting`, `ready`, `resting`, `failed` or `closed`.
        message: why it fails or rests.
        about: base, device, context and process, once ready.
    """

    def __init__(self, settings: Callable[[], Settings], rows: int, waiting: int) -> None:
        self.rows, self.waiting = rows, waiting
        self.state, self.message = RESTING, LOADING
        self.about: dict[str, Any] = {}
        self.changed = asyncio.Event()  # set at each change of the state
        self._settings = settings
        self._jobs: dict[int, Job] = {}
        self._count = 0
        self._connection: Any = None
        self._process: Any = None

    # ---- its life

    def wake(self) -> None:
        """Start the process; the base is loaded meanwhile."""
        if self.state in (STARTING, READY, CLOSED):
            return
        context: Any = multiprocessing.get_context(START_METHOD)
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=worker.main,
            args=(theirs, self._settings, self.rows),
            daemon=True,
            name="lorarlhf-serve-model",
        )
        self._process.start()
        theirs.close()  # otherwise the end of the process would not close the pipe
        self._become(STARTING, LOADING)
        loop = asyncio.get_running_loop()
        threading.Thread(
            target=self._listen, args=(self._connection, loop), daemon=True, name="engine"
        ).start()

    async def rest(self, message: str, grace: float) -> None:
        """Free the memory: answers that are being written get a moment, then all end."""
        if self.state not in (STARTING, READY):
            return
        loading = self.state == STARTING
        self._become(RESTING, message)
        await self._end_jobs(message, 0.0 if loading else grace)
        self._kill()

    async def close(self, grace: float, hurry: Callable[[], bool] = lambda: False) -> None:
        """End the process for good, as `rest` does.

        Args:
            hurry: whether somebody has no patience any more.
        """
        self._become(CLOSED, CLOSING)
        await self._end_jobs(CLOSING, grace, hurry)
        self._kill()

    async def _end_jobs(
        self, message: str, grace: float, hurry: Callable[[], bool] = lambda: False
    ) -> None:
        """Requests that have not begun end at once, the others after `grace` seconds."""
        for number in [number for number, job in self._jobs.items() if not job.begun]:
            self._end(number, "failed", ApiError(503, message, retry_after=30))
        until = time.monotonic() + grace
        while self._jobs and time.monotonic() < until and not hurry():
            await asyncio.sleep(0.02)
        for number in list(self._jobs):
            self._end(number, "failed", ApiError(503, message, retry_after=30))

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = self._connection = None

    def _become(self, state: str, message: str = "") -> None:
        self.state, self.message = state, message
        self.changed.set()

    # ---- requests

    def ask(self, request: dict[str, Any]) -> Job:
        """Send a request; see `work.Work` for its fields.

        Raises:
            ApiError: nothing answers now (503), or too many requests wait (429).
        """
        if self.state != READY:
            raise ApiError(503, self.message, retry_after=5 if self.state == STARTING else 30)
        rows = request["n"] * request["best_of"]
        if rows > self.rows:
            raise ApiError(
                400,
                f"This needs {rows} answers at once, and the server writes up to {self.rows}. Ask "
                "for fewer, or start it with a larger --rows.",
                "n",
            )
        open_jobs = [job for job in self._jobs.values() if not job.begun]
        full = sum(job.rows for job in self._jobs.values()) + rows > self.rows
        if full and len(open_jobs) >= self.waiting:
            raise ApiError(
                429,
                f"{len(open_jobs)} requests wait already, as many as may. Ask again later.",
                code="queue_full",
                retry_after=5,
            )
        self._count += 1
        job = self._jobs[self._count] = Job(rows)
        self._send(self._count, "answer", request)
        return job

    def stop(self, job: Job) -> None:
        """Stop a request that nobody waits for any more."""
        for number in [number for number, known in self._jobs.items() if known is job]:
            del self._jobs[number]
            self._send(number, "stop", None)

    def _send(self, number: int, kind: str, value: Any) -> None:
        # If the process is gone, the thread that reads has noticed, or will.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._connection.send((number, kind, value))

    # ---- what the process says

    def _listen(self, connection: Any, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            try:
                number, kind, value = connection.recv()
            except (EOFError, OSError, TypeError):
                number, kind, value = 0, "lost", None
            try:
                loop.call_soon_threadsafe(self._heard, connection, number, kind, value)
            except RuntimeError:  # the loop has ended
                return
            if kind == "lost":
                return

    def _heard(self, connection: Any, number: int, kind: str, value: Any) -> None:
        if connection is not self._connection:
            return  # the last words of a process that made room
        if number:
            if kind == "failed":
                value = ApiError(**value)
            if kind in ("failed", "done"):
                self._end(number, kind, value)
            elif job := self._jobs.get(number):
                job.begun = True
                job.events.put_nowait((kind, value))
        elif kind == "ready":
            self.about = value
            if self.state == STARTING:
                self._become(READY)
        elif kind == "failed":
            self._become(FAILED, value["message"])
        elif self.state == READY:
            self._lost()
        elif self.state == STARTING:
            self._become(FAILED, "The model's process has ended while it loaded the base.")

    def _lost(self) -> None:
        """The process died while it worked: its requests end, and another one starts."""
        self._kill()
        for number in list(self._jobs):
            self._end(number, "failed", ApiError(503, DIED, retry_after=10))
        self._become(RESTING, DIED)
        self.wake()

    def _end(self, number: int, kind: str, value: Any) -> None:
        if job := self._jobs.pop(number, None):
            job.events.put_nowait((kind, value))
