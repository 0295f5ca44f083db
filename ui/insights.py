"""The requests of the Insights page, as plain functions: what the votes say, and how sure that is.

Every figure is computed in a thread and kept until the votes change. Until then the page shows what
is there, so no request waits.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from lorarlhf.evaluation.rater_report import raters_report, same_again
from lorarlhf.evaluation.reward_report import Text, reward_report
from lorarlhf.preferences.accounts import is_owner, with_password
from lorarlhf.preferences.exports import better_and_worse
from lorarlhf.preferences.records import Vote
from lorarlhf.preferences.statistics import newest_judgement
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.downloads import whose
from lorarlhf_ui.engine_client import Engine
from lorarlhf_ui.engine_worker import describe, unpacked
from lorarlhf_ui.hidden_states import HiddenStates
from lorarlhf_ui.insights_html import causes_html, note_html, raters_html, taste_html, tastes_html
from lorarlhf_ui.insights_reward import forecast_html, reward_html
from lorarlhf_ui.reward_role import BUSY, SECONDS
from lorarlhf_ui.taste_fit import MOST_PAIRS, TasteFit, fit_tastes
from lorarlhf_ui.votes import View

LONGEST_SENTENCE = 1000
NEWEST = 2 * MOST_PAIRS
"""Votes among which there are enough that prefer an answer, unless half are ties or skips."""
NO_VOTES = "There are no votes yet. Rate some answers first."


@dataclass(frozen=True)
class Whose:
    """Whose votes are looked at: those that the History page shows to the same person.

    Attributes:
        rater: None for all raters.
        not_theirs: with a rater who is an owner, the names whose votes are not shown; None for the
            rater's own votes only.
    """

    rater: str | None
    not_theirs: tuple[str, ...] | None = None

    def read(self, store: Store, newest: int | None = None) -> list[Vote]:
        """Their votes for training; all, or at least the newest ones."""
        if self.not_theirs is None:
            return store.votes(rater=self.rater, purpose="train", newest=newest)
        found = store.votes(purpose="train")
        return [vote for vote in found if vote.rater not in self.not_theirs]


@dataclass
class Figures:
    """What is known about some votes.

    Attributes:
        key: the state of the votes and of their hidden states that it is about.
        sections: HTML by the name of the section.
        fit: what tastes are read from; None if it is not kept.
        missing: how many votes the model has yet to read.
        problem: why something is missing, or "".
    """

    key: tuple[Any, ...] = ()
    sections: dict[str, str] = field(default_factory=dict)
    fit: TasteFit | None = None
    missing: int = 0
    problem: str = ""


class Insights:
    """The requests of the Insights page, and the thread that computes its figures.

    Args:
        store: the votes. A store of its own, since a thread reads it for seconds.
        states: the hidden states of the answers.
        engine: reads the sentences of a person's own axes.
        fetch: asks for the hidden states of a vote that has none, as `FeatureBackfill.fetch`.
        everybody: whether a rater may see the votes of others; never when raters log in.
    """

    def __init__(
        self,
        store: Store,
        states: HiddenStates,
        engine: Engine,
        fetch: Callable[[Vote, Callable[[], None]], None] = lambda vote, then: None,
        everybody: bool = False,
    ) -> None:
        self.store, self.states, self.engine = store, states, engine
        self.fetch, self.everybody = fetch, everybody
        self._requests = Store(store.path)  # does not wait while the thread reads
        self._known: dict[Whose, Figures] = {}
        self._working: set[Whose] = set()
        self._lock = threading.Condition()
        self._queue: SimpleQueue[Whose] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="insights").start()

    # ---- requests

    def look(self, rater: str, data: View) -> View:
        """The sections that are known; starts to compute them if the votes have changed.

        Args:
            data: `scope`, as on the History page; `again`, if the page asks only how far it is.

        Returns:
            `sections`, HTML by name; `busy`, whether more is being computed; `missing`, how many
            votes the model has yet to read; `problem`.
        """
        wanted = self._whose(rater, str(data.get("scope") or "mine"))
        key = self._key(self._requests)
        with self._lock:
            figures = self._known.setdefault(wanted, Figures())
            if figures.key != key and wanted not in self._working and not data.get("again"):
                self._working.add(wanted)
                self._queue.put(wanted)
            busy = wanted in self._working
        return {
            "sections": dict(figures.sections),
            "busy": busy,
            "missing": figures.missing,
            "problem": "" if busy else figures.problem,
            "everybody": self.everybody,
        }

    def own_axis(self, rater: str, data: View) -> View:
        """How the votes see an axis between two texts that a person wrote.

        Args:
            data: `first` and `second`, the texts, and `scope`.

        Raises:
            UserError: a text is missing or too long, there are too few votes, or no model.
        """
        sides = _sides(data)
        wanted = self._whose(rater, str(data.get("scope") or "mine"))
        with self._lock:
            figures = self._known.get(wanted)
        fit = figures.fit if figures and figures.fit else self._fit(wanted)
        try:
            packed = self.engine.direction(*sides).wait(SECONDS)
        except TimeoutError as error:
            raise UserError(BUSY) from error
        direction = unpacked(packed)
        if direction.shape != fit.votes.chosen.shape[1:]:
            raise UserError("The base has changed since these votes were read. Reload the page.")
        return {"html": taste_html(*fit.own_taste(direction, sides))}

    def wait(self, seconds: float = 600.0) -> bool:
        """Wait until nothing is being computed; for tests and benchmarks."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._working, seconds)

    def _fit(self, wanted: Whose) -> TasteFit:
        return fit_tastes(wanted.read(self._requests, NEWEST), self.states)

    def _whose(self, rater: str, scope: str) -> Whose:
        """Whose votes the History page would show for this scope."""
        name = whose(rater, scope, self.everybody)
        if name is None or self.everybody or not is_owner(self._requests, rater):
            return Whose(name)
        others = (other for other in with_password(self._requests) if other != rater)
        return Whose(rater, tuple(others))

    def _key(self, store: Store) -> tuple[Any, ...]:
        return newest_judgement(store), *self.states.version()

    # ---- in the thread

    def _work(self) -> None:
        while True:
            wanted = self._queue.get()
            try:
                self._compute(wanted, self._known[wanted])
            except Exception as error:  # the page shows it, and the next request tries again
                self._known[wanted].problem = describe(error)
            with self._lock:
                self._working.discard(wanted)
                self._lock.notify_all()

    def _compute(self, wanted: Whose, figures: Figures) -> None:
        key = self._key(self.store)
        votes = wanted.read(self.store, NEWEST)  # the tastes need no more, and come first
        figures.problem = "" if votes else NO_VOTES
        if not votes:
            figures.sections, figures.fit, figures.key = {}, None, key
            return
        figures.sections["tastes"] = self._tastes(votes, figures)
        if len(votes) == NEWEST:
            votes = wanted.read(self.store)
        report = raters_report(votes)
        figures.sections["causes"] = causes_html(report.together)
        figures.sections["raters"] = raters_html(report)
        figures.sections |= self._reward(votes, figures.fit)
        figures.key = key

    def _reward(self, votes: list[Vote], fit: TasteFit | None) -> dict[str, str]:
        """How many more votes help, and how good the fit is; both empty without a fit."""
        if fit is None:
            return {"more": "", "reward": ""}
        texts = [Text(one.asked, one.chosen, one.rejected) for one in fit.pairs]
        count = sum(len(list(better_and_worse(vote))) for vote in votes)
        try:
            found = reward_report(fit.votes, texts, same_again(votes), of=count)
        except UserError as error:  # all votes are on one prompt
            return {"more": "", "reward": note_html(str(error))}
        return {"more": forecast_html(found.curve), "reward": reward_html(found, fit.pairs)}

    def _tastes(self, votes: list[Vote], figures: Figures) -> str:
        with self._lock:
            for known in self._known.values():  # one fit at a time is kept: it takes memory
                known.fit = None
        wanted: list[Vote] = []
        try:
            figures.fit = fit = fit_tastes(votes, self.states, wanted.append)
            return tastes_html(fit.tastes(), len(fit.pairs), len(wanted))
        except UserError as error:
            return note_html(str(error))
        finally:
            figures.missing = len(wanted)
            for vote in wanted:
                self.fetch(vote, lambda: None)


def _sides(data: View) -> tuple[str, str]:
    """The two texts of an own axis. Raises UserError if one is missing or too long."""
    first, second = (" ".join(str(data.get(name) or "").split()) for name in ("first", "second"))
    if not first or not second or first == second:
        raise UserError("Write two texts that differ in what you care about.")
    if max(len(first), len(second)) > LONGEST_SENTENCE:
        raise UserError(f"A text has up to {LONGEST_SENTENCE} characters.")
    return first, second
