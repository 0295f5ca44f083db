"""What the rating pages ask and are told, as plain functions; the pages only draw it.

A page sends the rater's name (known from the login, never from the page), a token and a verdict in
the order of its screen, and is told the next item.
"""

import random
import secrets
import threading
import time
from collections.abc import Sequence
from typing import Any

from lorarlhf.preferences import queue
from lorarlhf.preferences.history import remap
from lorarlhf.preferences.records import RANKED, SKIP, Prompt, Verdict
from lorarlhf.preferences.store import Store
from lorarlhf.preferences.undo import last_vote, undo
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.engine_client import FAILED, OFF, Job
from lorarlhf_ui.markdown import as_html, names_its_maker, prompt_html
from lorarlhf_ui.meter import Meter
from lorarlhf_ui.prefetch import ALIKE, Making, Prefetch

View = dict[str, Any]
LONGEST_TEXT = 20_000
SECONDS_TO_READ = 6
"""How long a page shows why there are no answers, before it asks for others."""
STREAM_SECONDS = 1.0
"""How long a page's question for more text is held open."""


class Live:
    """Answers that are written while a rater looks on.

    Attributes:
        token: names them on the page until they are an item.
        order: positions in the order on the screen.
        told: as much of each answer as the rater was shown, by position.
    """

    def __init__(
        self, prompt: Prompt, job: Job, places: list[str], making: Making, own: bool
    ) -> None:
        self.prompt, self.job, self.places, self.making = prompt, job, places, making
        self.own = own  # asked by the rater
        self.token = f"live-{secrets.token_hex(8)}"
        # There is no item yet to shuffle by.
        self.order = random.sample(range(len(places)), len(places))
        self.told = [""] * len(places)

    def look(self) -> list[str]:
        """The answers as they are now, in the order on the screen."""
        self.told = list(self.job.texts)
        return [self.told[place] for place in self.order]

    def wait_for_more(self, seen: Any) -> None:
        """Until there is other text than a page has seen, for a while."""
        texts = [""] * len(self.order)
        if isinstance(seen, list) and len(seen) == len(texts):
            for place, text in zip(self.order, seen, strict=True):
                texts[place] = text
        self.job.wait_for_more(texts, STREAM_SECONDS)


class Collecting:
    """The collect page's questions.

    Args:
        store: of the votes.
        ahead: makes the answers.
        meter: guesses the votes.
    """

    def __init__(self, store: Store, ahead: Prefetch, meter: Meter) -> None:
        self.store, self.ahead, self.meter = store, ahead, meter
        self._live: dict[str, Live] = {}
        # A rater's last live answers that became an item: their token, and that of the item.
        self._settled: dict[str, tuple[str, str]] = {}
        self._lock = threading.RLock()

    # ---- what a page asks

    def begin(self, rater: str) -> View:
        """What a page shows first: an item, or why there is none."""
        return self._next(rater)

    def vote(self, rater: str, token: Any, said: Any, milliseconds: Any = None) -> View:
        """Keep a vote and give the next item.

        Args:
            token: of what was shown.
            said: verdict, ranking (tiers of places on the screen), strength, note, edited.

        Raises:
            UserError: a page that is out of date, or a verdict that does not fit.
        """
        if isinstance(token, str) and token.startswith("live-"):
            token = self._item_token(rater, token)
            if token is None:
                return self._too_early(rater, said)
        number = cast(self.store, rater, token, said, milliseconds)
        self.meter.voted(rater, number)
        self.ahead.look()
        return self._next(rater) | {"voted": number}

    def undo(self, rater: str, expected: Any) -> View:
        """Take the rater's last vote back and show its item again."""
        number = vote_number(expected)
        # A page that is asked again, since its answer was lost, must mean the same vote.
        presentation = None if number is None else undo(self.store, rater, expected=number)
        if presentation is None:
            raise UserError("There is no vote of yours to take back.")
        self.meter.changed(rater)
        shown = queue.read_shown(self.store, presentation)
        return self._view(shown) | self._about(rater)

    def ask(self, rater: str, text: Any) -> View:
        """Have answers written to the rater's own prompt, which is kept."""
        text = storable(text).strip() if isinstance(text, str) else ""
        if not text:
            raise UserError("Type a prompt first.")
        if len(text) > LONGEST_TEXT:
            raise UserError(f"A prompt has up to {LONGEST_TEXT} characters.")
        prompt = self.ahead.add_prompt(text, rater)
        self._leave(rater)
        return self._begin_live(rater, prompt, own=True) | self._about(rater)

    def watch(self, rater: str, seen: Any) -> View:
        """More text of the answers that are being written, as soon as there is some."""
        live = self._live.get(rater)
        if live is None:
            return self._next(rater)
        live.wait_for_more(seen)
        if self._live.get(rater) is live and not live.job.done:
            return self._live_view(live)  # without counting votes, many times a second
        return self._next(rater)

    def progress(self, rater: str) -> View:
        """Votes of this rater today, in all and in the last hour, and what the meter says."""
        return self._about(rater)

    # ---- items

    def _next(self, rater: str) -> View:
        with self._lock:
            view = self._live_now(rater)
        if view is None:
            shown = queue.next_shown(self.store, rater)
            view = self._nothing_ready(rater) if shown is None else self._view(shown)
        return view | self._about(rater)

    def _live_now(self, rater: str) -> View | None:
        """The live answers, which are an item once they have ended; None where there are none."""
        live = self._live.get(rater)
        if live is None:
            return None
        if not live.job.done:
            return self._live_view(live)
        live.look()
        if live.job.error is None and (token := self._settle(rater, live)):
            presentation = self.store.presentation(token, rater)
            shown = queue.read_shown(self.store, presentation)
            return self._view(shown) | {"was": live.token}
        del self._live[rater]
        self.ahead.failed(live.prompt)
        if live.job.error is not None:
            return {"empty": live.job.error, "wait": live.job.error, "after": SECONDS_TO_READ}
        return {"empty": ALIKE, "wait": ALIKE, "after": SECONDS_TO_READ} if live.own else None

    def _nothing_ready(self, rater: str) -> View:
        """Answers are written before the rater's eyes, where there is a model."""
        engine = self.ahead.engine
        if engine.state in (OFF, FAILED):
            return {"empty": engine.message or NO_MODEL}
        if self.ahead.trouble:  # asked about again: it may pass
            return {"empty": self.ahead.trouble, "wait": self.ahead.trouble}
        if not engine.about:
            return {"wait": "The model is being loaded. Answers will appear here in a moment."}
        try:
            return self._begin_live(rater, self.ahead.next_prompt())
        except UserError as error:  # the vote before it is kept, and not in error
            return {"empty": str(error)}

    def _begin_live(self, rater: str, prompt: Prompt, own: bool = False) -> View:
        with self._lock:
            live = self._live.get(rater)  # of another tab, which was faster
            if live is None:
                job, places, making = self.ahead.start(prompt, urgent=True)
                live = self._live[rater] = Live(prompt, job, places, making, own)
            return self._live_view(live)

    def _item_token(self, rater: str, token: str) -> str | None:
        """The token of the item that live answers are; None where they say too little yet.

        They may have become one while the vote was on its way, or by the same vote, which is sent
        again where its answer was lost.
        """
        with self._lock:
            live = self._live.get(rater)
            if live is not None and live.token == token:
                return self._settle(rater, live)
            was, item = self._settled.get(rater, ("", ""))
            if was == token:
                return item
            raise UserError("These answers are not known here any more. Reload the page.")

    def _settle(self, rater: str, live: Live) -> str | None:
        """Make an item of live answers as the rater saw them; the token of its presentation.

        None where they are alike or empty; they are then left as they are.
        """
        with self.store.write():  # nobody else is given the item in between
            item = self.ahead.keep(
                live.prompt, live.job, live.places, live.making, told=live.told, store=self.store
            )
            if item is None:
                return None
            token = self.store.present(item, rater, shown=live.order).token
        self._settled[rater] = live.token, token
        self._leave(rater)
        return token

    def _too_early(self, rater: str, said: Any) -> View:
        if isinstance(said, dict) and said.get("verdict") == SKIP:
            self._leave(rater)
            return self._next(rater)
        return {"error": TOO_EARLY, "reload": self._next(rater)}

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
        texts = live.look()
        return {
            "token": live.token,
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
            "last": last_vote(self.store, rater),
        }


