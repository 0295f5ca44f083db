"""The requests of the Insights page, as plain functions: what the votes say, and how sure that is.

Every figure is computed in a thread and kept until the votes change. Until then the page shows what
is there, so no request waits.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from lorarlhf.evaluation.rater_report import Share, raters_report, same_winner_again
from lorarlhf.evaluation.reward_report import Text, reward_report
from lorarlhf.preferences.accounts import is_owner, with_password
from lorarlhf.preferences.exports import better_and_worse
from lorarlhf.preferences.records import Vote
from lorarlhf.preferences.single_answers import in_pairs
from lorarlhf.preferences.statistics import newest_judgement
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.downloads import whose
from lorarlhf_ui.engine_client import SILENT, STARTING, Engine
from lorarlhf_ui.engine_worker import describe, unpacked
from lorarlhf_ui.hidden_states import HiddenStates
from lorarlhf_ui.insights_html import causes_html, note_html, taste_html, tastes_html
from lorarlhf_ui.insights_raters import raters_html
from lorarlhf_ui.insights_reward import forecast_html, reward_html
from lorarlhf_ui.reward_role import result_of
from lorarlhf_ui.taste_fit import (
    MOST_PAIRS,
    TasteFit,
    fit_tastes,
    known_pairs,
    newest_that_prefer,
)
from lorarlhf_ui.votes import View

LONGEST_SENTENCE = 1000
NEWEST = 2 * MOST_PAIRS
"""Votes among which there are enough that prefer an answer, unless half are ties or skips."""
FITS = 4
"""The number of scopes whose fits are kept: each takes some 10 MB."""
NO_VOTES = "There are no votes yet. Rate some answers first."
NO_MODEL = "These pages run without a model: start `lorarlhf ui` without --no-model."
LOADING = "The model is loading. Ask again in a minute."
BEING_READ = "Your votes are being read; ask again in a moment."
OPEN = (
    "This is an answer that you have not voted on yet, and knowing what the votes say of it would "
    "sway you. Vote first."
)


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
        key: when they were last looked at: the votes, the engine, and the hidden states.
        sections: HTML by the name of the section.
        newest_judgement: when all these votes were last read.
        votes: the numbers of all these votes, as a hash.
        again, pairs: of all votes, what `same_winner_again` says and how many pairs they order.
        newest: those that tastes are read from; None if they have to be read again.
        fit: what tastes are read from; None if there is none, or it is not kept.
        no_fit: why there is none, or "".
        fitted: the fit and the votes that its sections are about.
        unread: whether the model has yet to read some votes, or the style axes.
        problem: why something is missing, or "".
    """

    key: tuple[Any, ...] = ()
    sections: dict[str, str] = field(default_factory=dict)
    newest_judgement: int | None = None
    votes: int | None = None
    again: Share | None = None
    pairs: int = 0
    newest: list[Vote] | None = None
    fit: TasteFit | None = None
    no_fit: str = ""
    fitted: tuple[Any, ...] = ()
    unread: bool = False
    problem: str = ""


