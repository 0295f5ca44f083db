"""Hidden states for votes that have none: imported votes, and votes cast before the end."""

import threading
from collections.abc import Callable

from lorarlhf.preferences.records import Vote
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.engine_client import READY, Engine
from lorarlhf_ui.hidden_states import HiddenStates

LONGEST_TEXT = 8000
"""Characters of the prompt and an answer; longer texts would block the engine for too long."""

Key = tuple[str, int, tuple[str, ...]]  # feature space, vote and answers


class FeatureBackfill:
    """Requests hidden states from the engine, one vote after the other, the newest vote first.

    The engine does this only when nobody waits for an answer. Several threads may ask for the same
    vote; it is read once.

    Args:
        engine: while it is not ready, requests are dropped; the meter repeats them later.
        states: where the hidden states are kept.
    """

    def __init__(self, engine: Engine, states: HiddenStates) -> None:
        self.engine, self.states = engine, states
        self._changed = threading.Condition()
        self._waiting: dict[Key, Vote] = {}
        self._thens: dict[Key, list[Callable[[], None]]] = {}  # until the vote has been read
        self._requested: set[Key] = set()
        threading.Thread(target=self._work, daemon=True, name="feature backfill").start()

    def fetch(self, vote: Vote, then: Callable[[], None]) -> None:
        """Request a vote's hidden states and return at once.

        `then` is called when they exist. It is not called for a vote that the engine can't read.
        """
        if self.engine.state != READY:
            return
        if len(str(vote.prompt)) + max(map(len, vote.completions)) > LONGEST_TEXT:
            return
        # A pair of thumbs has the number of the later one, with whatever other one is beside it.
        key = (self.states.space, vote.id, tuple(vote.completions))
        with self._changed:
            if key in self._thens:
                self._thens[key].append(then)
                return
            if key not in self._requested:
                self._requested.add(key)
                self._waiting[key], self._thens[key] = vote, [then]
                self._changed.notify()
                return
        # It was read since the caller looked, or it can't be read.
        if self.states.get(vote.prompt, vote.completions) is not None:
            then()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                key = max(self._waiting, key=lambda waiting: waiting[1])
                vote = self._waiting.pop(key)
            known = self._read(vote)
            with self._changed:
                thens = self._thens.pop(key)
            for then in thens if known else ():
                then()

    def _read(self, vote: Vote) -> bool:
        """Whether the hidden states are there now."""
        try:
            job = self.engine.features([vote.prompt] * len(vote.completions), vote.completions)
            self.states.put(vote.prompt, vote.completions, job.wait())
        except UserError:  # the engine has ended, or can't read these texts
            return False
        return True
