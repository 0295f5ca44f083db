"""The process that holds the one backbone and does what the pages ask, a few tokens at a time.

It is a process of its own, so that the pages stay quick while it computes and keep working where
it dies. What people wait for comes before what is made ahead.

Messages are plain tuples: (number, what, arguments) come in, (number, what, value) go out; number 0
is about the process itself.
"""

import base64
import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from lorarlhf.project.settings import Settings
from lorarlhf.runtime.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from lorarlhf.backbone.base import Backbone
    from lorarlhf.backbone.generation import StepwiseSampling

BASE = "base"
SLOTS = ("policy", "reference")
"""Roles that runs' policies are loaded into: so two of them can answer side by side."""
TOKENS_A_TURN = 4
SECONDS_A_REPORT = 0.08
LIVE_AT_ONCE = 4

UNLOADED = "A model could not be loaded. The terminal of `lorarlhf ui` says why."
UNFORESEEN = "Something went wrong that was not foreseen. The terminal of `lorarlhf ui` says more."

Ask = dict[str, Any]


def main(connection: Connection, settings: Callable[[], Settings]) -> None:
    """Load the base, say so, and work until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the pages, whose end ends this
    with_less_haste()
    inbox: SimpleQueue[tuple[int, str, Any]] = SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    try:
        from lorarlhf.project.load import load_backbone

        said = settings()
        worker = Worker(load_backbone(said), connection, said.own)
    except Exception as error:
        connection.send((0, "failed", in_words(error)))
        return
    worker.say_hello()
    while True:
        worker.take(inbox)
        worker.turn()


def with_less_haste() -> None:
    """The pages' process goes first where both want a core."""
    if hasattr(os, "nice"):
        os.nice(10)


def _read(connection: Connection, inbox: "SimpleQueue[tuple[int, str, Any]]") -> None:
    while True:
        try:
            inbox.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # the pages are gone; nothing here has to be kept


class Worker:
    """Does the jobs in turns: live ones side by side, then those made ahead.

    Args:
        own: the settings `plain` and `max_prompt_tokens`.
    """

    def __init__(self, backbone: "Backbone", connection: Connection, own: Ask) -> None:
        self.backbone, self.connection, self.own = backbone, connection, own
        self.live: deque[Answers] = deque()
        self.ahead: deque[Answers] = deque()
        self.small: deque[tuple[int, str, Any]] = deque()
        self.models: dict[str, str] = {}  # slot -> the adapter's folder in it
        self.reward = ""

    def say_hello(self) -> None:
        """Tell that the base is there, and which hidden states it gives."""
        from lorarlhf.backbone.storage import fingerprint

        space = f"{fingerprint(self.backbone)}-{self.backbone.split}"
        about = {"space": space, "base": self.backbone.base, "device": str(self.backbone.device)}
        self.send(0, "ready", about)

    def send(self, number: int, what: str, value: Any) -> None:
        """Tell the pages something."""
        try:
            self.connection.send((number, what, value))
        except (BrokenPipeError, OSError):
            os._exit(0)

    def take(self, inbox: "SimpleQueue[tuple[int, str, Any]]") -> None:
        """Put what was asked into the lines; waits where there is nothing to do."""
        idle = not (self.live or self.ahead or self.small)
        while True:
            try:
                number, what, value = inbox.get(block=idle)
            except Empty:
                return
            idle = False
            if what == "stop":
                self._stop(value)
            elif what == "answer":
                line = self.live if value["urgent"] else self.ahead
                line.append(Answers(number, value))
            else:
                self.small.append((number, what, value))

    def turn(self) -> None:
        """A few tokens of what is most urgent, or one small job."""
        waiting = list(self.live)[:LIVE_AT_ONCE]
        if self.small and not (waiting and self.small[0][1] in ("features", "axes")):
            self._do_small(*self.small.popleft())
        if waiting:
            for job in waiting:
                self._advance(job, self.live)
        elif self.ahead:
            self._advance(self.ahead[0], self.ahead)

    # ---- answers

    def _advance(self, job: "Answers", line: "deque[Answers]") -> None:
        try:
            if not job.samplings and not self._begin(job):
                return  # its model has to wait for a slot
            for sampling in job.samplings:
                sampling.step(TOKENS_A_TURN)
        except Exception as error:  # one job's trouble is not the others'
            line.remove(job)
            self.send(job.number, "failed", in_words(error))
            return
        done = all(sampling.done for sampling in job.samplings)
        if done or time.monotonic() - job.reported >= SECONDS_A_REPORT:
            job.reported = time.monotonic()
            self.send(job.number, "texts", job.texts())
        if done:
            line.remove(job)
            self._finish(job)

    def _begin(self, job: "Answers") -> bool:
        roles = self._roles(job)
        if roles is None:
            return False
        job.begin(self.backbone, roles, self._asked(job.prompt), self.own["max_prompt_tokens"])
        return True

    def _asked(self, prompt: Any) -> Any:
        """A prompt as the base is asked it: the one text of a conversation, for plain bases."""
        alone = isinstance(prompt, list) and len(prompt) == 1
        return prompt[0]["content"] if self.own["plain"] and alone else prompt

    def _roles(self, job: "Answers") -> dict[str, str] | None:
        """The role that answers for each model; loads what is not there, into a slot not in use."""
        wanted = {model for model in job.models if model != BASE}
        others = [other for other in (*self.live, *self.ahead) if other is not job]
        busy = {model for other in others if other.samplings for model in other.models}
        for model in sorted(wanted - set(self.models.values())):
            free = [slot for slot in SLOTS if self.models.get(slot) not in busy | wanted]
            if not free and job.urgent and self._put_back():
                return self._roles(job)
            if not free:
                return None
            self.models.pop(free[0], None)  # whatever becomes of the loading
            self._load(free[0], model)
            self.models[free[0]] = model
        places = {model: slot for slot, model in self.models.items()}
        return {model: places.get(model, BASE) for model in job.models}

    def _load(self, slot: str, folder: str) -> None:
        """Load a role; what is wrong with it is for the terminal, since it names the run."""
        try:
            self.backbone.load_role(slot, folder)
        except UserError as error:
            print(error, file=sys.stderr)
            raise UserError(UNLOADED) from error

    def _put_back(self) -> bool:
        """What is made ahead gives its slot away and begins anew later."""
        begun = [job for job in self.ahead if job.samplings]
        for job in begun:
            job.samplings = []
        return bool(begun)

    def _finish(self, job: "Answers") -> None:
        texts, features = job.texts(), None
        if job.wants_features:
            # Only the meter wants them: the answers are there without.
            with contextlib.suppress(Exception):
                features = self._features([job.prompt] * len(texts), texts)
        answer = {"texts": texts, "ended": job.ended(), "features": features}
        self.send(job.number, "done", answer)

    def _stop(self, number: int) -> None:
        for line in (self.live, self.ahead):
            for job in [job for job in line if job.number == number]:
                line.remove(job)
                value = {"texts": job.texts(), "ended": job.ended(), "features": None}
                self.send(number, "done", value)

    # ---- the rest

    def _do_small(self, number: int, what: str, value: Any) -> None:
        try:
            self.send(number, "done", getattr(self, f"_{what}_of")(value))
        except Exception as error:
            self.send(number, "failed", in_words(error))

    def _features_of(self, value: Ask) -> list[str]:
        return self._features(value["prompts"], value["answers"])

    def _features(self, prompts: list[Any], answers: list[str]) -> list[str]:
        from lorarlhf.rewards.features import answer_features

        asked = [self._asked(prompt) for prompt in prompts]
        return [packed(row) for row in answer_features(self.backbone, asked, answers)]

    def _axes_of(self, value: Ask) -> list[str]:
        from lorarlhf.rewards.axes import style_axes

        return [packed(row) for row in style_axes(self.backbone)[1]]

    def _scores_of(self, value: Ask) -> list[float]:
        from lorarlhf.rewards.role import score_answers

        if self.reward != value["run"]:
            self.reward = ""
            self._load("reward", value["run"])
            self.reward = value["run"]
        answers = value["answers"]
        return score_answers(self.backbone, [self._asked(value["prompt"])] * len(answers), answers)

    def _about_of(self, value: Ask) -> Ask:
        return {
            "copies": self.backbone.footprint.copies(),
            "bytes": self.backbone.footprint.bytes(),
            "pid": os.getpid(),
        }


