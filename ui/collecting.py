"""What the rating pages ask and are told, as plain functions; the pages only draw it.

A page sends the rater's name (known from the login, never from the page), a token and a verdict in
the order of its screen, and is told the next item.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any

from lorarlhf.errors import UserError
from lorarlhf.preferences import queue
from lorarlhf.preferences.records import RANKED, Prompt, Verdict
from lorarlhf.preferences.store import Store
from lorarlhf_ui.ahead import Ahead, Making
from lorarlhf_ui.engine import FAILED, OFF, Job
from lorarlhf_ui.meter import Meter
from lorarlhf_ui.text import as_html, names_its_maker, prompt_html

View = dict[str, Any]
LONGEST_TEXT = 20_000
STREAM_SECONDS = 1.0
"""How long a page's question for more text is held open."""


class Live:
    """Answers that are written while a rater looks on."""

    def __init__(
        self, prompt: Prompt, job: Job, places: list[str], making: Making, order: list[int]
    ) -> None:
        self.prompt, self.job, self.places, self.making = prompt, job, places, making
        self.order = order  # positions in the order on the screen


class Collecting:
    """The collect page's questions.

    Args:
        store: of the votes.
        ahead: makes the answers; None where the pages run without a project's model.
        meter: guesses the votes.
    """

    def __init__(self, store: Store, ahead: Ahead, meter: Meter) -> None:
        self.store, self.ahead, self.meter = store, ahead, meter
        self._live: dict[str, Live] = {}
        self._lock = threading.Lock()

    # ---- what a page asks

    def begin(self, rater: str) -> View:
        """What a page shows first: an item, or why there is none."""
        return self._next(rater)

    def vote(
        self, rater: str, token: Any, said: dict[str, Any], milliseconds: Any = None
    ) -> View:
        """Keep a vote and give the next item.

        Args:
            token: of what was shown; `live` for answers that are still being written.
            said: verdict, ranking (tiers of places on the screen), strength, note, edited.

        Raises:
            UserError: a page that is out of date, or a verdict that does not fit.
        """
        if token == "live":
            token = self._settle(rater)
        number = cast(self.store, rater, token, said, milliseconds)
        self.meter.voted(rater, number)
        self.ahead.look()
        return self._next(rater) | {"voted": number}

    def undo(self, rater: str, expected: int | None) -> View:
        """Take the rater's last vote back and show its item again."""
        presentation = self.store.undo(rater, expected=expected)
        if presentation is None:
            raise UserError("There is no vote of yours to take back.")
        self.meter.changed(rater)
        shown = queue.read_shown(self.store, presentation)
        return self._view(shown) | self._about(rater)

    def ask(self, rater: str, text: Any) -> View:
        """Have answers written to the rater's own prompt, which is kept."""
        text = text.strip() if isinstance(text, str) else ""
        if not text:
            raise UserError("Type a prompt first.")
        if len(text) > LONGEST_TEXT:
            raise UserError(f"A prompt has up to {LONGEST_TEXT} characters.")
        self._leave(rater)
        return self._begin_live(rater, self.ahead.add_prompt(text, rater))

    def watch(self, rater: str, seen: Sequence[str]) -> View:
        """More text of the answers that are being written, as soon as there is some."""
        live = self._live.get(rater)
        if live is None:
            return self._next(rater)
        in_order = [seen[live.order.index(n)] for n in range(len(live.order))] if seen else []
        live.job.wait_for_more(in_order, STREAM_SECONDS)
        if live.job.error is not None:
            self._leave(rater)
            return {"empty": live.job.error, **self._about(rater)}
        if not live.job.done:
            return self._live_view(live)
        token = self._settle(rater)
        if token is None:
            return self._next(rater)
        shown = queue.read_shown(self.store, self.store.presentation(token, rater))
        return self._view(shown) | self._about(rater)

    def progress(self, rater: str) -> View:
        """Votes of this rater today, in all and in the last hour, and what the meter says."""
        return self._about(rater)

    # ---- items

    def _next(self, rater: str) -> View:
        if rater in self._live and not self._live[rater].job.done:
            return self._live_view(self._live[rater]) | self._about(rater)
        shown = queue.next_shown(self.store, rater)
        if shown is not None:
            return self._view(shown) | self._about(rater)
        return self._nothing_ready(rater) | self._about(rater)

    def _nothing_ready(self, rater: str) -> View:
        """Answers are written before the rater's eyes, where there is a model."""
        engine = self.ahead.engine
        if engine.state in (OFF, FAILED):
            return {"empty": engine.message or NO_MODEL}
        if self.ahead.trouble:
            return {"empty": self.ahead.trouble}
        if not engine.about:
            return {"wait": "The model is being loaded. Answers will appear here in a moment."}
        return self._begin_live(rater, self.ahead.next_prompt())

    def _begin_live(self, rater: str, prompt: Prompt) -> View:
        job, places, making = self.ahead.start(prompt, urgent=True)
        order = list(range(len(places)))
        if int(time.time_ns()) // 1000 % 2:  # there is no item yet to shuffle by
            order.reverse()
        with self._lock:
            self._live[rater] = live = Live(prompt, job, places, making, order)
        return self._live_view(live) | self._about(rater)

    def _settle(self, rater: str) -> str | None:
        """Make an item of the live answers as they stand; the token of its presentation."""
        with self._lock:
            live = self._live.pop(rater, None)
        if live is None:
            raise UserError("These answers are not known here any more. Reload the page.")
        if not live.job.done:
            self.ahead.engine.stop(live.job)
            live.job.wait(30)
        with self.store.write():
            item = self.ahead.keep(live.prompt, live.job, live.places, live.making)
            if item is None:
                return None
            return self.store.present(item, rater, shown=live.order).token

    def _leave(self, rater: str) -> None:
        with self._lock:
            live = self._live.pop(rater, None)
        if live is not None and not live.job.done:
            self.ahead.engine.stop(live.job)

    # ---- what is told

    def _view(self, shown: queue.Shown) -> View:
        return {
            "token": shown.presentation.token,
            "prompt": prompt_html(shown.prompt),
            "answers": [answer_view(text) for text in shown.completions],
        }

    def _live_view(self, live: Live) -> View:
        texts = [live.job.texts[place] for place in live.order]
        return {
            "token": "live",
            "streaming": True,
            "prompt": prompt_html(live.prompt),
            "answers": [answer_view(text) for text in texts],
            "seen": texts,
        }

    def _about(self, rater: str) -> View:
        midnight = time.mktime((*time.localtime()[:3], 0, 0, 0, 0, 0, -1))
        now = time.time()
        today, hour = (int(1000 * start) for start in (midnight, now - 3600))
        counts = self.store.counts(rater, (0, today, hour))
        names = ("all", "today", "hour")
        return {
            "progress": dict(zip(names, counts, strict=True)),
            "meter": self.meter.report(rater),
            "ready": queue.waiting(self.store),
        }