class Insights:
    """The requests of the Insights page, and the thread that computes its figures.

    Args:
        store: the votes. A store of its own, since a thread reads it for seconds.
        states: the hidden states of the answers.
        engine: reads the sentences of a person's own axes.
        fetch: asks for the hidden states of a vote that has none, as `FeatureBackfill.fetch`.
        everybody: whether a rater may see the votes of others; never when raters log in.
        open_answers: the answers that a rater sees and has not voted on.
    """

    def __init__(
        self,
        store: Store,
        states: HiddenStates,
        engine: Engine,
        fetch: Callable[[Vote, Callable[[], None]], None] = lambda vote, then: None,
        everybody: bool = False,
        open_answers: Callable[[str], Sequence[str]] = lambda rater: (),
    ) -> None:
        self.store, self.states, self.engine = store, states, engine
        self.fetch, self.everybody, self.open_answers = fetch, everybody, open_answers
        self._requests = Store(store.path)  # does not wait while the thread reads
        self._known: dict[Whose, Figures] = {}
        self._fits: list[Whose] = []  # those whose fits are kept, the newest last
        self._working: set[Whose] = set()
        self._lock = threading.Condition()
        self._queue: SimpleQueue[Whose] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="insights").start()

    # ---- requests

    def look(self, rater: str, data: View) -> View:
        """The sections that are known; starts to compute them if something has changed.

        Args:
            data: `scope`, as on the History page; `again`, if the page asks only how far it is.

        Returns:
            `sections`, HTML by name; `busy`, whether more is being computed; `unread`, whether the
            model will read more votes; `problem`.
        """
        wanted = self._whose(rater, str(data.get("scope") or "mine"))
        key = self._key(self._requests)
        with self._lock:
            figures = self._known.setdefault(wanted, Figures())
            if figures.key != key and not data.get("again"):
                self._start(wanted)
            busy = wanted in self._working
        return {
            "sections": dict(figures.sections),
            "busy": busy,
            "unread": figures.unread and not self._no_model(),
            "problem": "" if busy else figures.problem,
            "everybody": self.everybody,
        }

    def own_axis(self, rater: str, data: View) -> View:
        """How the votes see an axis between two texts that a person wrote.

        Args:
            data: `first` and `second`, the texts, and `scope`.

        Raises:
            UserError: a text is missing, too long, or an answer that is to be voted on; there are
                too few votes, or they are still being read; there is no model.
        """
        sides = _sides(data)
        if reason := self._no_model() or (LOADING if self.engine.state == STARTING else ""):
            raise UserError(reason)
        if set(sides) & {_line(text)[:LONGEST_SENTENCE] for text in self.open_answers(rater)}:
            raise UserError(OPEN)
        wanted = self._whose(rater, str(data.get("scope") or "mine"))
        with self._lock:
            figures = self._known.setdefault(wanted, Figures())
            fit = figures.fit
            if fit is None and not figures.no_fit:
                self._start(wanted)
        if fit is None:
            raise UserError(figures.no_fit or BEING_READ)
        direction = unpacked(result_of(self.engine, lambda: self.engine.direction(*sides)))
        if direction.shape != fit.votes.chosen.shape[1:]:
            raise UserError("The base has changed since these votes were read. Reload the page.")
        return {"html": taste_html(*fit.own_taste(direction, sides))}

    def wait(self, seconds: float = 600.0) -> bool:
        """Wait until nothing is being computed; for tests and benchmarks."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._working, seconds)

    def _start(self, wanted: Whose) -> None:
        """Let the thread compute; with the lock."""
        if wanted not in self._working:
            self._working.add(wanted)
            self._queue.put(wanted)

    def _whose(self, rater: str, scope: str) -> Whose:
        """Whose votes the History page would show for this scope."""
        name = whose(rater, scope, self.everybody)
        if name is None or self.everybody or not is_owner(self._requests, rater):
            return Whose(name)
        others = (other for other in with_password(self._requests) if other != rater)
        return Whose(rater, tuple(others))

    def _key(self, store: Store) -> tuple[Any, ...]:
        return newest_judgement(store), self.engine.state, *self.states.version()

    def _no_model(self) -> str:
        """Why no model will read anything; "" if there is one, or soon will be."""
        state = self.engine.state
        return (self.engine.message or NO_MODEL) if state in SILENT else ""

    # ---- in the thread

    def _work(self) -> None:
        while True:
            wanted = self._queue.get()
            figures = self._known[wanted]
            try:
                self._compute(wanted, figures)
                self._keep_fit(wanted)
            except Exception as error:  # the page shows it, and the next request tries again
                figures.problem = describe(error)
            with self._lock:
                self._working.discard(wanted)
                self._lock.notify_all()

    def _compute(self, wanted: Whose, figures: Figures) -> None:
        """Bring figures up to date; what has not changed is not computed again.

        States of answers arrive all the time, so each visit comes here. Then only the newest votes
        are looked up in the cache.
        """
        key, newest = self._key(self.store), newest_judgement(self.store)
        changed = figures.newest is None or newest != figures.newest_judgement
        votes: list[Vote] = []
        if changed:  # the tastes need the newest votes alone, and come first
            votes = wanted.read(self.store, NEWEST)
            figures.newest = newest_that_prefer(votes)
        figures.problem = ""
        if changed and not votes:
            figures.sections, figures.fit, figures.no_fit = {}, None, NO_VOTES
            figures.problem, figures.unread, figures.votes = NO_VOTES, False, None
            figures.newest, figures.fitted = None, ()
        else:
            self._tastes(figures.newest or [], figures)
            if changed:
                all_read = len(votes) != NEWEST
                self._votes(votes if all_read else wanted.read(self.store), figures)
            self._reward(figures)
        figures.newest_judgement, figures.key = newest, key

    def _votes(self, votes: list[Vote], figures: Figures) -> None:
        """What is said of all votes, unless they are the same as before."""
        numbers = hash(tuple(vote.id for vote in votes))
        if numbers == figures.votes:
            return
        report = raters_report(votes)
        figures.sections["causes"] = causes_html(report.together)
        figures.sections["raters"] = raters_html(report)
        figures.again = same_winner_again(votes)
        figures.pairs = sum(len(list(better_and_worse(vote))) for vote in in_pairs(votes))
        figures.votes = numbers

    def _tastes(self, newest: Sequence[Vote], figures: Figures) -> None:
        """Fit the votes whose answers the model has read, and ask it for the others."""
        known, no_model = known_pairs(newest, self.states), self._no_model()
        for vote in known.missing:
            self.fetch(vote, lambda: None)
        figures.unread = known.axes is None or bool(known.missing)
        try:
            if figures.fit is None or figures.fit.version != known.version:
                figures.fit = None  # first, since it takes memory
                figures.fit = fit_tastes(known, no_model)
            figures.no_fit = ""
            figures.sections["tastes"] = tastes_html(figures.fit.tastes(), known, no_model)
        except UserError as error:
            figures.fit, figures.no_fit = None, str(error)
            figures.sections["tastes"] = note_html(str(error))

    def _reward(self, figures: Figures) -> None:
        """How many more votes help, and how good the fit is; both empty without a fit."""
        fit = figures.fit
        about = (fit.version if fit else None, figures.votes)
        if about == figures.fitted:
            return
        figures.sections |= {"more": "", "reward": ""} if fit is None else _on_fit(fit, figures)
        figures.fitted = about

    def _keep_fit(self, wanted: Whose) -> None:
        """Drop the oldest fit if there are too many."""
        with self._lock:
            self._fits = [other for other in self._fits if other != wanted] + [wanted]
            for other in self._fits[:-FITS]:
                self._known[other].fit = self._known[other].newest = None
            self._fits = self._fits[-FITS:]


def _on_fit(fit: TasteFit, figures: Figures) -> dict[str, str]:
    texts = [Text(one.asked, one.chosen, one.rejected) for one in fit.pairs]
    try:
        found = reward_report(fit.votes, texts, figures.again, of=figures.pairs)
    except UserError as error:  # all votes are on one prompt
        return {"more": note_html(str(error)), "reward": ""}
    return {"more": forecast_html(found.curve), "reward": reward_html(found, fit.pairs)}


def _sides(data: View) -> tuple[str, str]:
    """The two texts of an own axis. Raises UserError if one is missing or too long."""
    first, second = (_line(str(data.get(name) or "")) for name in ("first", "second"))
    if not first or not second or first == second:
        raise UserError("Write two texts that differ in what you care about.")
    if max(len(first), len(second)) > LONGEST_SENTENCE:
        raise UserError(f"A text has up to {LONGEST_SENTENCE} characters.")
    return first, second


def _line(text: str) -> str:
    return " ".join(text.split())
