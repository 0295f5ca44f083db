"""The pages' side of the process that holds the backbone: send jobs, watch them, stop them.

Imports no torch.
"""

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lorarlhf.project.settings import Settings
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui import engine_worker
from lorarlhf_ui.engine_worker import BASE

START_METHOD = "spawn"
"""How the process starts. The tests start it from a server that has imported the libraries."""
LAST_WORDS = 10.0
"""Seconds that a process that has ended gets until its last message is read."""
STARTING, READY, FAILED, OFF = "starting", "ready", "failed", "off"
RESTING = "resting"
SILENT = (FAILED, OFF, RESTING)
"""The states in which nothing answers; `Engine.message` says why, except for OFF."""
__all__ = ["BASE", "FAILED", "OFF", "READY", "RESTING", "SILENT", "STARTING", "Engine", "Job"]


class Job:
    """Work that was sent to the engine.

    Attributes:
        texts: the text of each answer so far; empty for jobs that generate nothing.
        value: the result, once `done`.
        error: what went wrong, or None.
        stopping: whether a rater has stopped it; it is done soon after.
    """

    def __init__(self, answers: int = 0) -> None:
        self.texts = [""] * answers
        self.stopping = False
        self.value: Any = None
        self.error: str | None = None
        self.done = False
        self._changed = threading.Condition()

    def wait(self, seconds: float | None = None) -> Any:
        """Wait for the result and return it.

        Raises:
            UserError: the job failed.
            TimeoutError: it is not done after so many seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, seconds):
                raise TimeoutError("the model is still busy")
        if self.error is not None:
            raise UserError(self.error)
        return self.value

    def wait_for_more(self, than: Sequence[str], seconds: float) -> None:
        """Return when the texts differ from `than`, the job is done or stops, or time is over."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.done or self.stopping or self.texts != list(than), seconds
            )

    def update(self, **attributes: Any) -> None:
        """Set attributes and wake the threads that wait."""
        with self._changed:
            for name, value in attributes.items():
                setattr(self, name, value)
            self._changed.notify_all()


