"""What the tests of the Insights page share: planted votes with their states, and its requests."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.preferences.store import Store
from lorarlhf.rewards.tastes import axis_sides
from lorarlhf_ui.engine_client import Job
from lorarlhf_ui.engine_worker import packed
from lorarlhf_ui.hidden_states import HiddenStates
from lorarlhf_ui.insights import Insights
from lorarlhf_ui.taste_fit import TasteFit, fit_tastes, known_pairs, newest_that_prefer
from tests.pages import FakeEngine

FIRST, SECOND = Verdict("ranked", [[0], [1]]), Verdict("ranked", [[1], [0]])
WIDTH = 40
SIDES = list(axis_sides())
HOSTILE = "<img src=x onerror=alert(1)>"
PASSWORD = "quiet harbour 7"
SECTIONS = {"tastes", "causes", "raters", "more", "reward"}


class Planted:
    """A project's store and hidden states, with a taste for the first end of one axis."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "votes.sqlite")
        self.states = HiddenStates(folder / "states.sqlite")
        self.states.use("planted")
        self.rng = np.random.default_rng(0)
        self.axes = np.linalg.qr(self.rng.normal(size=(WIDTH, len(SIDES))))[0].T
        self.states.put_axes([packed(row) for row in self.axes])
        self.count = 0

    def vote(self, count: int, rater: str = "me", axis: int = 4, known: bool = True) -> None:
        """Votes for the answer further along an axis."""
        votes = []
        for number in range(self.count, self.count + count):
            prompt = [{"role": "user", "content": f"Question {number}?"}]
            rows = self.rng.normal(size=(2, WIDTH))
            verdict = FIRST if rows[0] @ self.axes[axis] > rows[1] @ self.axes[axis] else SECOND
            texts = [f"{number} goes {row @ self.axes[axis]:+.3f} {HOSTILE}" for row in rows]
            if known:
                self.states.put(prompt, texts, [packed(row) for row in rows])
            answers = tuple((text, "base") for text in texts)
            votes.append(ImportedVote(prompt, answers, verdict, rater=rater, created_at=number))
        add_votes(self.store, votes)
        self.count += count


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path)


def insights(planted: Planted, engine: Any = None, **more: Any) -> Insights:
    store, engine = Store(planted.store.path), engine or FakeEngine()
    return Insights(store, planted.states, engine, everybody=more.pop("everybody", True), **more)


def fit(planted: Planted) -> TasteFit:
    return fit_tastes(known_pairs(newest_that_prefer(planted.store.votes()), planted.states))


def looked(page: Insights, rater: str = "me", scope: str = "visible") -> dict[str, Any]:
    """What the page shows in the end."""
    page.look(rater, {"scope": scope})
    assert page.wait()
    return page.look(rater, {"scope": scope, "again": True})


class Reads(FakeEngine):
    """An engine that gives this axis for every two texts."""

    def __init__(self, row: np.ndarray) -> None:
        super().__init__()
        self.row, self.asked = row, list[tuple[str, str]]()

    def direction(self, first: str, second: str) -> Job:
        self.asked.append((first, second))
        job = Job()
        job.update(value=packed(self.row), done=True)
        return job
