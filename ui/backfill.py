"""Hidden states for votes that have none: imported votes, and votes cast before the end."""

import threading
from collections.abc import Callable
from queue import SimpleQueue

from lorarlhf.preferences.records import Vote
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.engine_client import READY, Engine
from lorarlhf_ui.hidden_states import HiddenStates

LONGEST_TEXT = 8000
"""Characters of the prompt and an answer; longer texts would block the engine for too long."""


class FeatureBackfill:
    """Requests hidden states from the engine, one vote after the other.

    The engine does this only when nobody waits for an answer.

    Args:
        engine: while it is not ready, requests are dropped; the meter repeats them later.
        states: where the hidden states are kept.
    """

    def __init__(self, engine: Engine, states: HiddenStates) -> None:
        self.engine, self.states = engine, states
        self._requested: set[tuple[str, int]] = set()  # feature space and vote
        self._queue: SimpleQueue[tuple[Vote, Callable[[], None]]] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="feature backfill").start()

    def fetch(self, vote: Vote, then: Callable[[], None]) -> None:
        """Request a vote's hidden states and return at once; `then` is called when they exist."""
        key = (self.states.space, vote.id)
        size = len(str(vote.prompt)) + max(map(len, vote.completions))
        if self.engine.state == READY and key not in self._requested and size <= LONGEST_TEXT:
            self._requested.add(key)
            self._queue.put((vote, then))

    def _work(self) -> None:
        while True:
            vote, then = self._queue.get()
            try:
                job = self.engine.features([vote.prompt] * len(vote.completions), vote.completions)
                self.states.put(vote.prompt, vote.completions, job.wait())
            except UserError:  # the engine has ended, or can't read these texts
                continue
            then()