NO_MODEL = (
    "There are no answers left to rate, and the pages run without a model. Start `lorarlhf ui` "
    "without --no-model."
)
TOO_EARLY = "The answers are alike or empty so far. Wait for more of them, or skip."


def cast(store: Store, rater: str, token: Any, said: Any, milliseconds: Any) -> int:
    """Keep a vote of a page; returns its number.

    Raises:
        UserError: a page that is out of date, or a verdict that does not fit.
    """
    if not isinstance(token, str) or not isinstance(said, dict):
        raise UserError("This page is not known here any more. Reload it.")
    shown = queue.read_shown(store, store.presentation(token, rater))
    try:
        return store.judge(token, verdict_of(said, shown), _milliseconds(milliseconds))
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise UserError(f"This vote can't be kept: {error}.") from error


def verdict_of(said: dict[str, Any], shown: queue.Shown) -> Verdict:
    """A verdict in the screen's order as one in the item's.

    Raises:
        ValueError, TypeError, LookupError, OverflowError: a page sent what no page sends.
    """
    order = shown.presentation.shown
    ranking = remap(said.get("ranking") or [], lambda place: order[int(place)])
    if any(int(place) < 0 for tier in said.get("ranking") or [] for place in tier):
        raise ValueError("a place on the screen is 0 or more")
    verdict = str(said["verdict"])
    return Verdict(
        verdict,
        ranking if verdict == RANKED else [],
        said.get("strength") or None,
        _text(said.get("note")),
        edited(_text(said.get("edited")), shown.completions),
    )


def edited(text: str | None, answers: Sequence[str]) -> str | None:
    """A rater's better answer; None where it is one of the answers, copied and left as it was."""
    return None if text in [answer.strip() for answer in answers] else text


def _text(value: Any) -> str | None:
    if value is None or not str(value).strip():
        return None
    if len(str(value)) > LONGEST_TEXT:
        raise ValueError(f"a text has up to {LONGEST_TEXT} characters")
    return storable(str(value)).strip()


def storable(text: str) -> str:
    """A text without halves of characters, which no file and no store can hold."""
    return text.encode("utf-8", "ignore").decode()


def vote_number(value: Any) -> int | None:
    """The number of a vote that a page names."""
    if value is not None and not (isinstance(value, int) and 0 <= value < 2**63):
        raise UserError("This page is not known here any more. Reload it.")
    return value


def _milliseconds(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and 0 <= value < 1e9 else None


def answer_view(text: str) -> View:
    """An answer as a page shows it."""
    return {"html": as_html(text), "text": text, "flag": names_its_maker(text)}
