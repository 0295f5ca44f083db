"""The live meter: how often a reward head predicts a rater's next vote correctly.

Each vote is predicted by a head that was fitted to the earlier votes only (prequential evaluation;
Dawid 1984), so no vote is predicted by a head that has seen it. With cached hidden states the fit
takes milliseconds. It runs in a thread of its own.

A prediction also says how sure it is, by the head's posterior. No page shows a prediction before
the vote, since that would sway the rater.
"""

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorarlhf.preferences.exports import better_and_worse
from lorarlhf.preferences.guesses import Guess, add_guess, newest_guesses
from lorarlhf.preferences.records import RANKED, Vote
from lorarlhf.preferences.single_answers import in_pairs
from lorarlhf.preferences.statistics import count_ordered_pairs
from lorarlhf.preferences.store import Store
from lorarlhf_ui.hidden_states import HiddenStates
from lorarlhf_ui.information_order import MOST_RATERS

if TYPE_CHECKING:
    import numpy as np

    from lorarlhf.rewards.posterior import Posterior
    from lorarlhf.rewards.vote_fit import VoteFit

MAX_PAIRS = 400
"""The head is fitted to at most so many of the newest pairs; its time grows with their cube."""
MIN_PAIRS = 4
"""With fewer pairs there is no prediction."""
NEWEST_GUESSES = 100
"""The report covers so many of the newest predictions, since early heads had few votes."""
SURE = 0.75
"""A prediction is sure if, as the head sees it, its answer wins three times in four or more."""
FEWEST_TO_ADVISE, GROWTH = 40, 0.2
"""The pairs from which the meter says whether more votes would help, and how many new ones there
are, as a share of those it looked at, until it looks again: a learning curve takes seconds."""


@dataclass
class RaterHead:
    """The reward head that is fitted to a rater's votes.

    Attributes:
        space: the feature space, and whether its style axes were known.
        head: None while there are too few pairs.
        votes: the numbers of the votes in the fit.
    """

    space: tuple[str, bool]
    fit: "VoteFit"
    head: "Posterior | None" = None
    votes: set[int] = field(default_factory=set)