NO_MODEL = (
    "There are no answers left to rate, and the pages run without a model. Import some with "
    "`lorarlhf votes import`, or start `lorarlhf ui` without --no-model."
)


def cast(store: Store, rater: str, token: Any, said: dict[str, Any], milliseconds: Any) -> int:
    """Keep a vote of a page; returns its number.

    Raises:
        UserError: a page that is out of date, or a verdict that does not fit.
    """
    if not isinstance(token, str):
        raise UserError("This page is not known here any more. Reload it.")
    shown = queue.read_shown(store, store.presentation(token, rater))
    try:
        return store.judge(token, verdict_of(said, shown), _milliseconds(milliseconds))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise UserError(f"This vote can't be kept: {error}.") from error


def verdict_of(said: dict[str, Any], shown: queue.Shown) -> Verdict:
    """A verdict in the screen's order as one in the item's.

    Raises:
        ValueError, TypeError, KeyError, IndexError: a page sent what no page sends.
    """
    order = shown.presentation.shown
    ranking = [[order[int(place)] for place in tier] for tier in said.get("ranking") or []]
    if any(int(place) < 0 for tier in said.get("ranking") or [] for place in tier):
        raise ValueError("a place on the screen is 0 or more")
    verdict = str(said["verdict"])
    return Verdict(
        verdict,
        [sorted(tier) for tier in ranking] if verdict == RANKED else [],
        said.get("strength") or None,
        _text(said.get("note")),
        _text(said.get("edited")),
    )


def _text(value: Any) -> str | None:
    if value is None or not str(value).strip():
        return None
    if len(str(value)) > LONGEST_TEXT:
        raise ValueError(f"a text has up to {LONGEST_TEXT} characters")
    return str(value).strip()


def _milliseconds(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and 0 <= value < 1e9 else None


def answer_view(text: str) -> View:
    """An answer as a page shows it."""
    return {"html": as_html(text), "text": text, "flag": names_its_maker(text)}
