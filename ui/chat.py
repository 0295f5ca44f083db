"""Conversations with one or two models, as plain functions; the chat page only draws them.

Both sides answer the same conversation, so that the last two answers are always a fair pair. It
goes on with the answer that was voted for, or with the left one.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorarlhf.preferences.records import BOTH_BAD, BOTH_GOOD, RANKED, TIE, Verdict
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.engine_client import Job
from lorarlhf_ui.meter import Meter
from lorarlhf_ui.prefetch import Prefetch
from lorarlhf_ui.rate import LONGEST_TEXT, storable

NOBODY = "nobody"
SECONDS_A_LOOK = 0.5
VERDICTS = {
    "left": Verdict(RANKED, [[0], [1]]),
    "right": Verdict(RANKED, [[1], [0]]),
    "tie": Verdict(TIE),
    "both_good": Verdict(BOTH_GOOD),
    "both_bad": Verdict(BOTH_BAD),
}
Message = dict[str, str]


@dataclass
class Turn:
    """What was asked, and the answers of one or two models."""

    asked: str
    models: list[str]  # as the engine names them
    answers: list[str]
    chosen: int = 0  # the answer that the conversation goes on with
    vote: int | None = None
    scores: list[float] | None = None


@dataclass
class Talk:
    """A rater's conversation.

    Attributes:
        system: the first message, or "".
        job: what is being answered now.
    """

    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    job: Job | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def prompt(self, before: int) -> list[Message]:
        """The conversation up to a turn's question."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns[:before]:
            messages.append({"role": "user", "content": turn.asked})
            messages.append({"role": "assistant", "content": turn.answers[turn.chosen]})
        return [*messages, {"role": "user", "content": self.turns[before].asked}]

    def side(self, side: int) -> list[Message]:
        """What one side shows: earlier answers as they went on, the last one as it is."""
        messages: list[Message] = []
        for number, turn in enumerate(self.turns):
            last = number == len(self.turns) - 1
            place = min(side, len(turn.answers) - 1) if last else turn.chosen
            messages.append({"role": "user", "content": turn.asked})
            messages.append({"role": "assistant", "content": turn.answers[place] or "…"})
        return messages


