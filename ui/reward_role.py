"""The newest reward role of a project, as the pages ask it: scores, and what each word adds."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lorarlhf.evaluation.heat_map import heat_maps
from lorarlhf.preferences.records import Prompt
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.backfill import LONGEST_TEXT
from lorarlhf_ui.engine_client import SILENT, Engine, Job

SECONDS = 120
"""How long a page waits for the model."""
WAITING = 4
"""How many requests may wait for the model. Each holds one of the server's 40 threads, and without
a free thread no page would answer."""
REMEMBERED = 3.0
"""Seconds for which it is known whether there is a reward role: a page that shows growing answers
asks twice a second, and looking reads a file of every run."""
NO_REWARD = "There is no reward model in this project yet: train one on the Train page."
BUSY = "The model is busy. Ask again later."
TOO_LONG = (
    f"The prompt and the answer have more than {LONGEST_TEXT:,} characters together: finding out "
    "what each word adds would take too much memory."
)
_waiting = threading.BoundedSemaphore(WAITING)


class RewardRole:
    """Asks the engine for what the newest finished reward role says.

    Args:
        project: its runs have the reward roles.
        engine: the process with the model.
    """

    def __init__(self, project: Project, engine: Engine) -> None:
        self.project, self.engine = project, engine
        self._looked, self._there = -REMEMBERED, False

    def is_there(self) -> bool:
        """Whether there are a reward role and a model that can read its scores.

        A new run is noticed `REMEMBERED` seconds later.
        """
        if self.engine.state in SILENT:
            return False
        now = time.monotonic()
        if now - self._looked >= REMEMBERED:
            self._there, self._looked = self._newest() is not None, now
        return self._there

    def adapter(self) -> Path:
        """The folder of its adapter.

        Raises:
            UserError: there is no reward role yet.
        """
        run = self._newest()
        if run is None:
            raise UserError(NO_REWARD)
        return run / "adapters" / "reward"

    def scores(self, prompt: Prompt, answers: Sequence[str]) -> list[float]:
        """The scores of answers to one prompt.

        Raises:
            UserError: there is no reward role, the engine failed, or it is busy for too long.
        """
        adapter = self.adapter()
        return result_of(self.engine, lambda: self.engine.scores(adapter, prompt, answers))

    def heat_maps(self, prompt: Prompt, answers: Sequence[str]) -> list[str]:
        """What each word of these answers adds to their scores, as HTML.

        Raises:
            UserError: as in `scores`, or the texts are longer than `LONGEST_TEXT`.
        """
        adapter = self.adapter()
        if len(str(prompt)) + max(map(len, answers), default=0) > LONGEST_TEXT:
            raise UserError(TOO_LONG)
        return heat_maps(
            result_of(self.engine, lambda: self.engine.shares(adapter, prompt, answers))
        )

    def _newest(self) -> Path | None:
        return self.project.newest_with("reward")


def result_of(engine: Engine, ask: Callable[[], Job]) -> Any:
    """The result of a small job that a page waits for.

    Args:
        ask: sends the job to the engine.

    Raises:
        UserError: the job failed, `WAITING` requests wait already, or it took `SECONDS`.
    """
    if not _waiting.acquire(blocking=False):
        raise UserError(BUSY)
    try:
        job = ask()
        try:
            return job.wait(SECONDS)
        except TimeoutError as error:
            engine.stop(job)
            raise UserError(BUSY) from error
    finally:
        _waiting.release()
