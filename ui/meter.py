"""The live meter: how often the reward head guesses a rater's next vote, as the votes come in.

Each vote is guessed by a head that was fitted to the earlier ones only (prequential evaluation;
Dawid 1984), so the figure is honest from the first vote on. The fit costs milliseconds on kept
hidden states and runs in a thread of its own.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorarlhf.preferences.exports import better_and_worse
from lorarlhf.preferences.guesses import Guess, add_guess, newest_guesses
from lorarlhf.preferences.records import RANKED, Vote
from lorarlhf.preferences.store import Store
from lorarlhf_ui.hidden_states import HiddenStates

if TYPE_CHECKING:
    import numpy as np

    from lorarlhf.rewards.fit import HeadFit, VoteFit

MOST_PAIRS = 400
"""Newest pairs that the head is fitted to: the fit's time grows with their third power."""
FEWEST_PAIRS = 4
"""Before so many there is no guess."""
NEWEST_GUESSES = 100
"""The report is about so many of the newest guesses: the head of today, not that of the start."""


@dataclass
class Learned:
    """What is known of a rater.

    Attributes:
        space: of the hidden states, and whether its style axes were known.
        head: None while there are too few pairs.
        votes: that the head was fitted to.
    """

    space: tuple[str, bool]
    fit: "VoteFit"
    head: "HeadFit | None" = None
    votes: set[int] = field(default_factory=set)


