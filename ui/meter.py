"""The live meter: how often the reward head guesses a rater's next vote, as the votes come in.

Each vote is guessed by a head that was fitted to the earlier ones only (prequential evaluation;
Dawid 1984), so the figure is honest from the first vote on. The fit costs milliseconds on kept
hidden states and runs in a thread of its own.
"""

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from lorarlhf.preferences.exports import better_and_worse
from lorarlhf.preferences.records import RANKED, Vote
from lorarlhf.preferences.store import Store
from lorarlhf_ui.hidden_states import HiddenStates

if TYPE_CHECKING:
    from lorarlhf.rewards.fit import HeadFit, VoteFit

MOST_VOTES = 400
"""Newest votes that the head is fitted to: the fit's time grows with their third power."""
FEWEST_VOTES = 4
"""Before so many there is no guess."""
NEWEST_GUESSES = 100
"""The report is about so many of the newest guesses: the head of today, not that of the start."""


class Meter:
    """Guesses each rater's votes and counts how often it was right.

    Args:
        store: of the votes; guesses are kept there. A store of its own, so that nobody waits for
            long reading.
        states: the kept hidden states.
    """

    def __init__(self, store: Store, states: HiddenStates) -> None:
        self.store, self.states = store, states
        self._fits: dict[str, tuple[VoteFit, HeadFit | None]] = {}
        self._asked: deque[tuple[str, int | None]] = deque()
        self._wake = threading.Condition()
        threading.Thread(target=self._work, daemon=True, name="meter").start()

    def voted(self, rater: str, vote: int) -> None:
        """A new vote: guess it, then learn from it. Returns at once."""
        self._ask(rater, vote)

    def changed(self, rater: str) -> None:
        """Votes of this rater were taken back or corrected: learn anew."""
        self._ask(rater, None)

    def wait(self, seconds: float = 10.0) -> bool:
        """Until all that was asked is done; for tests and benchmarks."""
        with self._wake:
            return self._wake.wait_for(lambda: not self._asked, seconds)

    def report(self, rater: str) -> dict[str, Any]:
        """Guesses of late: how many, the share that was right with its 95% interval (Wilson).

        `longer` and `chance` are the shares of the longest answer and of blind guessing, on the
        same votes.
        """
        rows = self.store.rows(
            "SELECT g.model, g.longer, g.chance, g.votes FROM guess g "
            "JOIN current_judgement c ON c.id = g.judgement_id "
            "JOIN presentation p ON p.id = c.presentation_id JOIN rater r ON r.id = p.rater_id "
            "WHERE r.name = ? ORDER BY g.judgement_id DESC LIMIT ?",
            (rater, NEWEST_GUESSES),
        )
        if not rows:
            return {"guesses": 0}
        from lorarlhf.evaluation.win_rate import wilson_interval

        count = len(rows)
        right, longer, chance = (sum(row[n] for row in rows) / count for n in range(3))
        low, high = wilson_interval(right, count)
        figures = {"right": right, "low": low, "high": high, "longer": longer, "chance": chance}
        return {"guesses": count, "votes": rows[0]["votes"], **figures}

    # ---- in the thread

    def _ask(self, rater: str, vote: int | None) -> None:
        with self._wake:
            self._asked.append((rater, vote))
            self._wake.notify_all()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: bool(self._asked))
                rater, vote = self._asked[0]
            try:
                self._do(rater, vote)
            except Exception as error:  # the meter must never stand in the way of voting
                self._fits.pop(rater, None)
                print(f"The meter left a vote of {rater} out: {error}")
            with self._wake:
                self._asked.popleft()
                self._wake.notify_all()

    def _do(self, rater: str, number: int | None) -> None:
        if number is None:
            self._fits[rater] = self._learn(rater, before=None)
            return
        vote = self.store.vote(number)
        if vote is None or vote.purpose != "train":
            return
        if rater not in self._fits:
            self._fits[rater] = self._learn(rater, before=number)
        fit, head = self._fits[rater]
        if head is not None:
            self._guess(vote, head, len(fit))
        if not _add(fit, vote, self.states):
            return
        full = len(fit) > MOST_VOTES
        few = 3 * MOST_VOTES // 4  # so that not every vote from here on reads all of them anew
        self._fits[rater] = self._learn(rater, None, few) if full else (fit, _fitted(fit))

    def _learn(
        self, rater: str, before: int | None, newest: int = MOST_VOTES
    ) -> "tuple[VoteFit, HeadFit | None]":
        """A fit to the rater's votes as they stand."""
        from lorarlhf.rewards.fit import VoteFit

        fit = VoteFit(self.states.axes())
        for vote in self.store.votes(rater=rater, purpose="train", newest=newest):
            if vote.id != before and len(fit) < MOST_VOTES:
                _add(fit, vote, self.states)
        return fit, _fitted(fit)

    def _guess(self, vote: Vote, head: "HeadFit", votes: int) -> None:
        best = vote.verdict.ranking[0] if vote.verdict.verdict == RANKED else []
        rows = self.states.get(vote.prompt, vote.completions) if best else None
        if rows is None or vote.repeats is not None:
            return
        model = _share_on_top([float(score) for score in head.score(rows)], best)
        longer = _share_on_top([float(len(text)) for text in vote.completions], best)
        values = (vote.id, model, longer, len(best) / len(rows), votes, int(1000 * time.time()))
        with self.store.write() as db:
            db.execute("INSERT OR IGNORE INTO guess VALUES (?, ?, ?, ?, ?, ?)", values)


def _add(fit: "VoteFit", vote: Vote, states: HiddenStates) -> bool:
    """Add a vote's pairs; False where it has none, or its hidden states are not known."""
    pairs = list(better_and_worse(vote))
    known = states.get(vote.prompt, vote.completions)
    if not pairs or known is None:
        return False
    rows = dict(zip(vote.completions, known, strict=True))
    added = False
    for better, worse in pairs:
        if better in rows and worse in rows:  # not an answer that the rater wrote
            fit.add(rows[better], rows[worse], str(vote.prompt))
            added = True
    return added


def _fitted(fit: "VoteFit") -> "HeadFit | None":
    return fit.fit() if len(fit) >= FEWEST_VOTES else None


def _share_on_top(scores: list[float], best: list[int]) -> float:
    """The chance that the highest-scored answer, drawn among equals, is one of the best."""
    top = [place for place, score in enumerate(scores) if score == max(scores)]
    return sum(place in best for place in top) / len(top)
