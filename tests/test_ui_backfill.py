"""Hidden states that two threads ask for: each vote is read once, the newest first."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorarlhf.preferences.records import Vote
from lorarlhf.preferences.store import Store
from lorarlhf_ui.backfill import FeatureBackfill
from lorarlhf_ui.engine_client import READY, Job
from lorarlhf_ui.engine_worker import packed
from lorarlhf_ui.hidden_states import HiddenStates
from lorarlhf_ui.meter import MIN_PAIRS, Meter
from tests.pages import FIRST, until

ROWS = [packed(row) for row in np.eye(2, 8)]


class SlowReader:
    """An engine that reads texts when the test says so.

    Attributes:
        asked: the answers of each vote that it was asked to read, and the job.
    """

    state = READY

    def __init__(self) -> None:
        self.asked: list[tuple[str, Job]] = []

    def features(self, prompts: Sequence[Any], answers: Sequence[str]) -> Job:
        self.asked.append((answers[0], Job(1)))
        return self.asked[-1][1]

    def next(self, count: int) -> Job:
        """The job of the vote that is read as number `count`, from 1."""
        return until(lambda: self.asked[count - 1 : count])[0][1]

    @property
    def texts(self) -> list[str]:
        return [text for text, _ in self.asked]


class Reading:
    """A store with votes without hidden states, and what reads them."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "votes.sqlite")
        self.states = HiddenStates(folder / "states.sqlite")
        self.states.use("made up")
        self.engine = SlowReader()
        self.backfill = FeatureBackfill(self.engine, self.states)  # type: ignore[arg-type]
        self.called: list[str] = []

    def vote(self, text: str) -> Vote:
        item = self.store.add_item(f"{text}?", [(text, "base"), (f"{text}, another", "base")])
        vote = self.store.vote(self.store.judge(self.store.present(item, "ann").token, FIRST))
        assert vote is not None
        return vote

    def note(self, name: str) -> Callable[[], None]:
        return lambda: self.called.append(name)


@pytest.fixture
def reading(tmp_path: Path) -> Reading:
    return Reading(tmp_path)


def test_all_who_ask_for_a_vote_are_told(reading: Reading) -> None:
    vote = reading.vote("a")
    reading.backfill.fetch(vote, reading.note("first"))
    job = reading.engine.next(1)
    reading.backfill.fetch(vote, reading.note("second"))  # while it is read
    assert reading.called == []
    job.update(value=ROWS, done=True)
    until(lambda: len(reading.called) == 2)
    assert reading.called == ["first", "second"] and reading.engine.texts == ["a"]
    reading.backfill.fetch(vote, reading.note("after"))
    assert reading.called[2:] == ["after"] and reading.engine.texts == ["a"]


def test_the_newest_vote_is_read_first(reading: Reading) -> None:
    votes = [reading.vote(text) for text in "abcd"]
    for vote in votes[:3]:  # the engine is at the first one
        reading.backfill.fetch(vote, reading.note(vote.completions[0]))
        reading.engine.next(1)
    reading.backfill.fetch(votes[3], reading.note("d"))
    for count in range(1, 5):
        reading.engine.next(count).update(value=ROWS, done=True)
    until(lambda: len(reading.called) == 4)
    assert reading.engine.texts == reading.called == ["a", "d", "c", "b"]


def test_what_the_engine_cannot_read_is_asked_once(reading: Reading) -> None:
    bad, good = reading.vote("bad"), reading.vote("good")
    reading.backfill.fetch(bad, reading.note("bad"))
    job = reading.engine.next(1)
    reading.backfill.fetch(bad, reading.note("bad, too"))
    reading.backfill.fetch(good, reading.note("good"))
    job.update(error="It is too long.", done=True)
    reading.engine.next(2).update(value=ROWS, done=True)  # the thread goes on
    until(lambda: reading.called)
    reading.backfill.fetch(bad, reading.note("bad, again"))
    assert reading.called == ["good"] and reading.engine.texts == ["bad", "good"]


def test_a_vote_that_insights_asked_for_still_reaches_the_raters_head(reading: Reading) -> None:
    meter = Meter(Store(reading.store.path), reading.states, reading.backfill.fetch)
    votes = [reading.vote(f"{n}") for n in range(MIN_PAIRS)]
    for vote in votes:
        reading.backfill.fetch(vote, lambda: None)  # as the Insights page does
    for vote in votes:
        meter.voted("ann", vote.id)
    assert meter.wait() and meter._heads["ann"].votes == set()
    for count in range(1, MIN_PAIRS + 1):
        reading.engine.next(count).update(value=ROWS, done=True)
    until(lambda: meter._heads["ann"].votes == {vote.id for vote in votes})
    assert meter.wait() and meter._heads["ann"].head is not None
