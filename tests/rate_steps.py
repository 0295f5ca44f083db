"""What the tests of the Rate page's requests share: a rater's steps, and verdicts."""

from typing import Any

from lorarlhf.preferences.records import Vote
from tests.pages import Bench, Request

View = dict[str, Any]
LEFT = {"verdict": "ranked", "ranking": [[0], [1]]}
RIGHT = {"verdict": "ranked", "ranking": [[1], [0]]}
RANKED = {"verdict": "ranked", "ranking": [[3], [0, 2], [1]]}


def begin(bench: Bench, rater: str = "ann") -> View:
    return bench.ratings.begin(rater)


def vote(bench: Bench, token: Any, ballot: Any = LEFT, rater: str = "ann", ms: Any = 900) -> View:
    return bench.ratings.vote(rater, token, ballot, ms)


def live(bench: Bench, *texts: str, rater: str = "ann") -> tuple[Request, View]:
    """Answers that are written just now, and what the page shows of them."""
    assert begin(bench, rater)["token"].startswith("live-")
    asked = bench.engine.live[-1]
    asked.write(*texts)
    return asked, bench.ratings.watch(rater, [""] * len(texts))


def only(bench: Bench) -> Vote:
    (kept,) = bench.store.votes()
    return kept


def on_screen(view: View) -> list[str]:
    return [answer["text"] for answer in view["answers"]]