class Engine:
    """The process with the backbone; it starts at once and loads the base in the background.

    Args:
        settings: returns the settings of the base (`lorarlhf.project.settings.resolve`). It is
            called in the process, because it imports torch. None: no process and no model.
        on_ready: called with `about` in a thread of the engine.
        on_failed: called with the reason if the base can't be loaded.
        resting: if not empty, the process does not start yet, and this says why; see `rest`.

    Attributes:
        state: `starting`, `ready`, `failed`, `off` or `resting`.
        about: the base, its device and the name of its feature space, once ready.
        message: why it failed or rests.
        load_failed: whether it failed because the base could not be loaded.
    """

    def __init__(
        self,
        settings: Callable[[], Settings] | None,
        on_ready: Callable[[dict[str, Any]], None] = lambda about: None,
        on_failed: Callable[[str], None] = lambda message: None,
        resting: str = "",
    ) -> None:
        self.state, self.message = (OFF, "") if settings is None else (RESTING, resting)
        self.about: dict[str, Any] = {}
        self.load_failed = False
        self._settings = settings
        self._on_ready, self._on_failed = on_ready, on_failed
        self._jobs: dict[int, Job] = {}
        self._count, self._lock = 0, threading.Lock()
        self._changing = threading.RLock()  # while the process starts or ends
        self._connection: Any = None
        self._listener: threading.Thread | None = None
        if not resting:
            self.wake()

    def rest(self, message: str) -> None:
        """End the process, so that its memory is free; all jobs end with the message.

        The engine rests until `wake`. One without a model stays as it is, and so does one that
        has failed, which has no memory to give back.
        """
        with self._changing:
            if self.state in (STARTING, READY):
                # The message first: who sees the state may read it at once.
                self.message, self.state = message, RESTING
                self.process.kill()
                self.process.join()
            if self.state != RESTING:
                return
            self.message = message
        for number in list(self._jobs):
            self._end(number, error=message)

    def wake(self) -> None:
        """Start the process and load the base, if the engine rests."""
        with self._changing:
            if self.state != RESTING:
                return
            context: Any = multiprocessing.get_context(START_METHOD)
            self._connection, theirs = context.Pipe()
            self.process = context.Process(
                target=engine_worker.main,
                args=(theirs, self._settings),
                daemon=True,
                name="lorarlhf-engine",
            )
            self.process.start()
            theirs.close()  # otherwise the end of the process would not close the pipe
            self.state, self.message, self.load_failed = STARTING, "", False
            self._listener = threading.Thread(
                target=self._listen, args=(self._connection,), daemon=True, name="engine"
            )
            self._listener.start()

    def load_again(self) -> None:
        """Load the base once more, if that has failed."""
        with self._changing:
            if self.state == FAILED and self.load_failed:
                self.state = RESTING
                self.wake()

    def answer(
        self,
        prompt: Any,
        models: Sequence[str],
        *,
        temperature: float,
        max_new_tokens: int,
        urgent: bool = False,
        features: bool = False,
        seeds: Sequence[int] | None = None,
        counts: Sequence[int] = (),
        reward: Path | None = None,
    ) -> Job:
        """Generate one answer of each model to a prompt.

        Args:
            models: `base`, or folders of policy adapters; a model may occur several times.
            urgent: a rater waits for the answers.
            features: also return the hidden states of the answers, for the reward head.
            seeds: one for each candidate; drawn at random if not given.
            counts: the number of candidates for each answer, one by default.
            reward: the folder of the reward role that picks among them. The value then has the
                `scores` of the answers and the `bounds` on their KL (`best_of.kl_bound`).
        """
        counts = list(counts) or [1] * len(models)
        drawn = seeds or [int.from_bytes(os.urandom(4), "big") >> 1 for _ in range(sum(counts))]
        request = {
            "prompt": prompt,
            "models": list(models),
            "seeds": list(drawn),
            "counts": counts,
            "reward": "" if reward is None else str(reward),
            "temperature": temperature,
            "max_new_tokens": max_new_tokens,
            "urgent": urgent,
            "features": features,
        }
        return self._submit("answer", request, Job(len(models)))

    def stop(self, job: Job) -> None:
        """Stop a job: answers end with the text so far, a small job fails unless it has begun."""
        numbers = [number for number, known in list(self._jobs.items()) if known is job]
        for number in numbers:
            self._send((0, "stop", number))

    def scores(self, run: Path, prompt: Any, answers: Sequence[str]) -> Job:
        """Score answers with the reward role; `run` is the folder of its adapter."""
        request = {"run": str(run), "prompt": prompt, "answers": list(answers)}
        return self._submit("scores", request)

    def shares(self, run: Path, prompt: Any, answers: Sequence[str]) -> Job:
        """What each word adds to the score of an answer, as `WordShares`; `run` as in `scores`."""
        request = {"run": str(run), "prompt": prompt, "answers": list(answers)}
        return self._submit("shares", request)

    def features(self, prompts: Sequence[Any], answers: Sequence[str]) -> Job:
        """Compute packed hidden states of answers, while nobody waits for an answer."""
        return self._submit("features", {"prompts": list(prompts), "answers": list(answers)})

    def direction(self, first: str, second: str) -> Job:
        """The packed style axis from the second text to the first one."""
        return self._submit("direction", {"texts": [first, second]})

    def axes(self) -> Job:
        """Compute the packed style axes in the space of the hidden states."""
        return self._submit("axes", {})

    def inspect(self) -> Job:
        """Count the copies of the base and its bytes; also returns the process's id."""
        return self._submit("about", {})

    def close(self) -> None:
        """End the process."""
        with self._changing:
            before, self.state = self.state, OFF
            if before not in (OFF, RESTING):
                self.process.kill()
                self.process.join()

    def _submit(self, kind: str, request: dict[str, Any], job: Job | None = None) -> Job:
        job = job or Job()
        with self._lock:
            self._count += 1
            number = self._count
            self._jobs[number] = job
        if self.state in SILENT:
            self._end(number, error=self.message or "The pages run without a model.")
        else:
            self._send((number, kind, request))
        return job

    def _send(self, message: tuple[int, str, Any]) -> None:
        connection, listener = self._connection, self._listener
        try:
            with self._lock:
                connection.send(message)
        except (OSError, ValueError):
            # The process may have said why it ended, which is still to be read.
            if listener is not None and threading.current_thread() is not listener:
                listener.join(LAST_WORDS)
            self._lost(connection)

    def _listen(self, connection: Any) -> None:
        while True:
            try:
                number, kind, value = connection.recv()
            except (EOFError, OSError):
                self._lost(connection)
                return
            if connection is not self._connection or self.state == RESTING:
                continue  # the last words of a process that made room
            if number == 0:
                self._loaded(connection, kind, value)
            elif kind == "texts":
                if job := self._jobs.get(number):
                    job.update(texts=value)
            elif kind == "failed":
                self._end(number, error=value)
            else:
                texts = isinstance(value, dict) and value.get("texts")
                self._end(number, value=value, **({"texts": texts} if texts else {}))

    def _loaded(self, connection: Any, kind: str, value: Any) -> None:
        with self._changing:
            if connection is not self._connection or self.state != STARTING:
                return  # it rests or closes: these are last words
            if kind == "ready":
                self.about, self.state = value, READY
            else:
                self.message, self.state, self.load_failed = value, FAILED, True
        if kind != "ready":
            self._on_failed(value)
            return
        try:
            self._on_ready(value)
        except Exception as error:  # this thread must go on reading answers
            traceback.print_exception(error)

    def _end(self, number: int, **attributes: Any) -> None:
        if job := self._jobs.pop(number, None):
            job.update(**attributes, done=True)  # `done` last: readers without the lock see it last

    def _lost(self, connection: Any) -> None:
        """The process has ended: end all jobs with the reason.

        Args:
            connection: to that process; there may be another one by now.
        """
        with self._changing:
            if connection is not self._connection:
                return
            if self.state not in SILENT:
                self.message = (
                    "The model's process has ended, probably because memory ran out or the device "
                    "failed; the terminal shows what it said. Votes are kept. Start `lorarlhf ui` "
                    "again, with fewer bits or a smaller base if it was memory."
                )
                self.state = FAILED
            message = self.message or "The pages are closing."
        for number in list(self._jobs):
            self._end(number, error=message)
