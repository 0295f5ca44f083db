"""The pages' side of the process with the backbone: ask, watch, stop. Imports no torch."""

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lorarlhf.project.settings import Settings
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui import engine_worker as engine_process
from lorarlhf_ui.engine_worker import BASE

STARTING, READY, FAILED, OFF = "starting", "ready", "failed", "off"
__all__ = ["BASE", "FAILED", "OFF", "READY", "STARTING", "Engine", "Job"]


class Job:
    """Something that was asked of the engine.

    Attributes:
        texts: of answers: what has been written so far, one text an answer.
        value: the result, once `done`.
        error: what went wrong, or None.
    """

    def __init__(self, answers: int = 0) -> None:
        self.texts = [""] * answers
        self.value: Any = None
        self.error: str | None = None
        self.done = False
        self._changed = threading.Condition()

    def wait(self, seconds: float | None = None) -> Any:
        """The result.

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
        """Return as soon as there is other text than this, or it is done, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self.done or self.texts != list(than), seconds)

    def tell(self, **news: Any) -> None:
        """Set attributes and wake whoever waits."""
        with self._changed:
            for name, value in news.items():
                setattr(self, name, value)
            self._changed.notify_all()


class Engine:
    """The process with the backbone; it starts at once and loads in the background.

    Args:
        settings: gives those of the base (`lorarlhf.project.settings.resolve`); called in the
            process, since it takes torch to know them. None for no model at all.
        on_ready: called (in a thread of the engine) with what the process says of itself.
        on_failed: called with the reason where there will be no model.

    Attributes:
        state: `starting`, `ready`, `failed` or `off`.
        about: the base, its device and the name of its hidden states, once ready.
        message: why it failed.
    """

    def __init__(
        self,
        settings: Callable[[], Settings] | None,
        on_ready: Callable[[dict[str, Any]], None] = lambda about: None,
        on_failed: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.state, self.message = OFF if settings is None else STARTING, ""
        self.about: dict[str, Any] = {}
        self._on_ready, self._on_failed = on_ready, on_failed
        self._jobs: dict[int, Job] = {}
        self._count, self._lock = 0, threading.Lock()
        if settings is None:
            return
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(
            target=engine_process.main, args=(theirs, settings), daemon=True, name="lorarlhf-engine"
        )
        self.process.start()
        theirs.close()  # so that its end is noticed here
        threading.Thread(target=self._listen, daemon=True, name="engine").start()

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
    ) -> Job:
        """One answer of each model to a prompt.

        Args:
            models: `base`, or folders of policy adapters; the same one may stand several times.
            urgent: somebody waits for it.
            features: the hidden states of the answers, too, for the reward head.
        """
        drawn = seeds or [int.from_bytes(os.urandom(4), "big") >> 1 for _ in models]
        ask = {
            "prompt": prompt,
            "models": list(models),
            "seeds": list(drawn),
            "temperature": temperature,
            "max_new_tokens": max_new_tokens,
            "urgent": urgent,
            "features": features,
        }
        return self._ask("answer", ask, Job(len(models)))

    def stop(self, job: Job) -> None:
        """End a job's answers where they are; it is done soon after."""
        numbers = [number for number, known in list(self._jobs.items()) if known is job]
        for number in numbers:
            self._send((0, "stop", number))

    def scores(self, run: Path, prompt: Any, answers: Sequence[str]) -> Job:
        """The reward role's scores of answers; `run` is the folder of its adapter."""
        ask = {"run": str(run), "prompt": prompt, "answers": list(answers)}
        return self._ask("scores", ask)

    def features(self, prompts: Sequence[Any], answers: Sequence[str]) -> Job:
        """Hidden states of answers, packed; done when nobody waits for an answer."""
        return self._ask("features", {"prompts": list(prompts), "answers": list(answers)})

    def axes(self) -> Job:
        """The style axes in the space of the hidden states, packed."""
        return self._ask("axes", {})

    def inspect(self) -> Job:
        """How many copies of the base there are, its bytes, and the process's number."""
        return self._ask("about", {})

    def close(self) -> None:
        """End the process."""
        if self.state != OFF:
            self.state = OFF
            self.process.kill()
            self.process.join()

    def _ask(self, what: str, ask: dict[str, Any], job: Job | None = None) -> Job:
        job = job or Job()
        with self._lock:
            self._count += 1
            number = self._count
            self._jobs[number] = job
        if self.state in (FAILED, OFF):
            self._end(number, error=self.message or "The pages run without a model.")
        else:
            self._send((number, what, ask))
        return job

    def _send(self, message: tuple[int, str, Any]) -> None:
        try:
            with self._lock:
                self._connection.send(message)
        except (OSError, ValueError):
            self._lost()

    def _listen(self) -> None:
        while True:
            try:
                number, what, value = self._connection.recv()
            except (EOFError, OSError):
                self._lost()
                return
            if number == 0:
                self._about(what, value)
            elif what == "texts":
                if job := self._jobs.get(number):
                    job.tell(texts=value)
            elif what == "failed":
                self._end(number, error=value)
            else:
                texts = isinstance(value, dict) and value.get("texts")
                self._end(number, value=value, **({"texts": texts} if texts else {}))

    def _about(self, what: str, value: Any) -> None:
        if what == "ready":
            self.about, self.state = value, READY
            try:
                self._on_ready(value)
            except Exception as error:  # the answers must be listened to all the same
                traceback.print_exception(error)
        else:
            self.message, self.state = value, FAILED
            self._on_failed(value)

    def _end(self, number: int, **news: Any) -> None:
        if job := self._jobs.pop(number, None):
            job.tell(**news, done=True)  # last: who sees that it is done reads the rest

    def _lost(self) -> None:
        """The process is gone: all that wait are told."""
        if self.state != OFF:
            if self.state != FAILED:
                self.message = (
                    "The model's process has ended, most likely for want of memory. Votes are "
                    "kept. Start `lorarlhf ui` again, with fewer bits or a smaller base."
                )
            self.state = FAILED
        for number in list(self._jobs):
            self._end(number, error=self.message or "The pages are closing.")