class Talking:
    """All raters' conversations; they last as long as the server runs.

    Args:
        store: where votes on answers go.
        ahead: knows the models and the engine.
        meter: learns from the votes.
    """

    def __init__(self, store: Store, ahead: Prefetch, meter: Meter) -> None:
        self.store, self.ahead, self.meter = store, ahead, meter
        self._talks: dict[str, Talk] = {}
        self._lock = threading.RLock()

    def talk(self, rater: str) -> Talk:
        """The rater's conversation; a new one where there is none."""
        with self._lock:
            return self._talks.setdefault(rater, Talk())

    def anew(self, rater: str) -> Talk:
        """Forget the conversation."""
        with self._lock:
            old, new = self.talk(rater), Talk()
            self._talks[rater] = new  # first, so that the old one's end is not shown
        self._stop(old)
        return new

    def stop(self, rater: str) -> None:
        """End the answers that are being written, where they are."""
        self._stop(self.talk(rater))

    def _stop(self, talk: Talk) -> None:
        if talk.job is not None and not talk.job.done:
            self.ahead.engine.stop(talk.job)

    def say(
        self,
        rater: str,
        text: str,
        names: list[str],
        *,
        system: str = "",
        temperature: float = 0.7,
        max_new_tokens: int = 256,
        at: int | None = None,
    ) -> Iterator[Talk]:
        """Ask something; gives the conversation again and again while the answers grow.

        Where it fails the conversation is as it was.

        Args:
            names: of one or two models, as `Models.names` has them.
            at: the turn in whose place it comes, and of all after it; None to go on.

        Raises:
            UserError: nothing was asked, a model is gone, or the engine says why it can't.
        """
        text = storable(text or "").strip()
        if not text:
            raise UserError("Type something first.")
        if len(text) > LONGEST_TEXT:
            raise UserError(f"A message has up to {LONGEST_TEXT} characters.")
        places = [self.ahead.models.place(name) for name in names]
        with self._lock:  # another tab may ask at the same time
            talk = self.talk(rater)
            if talk.job is not None and not talk.job.done:
                raise UserError("Still answering. Stop that first.")
            before = talk.system, talk.turns, talk.options
            talk.turns = [*talk.turns[:at], Turn(text, places, [""] * len(places))]
            if len(talk.turns) == 1:
                talk.system = storable(system or "").strip()
            talk.options = {
                "temperature": float(temperature),
                "max_new_tokens": int(max_new_tokens),
            }
            job = talk.job = self._begin(talk)
        yield from self._follow(rater, talk, job)
        if job.error is not None and talk.job is job:
            talk.system, talk.turns, talk.options = before
        if job.error is not None:
            raise UserError(job.error)

    def retry(self, rater: str, names: list[str], **options: Any) -> Iterator[Talk]:
        """Answer the last question again."""
        talk = self.talk(rater)
        if not talk.turns:
            raise UserError("There is nothing to answer yet.")
        yield from self.edit(rater, len(talk.turns) - 1, talk.turns[-1].asked, names, **options)

    def edit(
        self, rater: str, number: int, text: str, names: list[str], **options: Any
    ) -> Iterator[Talk]:
        """Ask a question in other words; what came after it is dropped."""
        if not 0 <= number < len(self.talk(rater).turns):
            raise UserError("This question is not known here any more. Reload the page.")
        yield from self.say(rater, text, names, at=number, **options)

    def vote(self, rater: str, which: str) -> Talk:
        """Keep a vote on the last two answers; the conversation goes on with the better one."""
        with self._lock:  # a second click waits, and finds the vote
            talk = self.talk(rater)
            turn = talk.turns[-1] if talk.turns else None
            if turn is None or len(turn.answers) < 2 or (talk.job and not talk.job.done):
                raise UserError("There are no two finished answers to compare.")
            if turn.vote is not None:
                raise UserError("You have voted on these. Correct it on the History page.")
            if not all(answer.strip() for answer in turn.answers):
                raise UserError("One of the answers is empty; retry first.")
            turn.vote = self._keep(rater, talk, turn, VERDICTS[which])
            turn.chosen = 1 if which == "right" else 0
        self.meter.voted(rater, turn.vote)
        return talk

    def _keep(self, rater: str, talk: Talk, turn: Turn, verdict: Verdict) -> int:
        labels = [self.ahead.models.label(place) for place in turn.models]
        with self.store.write():
            item = self.store.add_item(
                talk.prompt(len(talk.turns) - 1),
                list(zip(turn.answers, labels, strict=True)),
                sampling=[talk.options] * 2,
                origin={"page": "chat"},
            )
            shown = self.store.present(item, rater, shown=[0, 1])
            return self.store.judge(shown.token, verdict)

    def score(self, rater: str) -> Talk:
        """The newest reward role's scores of the last answers.

        Raises:
            UserError: there is no reward role yet.
        """
        talk = self.talk(rater)
        run = self.ahead.space.newest_with("reward")
        if run is None:
            raise UserError(
                "There is no reward role in this project yet: train one with `lorarlhf reward`."
            )
        if talk.turns:
            turn = talk.turns[-1]
            prompt = talk.prompt(len(talk.turns) - 1)
            folder = Path(run) / "adapters" / "reward"
            try:
                turn.scores = self.ahead.engine.scores(folder, prompt, turn.answers).wait(120)
            except TimeoutError as error:
                raise UserError("The model is busy. Ask for the scores again later.") from error
        return talk

    def _begin(self, talk: Talk) -> Job:
        models = talk.turns[-1].models
        return self.ahead.engine.answer(
            talk.prompt(len(talk.turns) - 1),
            models,
            urgent=True,
            features=len(models) > 1,
            **talk.options,
        )

    def _follow(self, rater: str, talk: Talk, job: Job) -> Iterator[Talk]:
        """Give the conversation while its last answers grow, unless a new one was begun."""
        turn, prompt = talk.turns[-1], talk.prompt(len(talk.turns) - 1)
        try:
            while not job.done:
                if self.talk(rater) is talk:
                    yield talk
                job.wait_for_more(turn.answers, SECONDS_A_LOOK)
                turn.answers = list(job.texts)
        finally:
            if not job.done:  # nobody looks on any more
                self.ahead.engine.stop(job)
        if job.error is not None:
            return
        turn.answers = list(job.texts)
        if job.value.get("features"):
            self.ahead.states.put(prompt, turn.answers, job.value["features"])
        if self.talk(rater) is talk:
            yield talk
