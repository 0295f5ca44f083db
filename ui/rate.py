"""The requests of the Rate page, as plain functions; `rate_page.py` only shows the results.

A page sends a token and a verdict in the order of its screen, and receives the next item. The
rater's name comes from the login, never from the page.
"""

import random
import secrets
import threading
import time
from typing import Any

from lorarlhf.preferences import queue
from lorarlhf.preferences.records import SKIP, Prompt
from lorarlhf.preferences.statistics import count_to_train_on
from lorarlhf.preferences.store import Store
from lorarlhf.preferences.undo import last_vote, undo
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.engine_client import RESTING, SILENT, Job
from lorarlhf_ui.markdown import prompt_html
from lorarlhf_ui.meter import Meter
from lorarlhf_ui.models import INFORMATION, AnswerSettings
from lorarlhf_ui.prefetch import ALIKE, Prefetch, read_settings
from lorarlhf_ui.votes import (
    LONGEST_TEXT,
    NO_MODEL,
    View,
    answer_view,
    cast,
    item_view,
    storable,
    vote_number,
)

SECONDS_TO_READ = 6
"""How long a page shows why there are no answers before it asks for others."""
STREAM_SECONDS = 1.0
"""How long the server waits for new text before it answers a page's request for more."""
GOALS = (50, 150)
"""How many votes are worth it: to begin with, and until each further vote teaches much less."""
TOO_EARLY = "The answers are still empty or identical. Wait for more text, or skip."


class LiveAnswers:
    """Answers that are generated while a rater watches.

    Attributes:
        own: whether the rater typed the prompt.
        token: names the answers on the page until they are stored as an item.
        order: the positions of the answers in the order of the screen.
        shown: the text of each answer that the rater has seen, by position.
    """

    def __init__(
        self, prompt: Prompt, job: Job, places: list[str], settings: AnswerSettings, own: bool
    ) -> None:
        self.prompt, self.job, self.places, self.settings = prompt, job, places, settings
        self.own = own
        self.token = f"live-{secrets.token_hex(8)}"
        # The store shuffles items by their number, which these answers do not have yet.
        self.order = random.sample(range(len(places)), len(places))
        self.shown = [""] * len(places)

    def show(self) -> list[str]:
        """The current texts in the order of the screen; they count as seen from now on."""
        self.shown = list(self.job.texts)
        return [self.shown[position] for position in self.order]

    def wait_for_more(self, seen: Any) -> None:
        """Wait until there is text that a page has not seen, or `STREAM_SECONDS` are over."""
        texts = [""] * len(self.order)
        if isinstance(seen, list) and len(seen) == len(texts):
            for position, text in zip(self.order, seen, strict=True):
                texts[position] = text
        self.job.wait_for_more(texts, STREAM_SECONDS)