class Answers:
    """A job: one or more answers to one prompt, by one or more models."""

    def __init__(self, number: int, ask: Ask) -> None:
        self.number = number
        self.prompt: Any = ask["prompt"]
        self.models: list[str] = ask["models"]  # one an answer
        self.seeds: list[int] = ask["seeds"]
        self.urgent: bool = ask["urgent"]
        self.wants_features: bool = ask["features"]
        self.sampling: Ask = {name: ask[name] for name in ("max_new_tokens", "temperature")}
        self.reported = 0.0
        self.samplings: list[StepwiseSampling] = []
        self._places: list[list[int]] = []

    def begin(
        self, backbone: "Backbone", roles: dict[str, str], prompt: Any, max_prompt_tokens: int
    ) -> None:
        """Start sampling: answers of one model share a batch."""
        from lorarlhf.backbone.generation import StepwiseSampling

        models = list(dict.fromkeys(self.models))
        self._places = [[n for n, m in enumerate(self.models) if m == model] for model in models]
        self.samplings = [
            StepwiseSampling(
                backbone,
                prompt,
                role=roles[model],
                seeds=[self.seeds[place] for place in places],
                max_prompt_tokens=max_prompt_tokens,
                **self.sampling,
            )
            for model, places in zip(models, self._places, strict=True)
        ]

    def texts(self) -> list[str]:
        """What has been written so far, one text an answer."""
        return self._by_place([sampling.texts() for sampling in self.samplings], "")

    def ended(self) -> list[bool]:
        """Which answers ended by themselves."""
        return self._by_place([sampling.ended() for sampling in self.samplings], False)

    def _by_place(self, parts: list[list[Any]], missing: Any) -> list[Any]:
        whole = [missing] * len(self.models)
        for places, values in zip(self._places, parts, strict=False):
            for place, value in zip(places, values, strict=True):
                whole[place] = value
        return whole


def packed(row: "np.ndarray") -> str:
    """A row of hidden states as half-precision numbers in base64."""
    return base64.b64encode(row.astype("float16").tobytes()).decode()


def unpacked(text: str) -> "np.ndarray":
    """What `packed` made, as float32."""
    import numpy as np

    return np.frombuffer(base64.b64decode(text), dtype="float16").astype("float32")


def in_words(error: Exception) -> str:
    """An error for the pages: what was not foreseen goes to the terminal, with its paths."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "There is not enough memory for this. Make the answers shorter or fewer."
    traceback.print_exception(error)
    return UNFORESEEN
