"""The process that holds the one backbone and does the pages' jobs, a few tokens at a time.

It is a process of its own, so that the pages stay fast while it computes and keep working if it
dies. Answers that raters wait for come before prefetched ones.
See `runtime.worker_pipe` for the messages.
"""

import base64
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from lorarlhf.evaluation.heat_map import WordShares
from lorarlhf.project.settings import Settings
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.process import lower_priority
from lorarlhf.runtime.worker_pipe import WorkerPipe, end_if_broken, ran_out_of_memory
from lorarlhf_ui.engine_jobs import AnswerJob, Request

if TYPE_CHECKING:
    import numpy as np

    from lorarlhf.backbone.base import Backbone

BASE = "base"
SLOTS = ("policy", "reference")
"""The roles that hold the runs' policies; there are two, so that two policies can be compared."""
TOKENS_PER_STEP = 4
SECONDS_BETWEEN_REPORTS = 0.08
LIVE_AT_ONCE = 4
PATIENT = ("features", "axes")
"""Small jobs that nobody waits for: they are done while no live answer is written."""

LONGEST_ESTIMATED = 600
"""Characters of an answer whose shares are estimated on a CPU. That takes 64 forwards and
backwards, and everybody else waits."""
TOO_LONG = (
    "This reward role reads the last token of an answer, and estimating what each word adds would "
    f"take minutes for more than {LONGEST_ESTIMATED} characters. With a reward role that scores "
    "the mean over an answer, the default, it takes a second."
)

STOPPED = "Nobody waits for this any more."
NOT_LOADED = "A model could not be loaded. The terminal of `lorarlhf ui` shows the reason."
UNEXPECTED = "An unexpected error occurred. The terminal of `lorarlhf ui` shows it."


