"""Hidden states of votes that came without them: imported ones, and those cast before the end."""

import threading
from collections.abc import Callable
from queue import SimpleQueue

from lorarlhf.preferences.records import Vote
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.engine_client import READY, Engine
from lorarlhf_ui.hidden_states import HiddenStates

LONGEST_TEXT = 8000
"""Characters of the prompt and an answer; longer ones would keep the engine busy for too long."""


class FeatureBackfill:
    """Asks the engine for them, one vote after the other, when nobody waits for an answer.

    Args:
        engine: while it is not ready nothing is asked; the meter asks again with a later vote.
        states: where they are kept.
    """

    def __init__(self, engine: Engine, states: HiddenStates) -> None:
        self.engine, self.states = engine, states
        self._asked: set[tuple[str, int]] = set()  # votes, each once in a space
        self._queue: SimpleQueue[tuple[Vote, Callable[[], None]]] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="catching up").start()

    def fetch(self, vote: Vote, then: Callable[[], None]) -> None:
        """Have a vote's hidden states kept, and call `then`; returns at once."""
        key = (self.states.space, vote.id)
        size = len(str(vote.prompt)) + max(map(len, vote.completions))
        if self.engine.state == READY and key not in self._asked and size <= LONGEST_TEXT:
            self._asked.add(key)
            self._queue.put((vote, then))

    def _work(self) -> None:
        while True:
            vote, then = self._queue.get()
            try:
                job = self.engine.features([vote.prompt] * len(vote.completions), vote.completions)
                self.states.put(vote.prompt, vote.completions, job.wait())
            except UserError:  # the engine is gone, or can't: left out
                continue
            then()