class Ratings:
    """The requests of the Rate page.

    Args:
        store: the votes.
        prefetch: generates the answers.
        meter: predicts the votes.
    """

    def __init__(self, store: Store, prefetch: Prefetch, meter: Meter) -> None:
        self.store, self.prefetch, self.meter = store, prefetch, meter
        self._live: dict[str, LiveAnswers] = {}
        # By rater: the tokens of the last live answers and of the item that they became.
        self._stored: dict[str, tuple[str, str]] = {}
        self._lock = threading.RLock()

    # ---- requests of the page

    def begin(self, rater: str) -> View:
        """What a page shows first: an item, or the reason why there is none."""
        return self._next(rater)

    def vote(self, rater: str, token: Any, vote: Any, milliseconds: Any = None) -> View:
        """Store a vote and return the next item.

        Args:
            token: of the item or the live answers that the rater saw.
            vote: see `lorarlhf_ui.votes.verdict_of`.
            milliseconds: how long the rater took.

        Raises:
            UserError: the page is out of date, or the verdict does not fit.
        """
        if isinstance(token, str) and token.startswith("live-"):
            token = self._item_token(rater, token)
            if token is None:
                return self._too_early(rater, vote)
        voted = cast(self.store, rater, token, vote, milliseconds)
        self.meter.voted(rater, voted["voted"])
        self.prefetch.wake()
        return self._next(rater) | voted

    def undo(self, rater: str, expected: Any) -> View:
        """Undo the rater's last vote and show its item again.

        Args:
            expected: the vote that the page wants to undo. A page repeats a request whose answer
                was lost, and the second one must not undo another vote.

        Raises:
            UserError: there is nothing to undo.
        """
        number = vote_number(expected)
        presentation = None if number is None else undo(self.store, rater, expected=number)
        if presentation is None:
            raise UserError("You have no vote to undo.")
        self.meter.changed(rater)
        shown = queue.read_shown(self.store, presentation)
        return self._item_view(rater, shown) | self._status(rater)

    def ask(self, rater: str, text: Any, for_all: bool = True) -> View:
        """Store the rater's own prompt and start answers to it.

        Args:
            for_all: whether it becomes one of the project's prompts, which others are asked.

        Raises:
            UserError: the prompt is empty or too long.
        """
        text = storable(text).strip() if isinstance(text, str) else ""
        if not text:
            raise UserError("Type a prompt first.")
        if len(text) > LONGEST_TEXT:
            raise UserError(f"A prompt has up to {LONGEST_TEXT} characters.")
        prompt = self.prefetch.add_prompt(text, rater, for_all)
        self._drop_live(rater)
        return self._start_live(rater, prompt, own=True) | self._status(rater)

    def watch(self, rater: str, seen: Any) -> View:
        """The live answers, as soon as they have text that the page has not `seen`."""
        live = self._live.get(rater)
        if live is None:
            return self._next(rater)
        live.wait_for_more(seen)
        if self._live.get(rater) is live and not live.job.done:
            # Without the status: this happens many times a second, and counting votes takes time.
            return self._live_view(live)
        return self._next(rater)

    def progress(self, rater: str) -> View:
        """The rater's number of votes today, in all and in the last hour, and the meter."""
        return self._status(rater)

    # ---- items

    def _next(self, rater: str) -> View:
        with self._lock:
            view = self._current_live(rater)
        if view is None:
            shown = self._next_shown(rater)
            view = self._nothing_ready(rater) if shown is None else self._item_view(rater, shown)
        return view | self._status(rater)

    def _next_shown(self, rater: str) -> queue.Shown | None:
        # Not by the store of `prefetch`: its thread may be reading all items.
        settings = read_settings(self.store)
        # Before the queue's transaction, which would keep others from voting.
        first = self.prefetch.order.best_first(rater) if settings.order == INFORMATION else []
        return queue.next_shown(self.store, rater, repeat_share=settings.repeats, first=first)

    def _current_live(self, rater: str) -> View | None:
        """The rater's live answers; stored as an item once they are complete. None without any."""
        live = self._live.get(rater)
        if live is None:
            return None
        if not live.job.done:
            return self._live_view(live)
        live.show()
        if live.job.error is None and (token := self._store_live(rater, live)):
            presentation = self.store.presentation(token, rater)
            shown = queue.read_shown(self.store, presentation)
            return self._item_view(rater, shown)
        del self._live[rater]
        self.prefetch.failed(live.prompt)
        if live.job.error is not None:
            return {"empty": live.job.error, "wait": live.job.error, "after": SECONDS_TO_READ}
        return {"empty": ALIKE, "wait": ALIKE, "after": SECONDS_TO_READ} if live.own else None

    def _nothing_ready(self, rater: str) -> View:
        """Start live answers if there is a model; else the reason why nothing is shown."""
        engine = self.prefetch.engine
        if engine.state == RESTING:  # "wait": the page asks again, since it ends
            return {"empty": engine.message, "wait": engine.message, "after": SECONDS_TO_READ}
        if engine.state in SILENT:
            return {"empty": engine.message or NO_MODEL}
        if self.prefetch.problem:  # "wait": the page asks again, since the problem may go away
            return {"empty": self.prefetch.problem, "wait": self.prefetch.problem}
        if not engine.about:
            return {"wait": "The model is loading. Answers will appear here in a moment."}
        try:
            return self._start_live(rater, self.prefetch.next_prompt())
        except UserError as error:  # the vote before it is stored, so the request succeeds
            return {"empty": str(error)}

    def _start_live(self, rater: str, prompt: Prompt, own: bool = False) -> View:
        with self._lock:
            live = self._live.get(rater)  # another tab of the rater may have started them
            if live is None:
                job, places, settings = self.prefetch.start(prompt, urgent=True)
                live = self._live[rater] = LiveAnswers(prompt, job, places, settings, own)
            return self._live_view(live)

    def _item_token(self, rater: str, token: str) -> str | None:
        """The token of the item that live answers become; None if they are too short yet.

        They may already be an item: they ended while the vote was on its way, or the page repeats
        a vote whose answer was lost.
        """
        with self._lock:
            live = self._live.get(rater)
            if live is not None and live.token == token:
                return self._store_live(rater, live)
            was, item = self._stored.get(rater, ("", ""))
            if was == token:
                return item
            raise UserError("The server does not know these answers any more. Reload the page.")

    def _store_live(self, rater: str, live: LiveAnswers) -> str | None:
        """Store live answers as the rater saw them.

        Returns:
            The token of the presentation; None, and no change, if answers are identical or empty.
        """
        with self.store.write():  # so that no other rater gets the item in between
            item = self.prefetch.save(
                live.prompt,
                live.job,
                live.places,
                live.settings,
                shown=live.shown,
                store=self.store,
            )
            if item is None:
                return None
            token = self.store.present(item, rater, shown=live.order).token
        self._stored[rater] = live.token, token
        self._drop_live(rater)
        return token

    def _too_early(self, rater: str, vote: Any) -> View:
        if isinstance(vote, dict) and vote.get("verdict") == SKIP:
            self._drop_live(rater)
            return self._next(rater)
        return {"error": TOO_EARLY, "reload": self._next(rater)}

    def _drop_live(self, rater: str) -> None:
        with self._lock:
            live = self._live.pop(rater, None)
        if live is not None and not live.job.done:
            self.prefetch.engine.stop(live.job)

    # ---- what a page receives

    def _item_view(self, rater: str, shown: queue.Shown) -> View:
        """An item; with the token that its answers had on the page while they were written."""
        view = item_view(self.store, shown)
        was, token = self._stored.get(rater, ("", ""))
        return view | ({"was": was} if token == view["token"] else {})

    def _live_view(self, live: LiveAnswers) -> View:
        texts = live.show()
        return {
            "token": live.token,
            "streaming": True,
            "prompt": prompt_html(live.prompt),
            "answers": [answer_view(text) for text in texts],
            "seen": texts,
        }

    def _goal(self, rater: str) -> View:
        """How many votes there are to train on, and how many are worth it next."""
        votes = count_to_train_on(self.store, rater, most=GOALS[-1])
        of = next((goal for goal in GOALS if votes < goal), None)
        return {"votes": votes, "of": of, "reached": GOALS[-1]}

    def _status(self, rater: str) -> View:
        midnight = time.mktime((*time.localtime()[:3], 0, 0, 0, 0, 0, -1))
        now = time.time()
        today, hour = (int(1000 * start) for start in (midnight, now - 3600))
        counts = self.store.counts(rater, (0, today, hour))
        names = ("all", "today", "hour")
        engine = self.prefetch.engine
        return {
            "progress": dict(zip(names, counts, strict=True)),
            "goal": self._goal(rater),
            "meter": self.meter.report(rater),
            "ready": queue.waiting(self.store),
            "last": last_vote(self.store, rater),
            "rests": engine.message if engine.state == RESTING else "",
        }