class Meter:
    """Predicts each rater's votes and counts the correct predictions.

    Args:
        store: the votes and the predictions. A store of its own, so that votes do not wait while
            it reads.
        states: the cached hidden states.
        fetch: called with a vote whose hidden states are missing, and with a function to call once
            they are there.
        learned: called with a rater and the rater's head, after each vote; with None if there are
            too few votes for one.
    """

    def __init__(
        self,
        store: Store,
        states: HiddenStates,
        fetch: Callable[[Vote, Callable[[], None]], None] = lambda vote, then: None,
        learned: "Callable[[str, Posterior | None], None]" = lambda rater, head: None,
    ) -> None:
        self.store, self.states, self.fetch, self.learned = store, states, fetch, learned
        self._requests = Store(store.path)  # does not wait while the thread reads
        self._heads: OrderedDict[str, RaterHead] = OrderedDict()  # the latest rater's last
        self._done: set[int] = set()
        self._advice: dict[str, tuple[int, str]] = {}  # with the pairs that it was computed from
        self._since: Counter[str] = Counter()  # pairs that were added since then
        self._advising = threading.Lock()
        self._queue: deque[tuple[str, int | Vote | None]] = deque()
        self._wake = threading.Condition()
        threading.Thread(target=self._work, daemon=True, name="meter").start()

    def voted(self, rater: str, vote: int) -> None:
        """A new vote: predict it, then add it to the fit. Returns at once."""
        self._enqueue(rater, vote)

    def changed(self, rater: str) -> None:
        """Votes of this rater were undone or corrected: fit again. Returns at once."""
        self._enqueue(rater, None)

    def wait(self, seconds: float = 600.0) -> bool:
        """Wait until the queue is empty; for tests and benchmarks."""
        with self._wake:
            return self._wake.wait_for(lambda: not self._queue, seconds)

    def report(self, rater: str) -> dict[str, Any]:
        """The newest predictions of a rater's votes.

        Returns:
            `guesses`: their number; `right`, `low`, `high`: the share of correct ones and its 95%
            interval (Wilson); `longer`, `chance`: the shares that "the longest answer" and a random
            choice get on the same votes; `votes`: the votes in the newest fit; `sure`: how many of
            the predictions were sure (`SURE`), and if there are any, `sure_right`, `sure_low` and
            `sure_high`: how often those were correct; `more`: whether more votes would help, in a
            sentence, once it is known.
        """
        guesses = newest_guesses(self._requests, rater, NEWEST_GUESSES)
        if not guesses:
            return {"guesses": 0}
        from lorarlhf.evaluation.win_rate import wilson_interval

        count = len(guesses)
        figures_of = [(guess.model, guess.longer, guess.chance) for guess in guesses]
        right, longer, chance = (sum(column) / count for column in zip(*figures_of, strict=True))
        low, high = wilson_interval(right, count)
        figures = {"right": right, "low": low, "high": high, "longer": longer, "chance": chance}
        sure = [guess.model for guess in guesses if (guess.confidence or 0.0) >= SURE]
        figures["sure"] = len(sure)
        if sure:
            share = sum(sure) / len(sure)
            low, high = wilson_interval(share, len(sure))
            figures |= {"sure_right": share, "sure_low": low, "sure_high": high}
        advice = {"more": self._advice[rater][1]} if rater in self._advice else {}
        return {"guesses": count, "votes": guesses[0].votes, **figures, **advice}

    # ---- in the thread

    def _enqueue(self, rater: str, vote: int | Vote | None) -> None:
        """Queue the number of a new vote, a vote whose hidden states came late, or a new fit."""
        with self._wake:
            self._queue.append((rater, vote))
            self._wake.notify_all()

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: bool(self._queue))
                rater, vote = self._queue[0]
            try:
                self._handle(rater, vote)
                self._keep(rater)
            except Exception as error:  # voting must go on without the meter
                self._heads.pop(rater, None)
                print(f"The meter skipped a vote of {rater}: {error}")
            with self._wake:
                self._queue.popleft()
                self._wake.notify_all()

    def _keep(self, rater: str) -> None:
        """Pass the rater's head on, and drop those of other raters beyond `MOST_RATERS`.

        The next vote of a dropped rater starts a new fit.
        """
        known = self._heads.get(rater)
        if known is None or known.space[0] != self.states.space:
            return
        self._heads.move_to_end(rater)
        while len(self._heads) > MOST_RATERS:
            self._heads.popitem(last=False)
        self.learned(rater, known.head)

    def _handle(self, rater: str, number: int | Vote | None) -> None:
        if number is None:
            self._heads[rater] = self._fit_newest(rater)
            return
        if isinstance(number, Vote):  # perhaps made of two single answers, and so not in the store
            if self.store.vote(number.id) is not None:
                self._add_late(rater, number)
            return
        vote = self.store.vote(number)
        if vote is None or vote.purpose != "train":
            return
        if number in self._done:
            return
        self._done.add(number)  # a page may send a vote twice
        known = self._heads.get(rater)
        # A fit that was read from the store in the meantime may contain this vote already.
        if known is None or number in known.votes or known.space != self._space():
            known = self._heads[rater] = self._fit_newest(rater, before=vote)
        if known.head is not None:
            self._predict(vote, known.head, len(known.votes))
        if pairs := self._add_pairs(known, vote):
            self._refit(rater, known, pairs)

    def _add_late(self, rater: str, vote: Vote) -> None:
        """Add a vote whose hidden states came after it; it is too late to predict it."""
        known = self._heads.get(rater)
        if known is None or known.space != self._space() or vote.id in known.votes:
            return  # the next vote starts a new fit, or this one is in the fit already
        if pairs := self._add_pairs(known, vote):
            self._refit(rater, known, pairs)

    def _refit(self, rater: str, known: RaterHead, added: int) -> None:
        if len(known.fit) > MAX_PAIRS:  # drop a quarter, so that this does not happen at each vote
            self._heads[rater] = self._fit_newest(rater, most=3 * MAX_PAIRS // 4)
        else:
            known.head = _fitted(known.fit)
        self._advise(rater, self._heads[rater].fit, added)

    def _advise(self, rater: str, fit: "VoteFit", added: int) -> None:
        """Find out, in a thread of its own, whether more votes would help; one rater at a time."""
        # The size of the fit would not do: it stays below `MAX_PAIRS`.
        self._since[rater] += added
        due = GROWTH * self._advice.get(rater, (0, ""))[0]
        if len(fit) < FEWEST_TO_ADVISE or self._since[rater] < due:
            return
        if not self._advising.acquire(blocking=False):
            return
        self._since[rater] = 0
        copy = fit.subset(range(len(fit)), fit.blend)

        def look_ahead() -> None:
            from lorarlhf.rewards.learning_curve import forecast, headline

            try:
                count = count_ordered_pairs(self.store, rater)
                self._advice[rater] = (len(copy), headline(forecast(copy, of=count)))
            finally:
                self._advising.release()

        threading.Thread(target=look_ahead, daemon=True, name="learning curve").start()

    def _space(self) -> tuple[str, bool]:
        return self.states.space, self.states.axes() is not None

    def _fit_newest(
        self, rater: str, before: Vote | None = None, most: int = MAX_PAIRS
    ) -> RaterHead:
        """Fit a head to the rater's newest votes; only to those cast before the vote `before`."""
        from lorarlhf.rewards.vote_fit import VoteFit

        found: list[Vote] = []
        pairs = 0
        newest = self.store.votes(rater=rater, purpose="train", newest=MAX_PAIRS)
        for vote in reversed(in_pairs(newest)):
            if before is not None and (vote.created_at, vote.id) >= (before.created_at, before.id):
                continue
            pairs += len(_pairs(vote, self.states))
            if pairs > most:
                break
            found.append(vote)
        known = RaterHead(self._space(), VoteFit(self.states.axes()))
        for vote in reversed(found):
            self._add_pairs(known, vote)
        known.head = _fitted(known.fit)
        return known

    def _add_pairs(self, known: RaterHead, vote: Vote) -> int:
        """Add a vote's pairs; their number, 0 if its hidden states are missing."""
        pairs = _pairs(vote, self.states)
        if not pairs and list(better_and_worse(vote)):
            self.fetch(vote, lambda: self._enqueue(vote.rater, vote))
        for better, worse in pairs:
            known.fit.add(better, worse, str(vote.prompt))
        if pairs:
            known.votes.add(vote.id)
        return len(pairs)

    def _predict(self, vote: Vote, head: "Posterior", votes: int) -> None:
        best = vote.verdict.ranking[0] if vote.verdict.verdict == RANKED else []
        rows = self.states.get(vote.prompt, vote.completions) if best else None
        if rows is None or vote.repeats is not None:
            return
        # From the first answer on, so that answers that differ in nothing known score the same.
        margins = [float(margin) for margin in head.margins(rows, [rows[0]] * len(rows))[0]]
        model, confidence = _share_on_top(margins, best), _confidence(head, rows, margins)
        longer = _share_on_top([float(len(text)) for text in vote.completions], best)
        guess = Guess(vote.id, model, longer, len(best) / len(rows), votes, confidence)
        add_guess(self.store, guess)


def _pairs(vote: Vote, states: HiddenStates) -> "list[tuple[np.ndarray, np.ndarray]]":
    """Hidden states (F,) of the better and the worse answer of each pair that a vote orders."""
    texts = list(better_and_worse(vote))
    known = states.get(vote.prompt, vote.completions) if texts else None
    if known is None:
        return []
    rows = dict(zip(vote.completions, known, strict=True))
    # The answer that a rater wrote has no hidden states.
    return [(rows[a], rows[b]) for a, b in texts if a in rows and b in rows]


def _fitted(fit: "VoteFit") -> "Posterior | None":
    return fit.posterior() if len(fit) >= MIN_PAIRS else None


def _confidence(head: "Posterior", rows: "list[np.ndarray]", scores: list[float]) -> float:
    """The chance that the answer with the highest score wins against the strongest other one."""
    top = scores.index(max(scores))
    others = rows[:top] + rows[top + 1 :]
    return float(head.win_probability([rows[top]] * len(others), others).min())


def _share_on_top(scores: list[float], best: list[int]) -> float:
    """The chance that the answer with the highest score, drawn among equals, is one of the best."""
    top = [position for position, score in enumerate(scores) if score == max(scores)]
    return sum(position in best for position in top) / len(top)