class Meter:
    """Guesses each rater's votes and counts how often it was right.

    Args:
        store: of the votes; guesses are kept there. A store of its own, so that nobody waits for
            long reading.
        states: the kept hidden states.
        fetch: called with a vote whose hidden states are not kept, and with what to call when they
            are.
    """

    def __init__(
        self,
        store: Store,
        states: HiddenStates,
        fetch: Callable[[Vote, Callable[[], None]], None] = lambda vote, then: None,
    ) -> None:
        self.store, self.states, self.fetch = store, states, fetch
        self._learned: dict[str, Learned] = {}
        self._done: set[int] = set()
        self._asked: deque[tuple[str, int | None, bool]] = deque()
        self._wake = threading.Condition()
        threading.Thread(target=self._work, daemon=True, name="meter").start()

    def voted(self, rater: str, vote: int) -> None:
        """A new vote: guess it, then learn from it. Returns at once."""
        self._ask(rater, vote)

    def changed(self, rater: str) -> None:
        """Votes of this rater were taken back or corrected: learn anew."""
        self._ask(rater, None)

    def wait(self, seconds: float = 600.0) -> bool:
        """Until all that was asked is done; for tests and benchmarks."""
        with self._wake:
            return self._wake.wait_for(lambda: not self._asked, seconds)

    def report(self, rater: str) -> dict[str, Any]:
        """Guesses of late: how many, the share that was right with its 95% interval (Wilson).

        `longer` and `chance` are the shares of the longest answer and of blind guessing, on the
        same votes.
        """
        guesses = newest_guesses(self.store, rater, NEWEST_GUESSES)
        if not guesses:
            return {"guesses": 0}
        from lorarlhf.evaluation.win_rate import wilson_interval

        count = len(guesses)
        figures_of = [(guess.model, guess.longer, guess.chance) for guess in guesses]
        right, longer, chance = (sum(column) / count for column in zip(*figures_of, strict=True))
        low, high = wilson_interval(right, count)
        figures = {"right": right, "low": low, "high": high, "longer": longer, "chance": chance}
        return {"guesses": count, "votes": guesses[0].votes, **figures}

    # ---- in the thread

    def _ask(self, rater: str, vote: int | None, late: bool = False) -> None:
        with self._wake:
            self._asked.append((rater, vote, late))
            self._wake.notify_all()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: bool(self._asked))
                rater, vote, late = self._asked[0]
            try:
                self._do(rater, vote, late)
            except Exception as error:  # the meter must never stand in the way of voting
                self._learned.pop(rater, None)
                print(f"The meter left a vote of {rater} out: {error}")
            with self._wake:
                self._asked.popleft()
                self._wake.notify_all()

    def _do(self, rater: str, number: int | None, late: bool) -> None:
        if number is None:
            self._learned[rater] = self._learn(rater)
            return
        vote = self.store.vote(number)
        if vote is None or vote.purpose != "train":
            return
        if late:
            self._learn_late(rater, vote)
            return
        if number in self._done:
            return
        self._done.add(number)  # a second click sends the same vote
        known = self._learned.get(rater)
        # What was read from the store meanwhile may have this vote in it; it must not guess it.
        if known is None or number in known.votes or known.space != self._space():
            known = self._learned[rater] = self._learn(rater, before=vote)
        if known.head is not None:
            self._guess(vote, known.head, len(known.votes))
        if self._teach(known, vote):
            self._refit(rater, known)

    def _learn_late(self, rater: str, vote: Vote) -> None:
        """From a vote whose hidden states came after it; it is not guessed any more."""
        known = self._learned.get(rater)
        if known is None or known.space != self._space() or vote.id in known.votes:
            return  # the next vote learns anew, or it is learned already
        if self._teach(known, vote):
            self._refit(rater, known)

    def _refit(self, rater: str, known: Learned) -> None:
        if len(known.fit) > MOST_PAIRS:  # by a quarter fewer, so that not every vote gets here
            self._learned[rater] = self._learn(rater, most=3 * MOST_PAIRS // 4)
        else:
            known.head = _fitted(known.fit)

    def _space(self) -> tuple[str, bool]:
        return self.states.space, self.states.axes() is not None

    def _learn(self, rater: str, before: Vote | None = None, most: int = MOST_PAIRS) -> Learned:
        """A fit to the rater's newest votes as they stand, those cast before a vote."""
        from lorarlhf.rewards.fit import VoteFit

        found: list[Vote] = []
        pairs = 0
        for vote in reversed(self.store.votes(rater=rater, purpose="train", newest=MOST_PAIRS)):
            if before is not None and (vote.created_at, vote.id) >= (before.created_at, before.id):
                continue
            pairs += len(_pairs(vote, self.states))
            if pairs > most:
                break
            found.append(vote)
        known = Learned(self._space(), VoteFit(self.states.axes()))
        for vote in reversed(found):
            self._teach(known, vote)
        known.head = _fitted(known.fit)
        return known

    def _teach(self, known: Learned, vote: Vote) -> bool:
        """Add a vote's pairs; False where it has none, or its hidden states are not known yet."""
        pairs = _pairs(vote, self.states)
        if not pairs and list(better_and_worse(vote)):
            self.fetch(vote, lambda: self._ask(vote.rater, vote.id, late=True))
        for better, worse in pairs:
            known.fit.add(better, worse, str(vote.prompt))
        if pairs:
            known.votes.add(vote.id)
        return bool(pairs)

    def _guess(self, vote: Vote, head: "HeadFit", votes: int) -> None:
        best = vote.verdict.ranking[0] if vote.verdict.verdict == RANKED else []
        rows = self.states.get(vote.prompt, vote.completions) if best else None
        if rows is None or vote.repeats is not None:
            return
        model = _share_on_top([float(score) for score in head.score(rows)], best)
        longer = _share_on_top([float(len(text)) for text in vote.completions], best)
        add_guess(self.store, Guess(vote.id, model, longer, len(best) / len(rows), votes))


def _pairs(vote: Vote, states: HiddenStates) -> "list[tuple[np.ndarray, np.ndarray]]":
    """Hidden states of the better and the worse answer, of each pair that a vote orders."""
    texts = list(better_and_worse(vote))
    known = states.get(vote.prompt, vote.completions) if texts else None
    if known is None:
        return []
    rows = dict(zip(vote.completions, known, strict=True))
    # An answer that the rater wrote has none.
    return [(rows[a], rows[b]) for a, b in texts if a in rows and b in rows]


def _fitted(fit: "VoteFit") -> "HeadFit | None":
    return fit.fit() if len(fit) >= FEWEST_PAIRS else None


def _share_on_top(scores: list[float], best: list[int]) -> float:
    """The chance that the highest-scored answer, drawn among equals, is one of the best."""
    top = [place for place, score in enumerate(scores) if score == max(scores)]
    return sum(place in best for place in top) / len(top)
