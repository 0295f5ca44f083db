"""The Insights page with many votes: what a request takes, and until each section is there.

    .venv/bin/python benchmarks/insights_speed.py
    .venv/bin/python benchmarks/insights_speed.py --votes 200 2000 50000

Three raters, who share a fifth of the pairs. Answers of 10 to 60 words, some with lists and bold;
random features as wide as those of the small base (1,152) with its 20 axes. The figures are
computed in a thread, so a request answers at once; the page shows each section as soon as it is
there.
"""

import argparse
import random
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
from fit_speed import AXES, WIDTH

from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.preferences.store import Store
from lorarlhf_ui.engine_worker import packed
from lorarlhf_ui.hidden_states import HiddenStates
from lorarlhf_ui.insights import Insights
from lorarlhf_ui.taste_fit import MOST_PAIRS

FIRST, SECOND = Verdict("ranked", [[0], [1]]), Verdict("ranked", [[1], [0]])
RATERS = ("ann", "bob", "me")
WORDS = ("the", "cat", "sat", "on", "mats", "and", "looked", "at", "rain", "over", "green", "hills")
SECTIONS = ("tastes", "causes", "raters", "more", "reward")


def main() -> None:
    """Print a Markdown table in seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--votes", type=int, nargs="+", default=[200, 2000, 50_000])
    args = parser.parse_args()
    print("| votes | the slowest request, ms | until the tastes, s | the raters, s | all, s |")
    print("|---|---|---|---|---|")
    for count in args.votes:
        with TemporaryDirectory() as folder:
            slowest, there = measure(Path(folder), count)
        seconds = (there["tastes"], there["raters"], max(there.values()))
        row = " | ".join(f"{span:.1f}" for span in seconds)
        print(f"| {count:,} | {1000 * slowest:.0f} | {row} |", flush=True)


def measure(folder: Path, count: int) -> tuple[float, dict[str, float]]:
    """Seconds of the slowest request, and from the first one until each section is there."""
    store, states = Store(folder / "votes.sqlite"), HiddenStates(folder / "states.sqlite")
    fill(store, states, count)
    no_model: Any = SimpleNamespace(state="off", message="")  # all hidden states are there
    page: Any = Insights(store, states, no_model, everybody=True)
    there: dict[str, float] = {}
    slowest, begun = 0.0, time.perf_counter()
    while True:
        started = time.perf_counter()
        view = page.look("me", {"scope": "all", "again": bool(slowest)})
        now = time.perf_counter()
        slowest = max(slowest, now - started)
        for name in view["sections"]:
            there.setdefault(name, now - begun)
        if not view["busy"]:
            assert set(there) == set(SECTIONS), view["problem"]
            return slowest, there
        time.sleep(0.05)


def fill(store: Store, states: HiddenStates, count: int) -> None:
    """Votes with a taste along a direction; only the newest have hidden states."""
    rng, drawn = np.random.default_rng(0), random.Random(0)
    states.use("random")
    states.put_axes([packed(row) for row in rng.normal(size=(AXES, WIDTH))])
    truth, votes = rng.normal(size=WIDTH), []
    for place in range(count):
        prompt = [{"role": "user", "content": f"Question {place // 5 * 5 + place % 4}?"}]
        number = place // 5 * 5 + place % 4  # every fifth vote is another rater's on the same pair
        texts = tuple(text(random.Random(f"{number} {side}")) for side in (0, 1))
        verdict = drawn.choice((FIRST, SECOND))
        if place >= count - 2 * MOST_PAIRS:
            rows = sorted(rng.normal(size=(2, WIDTH)), key=lambda row: -(row @ truth))
            states.put(
                prompt, texts, [packed(row) for row in (rows if verdict == FIRST else rows[::-1])]
            )
        answers = tuple((answer, "base") for answer in texts)
        rater = RATERS[place % 5 % 3 if place % 5 < 4 else 1 - place % 2]
        votes.append(ImportedVote(prompt, answers, verdict, rater=rater, item=str(number)))
    add_votes(store, votes)


def text(drawn: random.Random) -> str:
    """An answer, perhaps with a list or with bold."""
    words = drawn.choices(WORDS, k=drawn.randint(10, 60))
    if drawn.random() < 0.2:
        words = [f"\n- {word}" for word in words]
    if drawn.random() < 0.2:
        words[0] = f"**{words[0]}**"
    return " ".join(words)


if __name__ == "__main__":
    main()
