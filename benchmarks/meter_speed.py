"""The Rate page's meter with many votes: a report, and a vote predicted and added to its fit.

With the order "most informative first" there is a step more: the order of 24 waiting items, for
which the rater waits.

    .venv/bin/python benchmarks/meter_speed.py
    .venv/bin/python benchmarks/meter_speed.py --votes 200 20000 60000

One rater, random features as wide as those of the small base (1,152) with 20 axes. A report is what
the page asks for after a vote; a vote is handled in a thread, so that no rater waits for it.
"""

import argparse
import math
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from fit_speed import AXES, WIDTH

from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.preferences.store import Store
from lorarlhf_ui.engine_worker import packed
from lorarlhf_ui.hidden_states import HiddenStates
from lorarlhf_ui.information_order import MOST_COMPARED, InformationOrder
from lorarlhf_ui.meter import MAX_PAIRS, Meter

FIRST, RATER = Verdict("ranked", [[0], [1]]), "me"


def main() -> None:
    """Print a Markdown table in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--votes", type=int, nargs="+", default=[200, 2000, 20_000])
    parser.add_argument("--more", type=int, default=60, help="votes that are timed")
    args = parser.parse_args()
    print(
        "| votes before | a report, ms | a vote, ms (median) | 9 in 10 below | the slowest "
        "| the order |"
    )
    print("|---|---|---|---|---|---|")
    for count in args.votes:
        with TemporaryDirectory() as folder:
            report, votes, order = measure(Path(folder), count, args.more)
        ordered = sorted(votes)
        tenth = ordered[math.ceil(0.9 * len(ordered)) - 1]
        print(
            f"| {count:,} | {median(report):.1f} | {median(votes):.0f} | {tenth:.0f} | "
            f"{ordered[-1]:.0f} | {median(order):.0f} |",
            flush=True,
        )


def measure(folder: Path, count: int, more: int) -> tuple[list[float], ...]:
    """Milliseconds of reports, of votes from their arrival until the new head is there, and of the
    order of the waiting items by it."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=WIDTH)
    store, states = Store(folder / "votes.sqlite"), HiddenStates(folder / "states.sqlite")
    states.use("random")
    states.put_axes([packed(row) for row in rng.normal(size=(AXES, WIDTH))])
    votes = []
    for place in range(count + more):
        prompt = [{"role": "user", "content": f"Question {place}?"}]
        texts = (f"{place} one answer", f"{place} another")
        votes.append(ImportedVote(prompt, tuple((t, "base") for t in texts), FIRST, rater=RATER))
        if place >= count - 2 * MAX_PAIRS:  # older votes are not in the fit
            rows = sorted(rng.normal(size=(2, WIDTH)), key=lambda row: -(row @ truth))
            states.put(prompt, texts, [packed(row) for row in rows])
    add_votes(store, votes[:count])
    order = InformationOrder(Store(store.path), states)
    meter = Meter(Store(store.path), HiddenStates(folder / "states.sqlite"), learned=order.learn)
    for place in range(MOST_COMPARED):
        texts = (f"waiting {place}", f"waiting {place}, another")
        states.put("Waiting?", texts, [packed(row) for row in rng.normal(size=(2, WIDTH))])
        store.add_item("Waiting?", [(text, "base") for text in texts])
    reports, spans, orders = [], [], []
    for vote in votes[count:]:
        item = store.add_item(vote.prompt, vote.completions)
        number = store.judge(store.present(item, RATER).token, FIRST)
        started = time.perf_counter()
        meter.voted(RATER, number)
        meter.wait()
        spans.append(1000 * (time.perf_counter() - started))
        started = time.perf_counter()
        meter.report(RATER)
        reports.append(1000 * (time.perf_counter() - started))
        started = time.perf_counter()
        assert len(order.best_first(RATER)) == MOST_COMPARED
        orders.append(1000 * (time.perf_counter() - started))
    # The first vote reads the earlier ones from the store.
    return reports[1:], spans[1:], orders[1:]


if __name__ == "__main__":
    main()