def main(connection: Connection, settings: Callable[[], Settings]) -> None:
    """Load the base, report it, and work until the pages' end of the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the pages, and they end this process
    lower_priority()
    pipe = WorkerPipe(connection)
    try:
        from lorarlhf.project.load import load_backbone

        resolved = settings()
        worker = Worker(load_backbone(resolved), pipe, resolved.own)
    except Exception as error:
        pipe.send(0, "failed", describe(error))
        return
    worker.report_ready()
    while True:
        worker.receive()
        worker.step()


class Worker:
    """Works on the jobs in turns: live answers side by side, then the prefetched ones.

    Args:
        own: the settings `plain` and `max_prompt_tokens`.
    """

    def __init__(self, backbone: "Backbone", pipe: WorkerPipe, own: Request) -> None:
        self.backbone, self.pipe, self.own = backbone, pipe, own
        self.live: deque[AnswerJob] = deque()
        self.prefetched: deque[AnswerJob] = deque()
        self.small: deque[tuple[int, str, Any]] = deque()
        self.models: dict[str, str] = {}  # slot -> the folder of the adapter in it
        self.reward = ""

    def report_ready(self) -> None:
        """Report that the base is loaded, and its feature space."""
        from lorarlhf.backbone.storage import fingerprint

        space = f"{fingerprint(self.backbone)}-{self.backbone.split}"
        about = {"space": space, "base": self.backbone.base, "device": str(self.backbone.device)}
        self.send(0, "ready", about)

    def send(self, number: int, kind: str, value: Any) -> None:
        """Send a message to the pages."""
        self.pipe.send(number, kind, value)

    def fail(self, number: int, error: Exception) -> None:
        """Tell the pages why a job has failed; an error that breaks the device ends the process."""
        end_if_broken(error)
        self.send(number, "failed", describe(error))

    def receive(self) -> None:
        """Queue the requests that arrived; waits for one if there is nothing to do."""
        for number, kind, value in self.pipe.messages(self._is_idle):
            if kind == "stop":
                self._stop(value)
            elif kind == "answer":
                queue = self.live if value["urgent"] else self.prefetched
                queue.append(AnswerJob(number, value))
            else:
                self.small.append((number, kind, value))

    def _is_idle(self) -> bool:
        return not (self.live or self.prefetched or self.small)

    def step(self) -> None:
        """Generate a few tokens of the most urgent answers, or do one small job."""
        urgent = list(self.live)[:LIVE_AT_ONCE]
        ready = [job for job in self.small if not (urgent and job[1] in PATIENT)]
        if ready:  # the first one that need not wait, whatever stands before it
            self.small.remove(ready[0])
            self._do_small(*ready[0])
        if urgent:
            for job in urgent:
                self._advance(job, self.live)
        elif self.prefetched:
            self._advance(self.prefetched[0], self.prefetched)

    # ---- answers

    def _advance(self, job: AnswerJob, queue: deque[AnswerJob]) -> None:
        try:
            if not job.samplings and not self._begin(job):
                return  # its model has to wait for a slot
            for sampling in job.samplings:
                sampling.step(TOKENS_PER_STEP)
        except Exception as error:  # other jobs go on
            queue.remove(job)
            self.fail(job.number, error)
            return
        done = all(sampling.done for sampling in job.samplings)
        if done or time.monotonic() - job.reported >= SECONDS_BETWEEN_REPORTS:
            job.reported = time.monotonic()
            self.send(job.number, "texts", job.texts())
        if done:
            queue.remove(job)
            self._finish(job)

    def _begin(self, job: AnswerJob) -> bool:
        roles = self._roles(job)
        if roles is None:
            return False
        prompt = self._as_input(job.prompt)
        job.begin(self.backbone, roles, prompt, self.own["max_prompt_tokens"])
        return True

    def _as_input(self, prompt: Any) -> Any:
        """A prompt as the base takes it: plain bases take the only message as text."""
        single = isinstance(prompt, list) and len(prompt) == 1
        return prompt[0]["content"] if self.own["plain"] and single else prompt

    def _roles(self, job: AnswerJob) -> dict[str, str] | None:
        """The role that answers for each model; loads missing ones into slots not in use."""
        wanted = {model for model in job.models if model != BASE}
        others = [other for other in (*self.live, *self.prefetched) if other is not job]
        busy = {model for other in others if other.samplings for model in other.models}
        for model in sorted(wanted - set(self.models.values())):
            free = [slot for slot in SLOTS if self.models.get(slot) not in busy | wanted]
            if not free and job.urgent and self._restart_prefetched():
                return self._roles(job)
            if not free:
                return None
            self.models.pop(free[0], None)  # also if loading fails
            self._load(free[0], model)
            self.models[free[0]] = model
        places = {model: slot for slot, model in self.models.items()}
        return {model: places.get(model, BASE) for model in job.models}

    def _load(self, slot: str, folder: str) -> None:
        """Load a role. The terminal shows an error, and the page does not: it names the run."""
        try:
            self.backbone.load_role(slot, folder)
        except UserError as error:
            print(error, file=sys.stderr)
            raise UserError(NOT_LOADED) from error

    def _restart_prefetched(self) -> bool:
        """Free the slots of prefetched answers, which start again later."""
        begun = [job for job in self.prefetched if job.samplings]
        for job in begun:
            job.samplings = []
        return bool(begun)

    def _finish(self, job: AnswerJob) -> None:
        try:
            picked = self._pick(job)
        except Exception as error:  # the reward role, or its memory
            self.fail(job.number, error)
            return
        texts, features = job.texts(), None
        if job.wants_features:
            try:
                features = self._features([job.prompt] * len(texts), texts)
            except Exception as error:  # only the meter uses them; the answers are complete
                print(f"The meter misses an answer. {describe(error)}", file=sys.stderr)
        answer = {"texts": texts, "ended": job.ended(), "features": features}
        self.send(job.number, "done", answer | picked)

    def _pick(self, job: AnswerJob) -> Request:
        """Let the reward role pick each answer that is the best of several; how it was picked."""
        if not job.reward:
            return {}
        from lorarlhf.rewards.best_of import kl_bound

        self._use_reward(job.reward)
        scores = job.pick(self._score(job.prompt, job.candidates()))
        return {"scores": scores, "bounds": [kl_bound(count) for count in job.counts]}

    def _stop(self, number: int) -> None:
        for queue in (self.live, self.prefetched):
            for job in [job for job in queue if job.number == number]:
                queue.remove(job)
                value = {"texts": job.texts(), "ended": job.ended(), "features": None}
                self.send(number, "done", value)
        for small in [small for small in self.small if small[0] == number]:
            self.small.remove(small)
            self.send(number, "failed", STOPPED)

    # ---- small jobs

    def _do_small(self, number: int, kind: str, value: Any) -> None:
        try:
            self.send(number, "done", getattr(self, f"_{kind}_of")(value))
        except Exception as error:
            self.fail(number, error)

    def _features_of(self, value: Request) -> list[str]:
        return self._features(value["prompts"], value["answers"])

    def _features(self, prompts: list[Any], answers: list[str]) -> list[str]:
        from lorarlhf.rewards.features import answer_features

        inputs = [self._as_input(prompt) for prompt in prompts]
        return [packed(row) for row in answer_features(self.backbone, inputs, answers)]

    def _direction_of(self, value: Request) -> str:
        from lorarlhf.rewards.axes import NEUTRAL_PROMPT
        from lorarlhf.rewards.features import answer_features

        first, second = answer_features(self.backbone, [NEUTRAL_PROMPT] * 2, value["texts"])
        return packed(first - second)

    def _axes_of(self, value: Request) -> list[str]:
        from lorarlhf.rewards.axes import style_axes

        return [packed(row) for row in style_axes(self.backbone)[1]]

    def _scores_of(self, value: Request) -> list[float]:
        self._use_reward(value["run"])
        return self._score(value["prompt"], value["answers"])

    def _shares_of(self, value: Request) -> list[WordShares]:
        from lorarlhf.rewards.token_shares import token_shares, words_of

        self._use_reward(value["run"])
        estimated = self.backbone.heads["reward"].pooling == "last"
        longest = max(map(len, value["answers"]), default=0)
        if estimated and self.backbone.device.type == "cpu" and longest > LONGEST_ESTIMATED:
            raise UserError(TOO_LONG)
        prompt = self._as_input(value["prompt"])
        found = [token_shares(self.backbone, prompt, answer) for answer in value["answers"]]
        return [WordShares(one.score, words_of(one), one.rest, one.exact) for one in found]

    def _score(self, prompt: Any, answers: list[str]) -> list[float]:
        from lorarlhf.rewards.role import score_answers

        return score_answers(self.backbone, [self._as_input(prompt)] * len(answers), answers)

    def _use_reward(self, folder: str) -> None:
        """Load the reward role of a folder, unless it is the one that is there."""
        if self.reward != folder:
            self.reward = ""
            self._load("reward", folder)
            self.reward = folder

    def _about_of(self, value: Request) -> Request:
        return {
            "copies": self.backbone.footprint.copies(),
            "bytes": self.backbone.footprint.bytes(),
            "pid": os.getpid(),
        }


def packed(row: "np.ndarray") -> str:
    """A row of hidden states (F,) as half-precision numbers in base64."""
    return base64.b64encode(row.astype("float16").tobytes()).decode()


def unpacked(text: str) -> "np.ndarray":
    """The row (F,) that `packed` packed, as float32."""
    import numpy as np

    return np.frombuffer(base64.b64decode(text), dtype="float16").astype("float32")


def describe(error: Exception) -> str:
    """An error as the pages show it; the terminal shows unexpected ones, with their paths."""
    if isinstance(error, UserError):
        return str(error)
    if ran_out_of_memory(error):
        return "There is not enough memory for this. Make the answers shorter or fewer."
    traceback.print_exception(error)
    return UNEXPECTED
