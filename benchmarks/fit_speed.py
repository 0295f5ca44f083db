"""Seconds and memory of the reward head's fit by number of votes.

    .venv/bin/python benchmarks/fit_speed.py

Features as wide as those of the small base (1,152, and 20 axes), random, with a planted preference
and one vote in ten reversed. Each number of votes runs in a process of its own. The peak counts
what the fit adds to the process with the features, which is the column before it. The slope is that
of the seconds between two rows, in logarithms: 1 is a time that grows as the votes do.
"""

import argparse
import json
import math
import subprocess
import sys
import time

import numpy as np
from _memory import forget_peak, held_mb, peak_mb

from lorarlhf.rewards.vote_fit import VoteFit

WIDTH, AXES = 1152, 20
VOTES_PER_PROMPT = 2


def planted(votes: int) -> VoteFit:
    """Votes on random features; half of what decides them lies along an axis."""
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(AXES, WIDTH)).astype(np.float32)
    truth = axes[0] / np.linalg.norm(axes[0]) + rng.normal(size=WIDTH) / math.sqrt(WIDTH)
    chosen, rejected = (rng.standard_normal((votes, WIDTH), np.float32) for _ in range(2))
    wrong = ((chosen - rejected) @ truth < 0) ^ (rng.random(votes) < 0.1)
    chosen[wrong], rejected[wrong] = rejected[wrong], chosen[wrong]
    found = VoteFit(axes)
    found.add_all(chosen, rejected, [str(n // VOTES_PER_PROMPT) for n in range(votes)])
    return found


def measure(count: int) -> dict[str, float]:
    """Fit so many votes, then one more with the same shares of the priors."""
    votes = planted(count)
    before = held_mb()
    forget_peak()
    started = time.perf_counter()
    fit = votes.fit()
    seconds = time.perf_counter() - started
    peak = peak_mb() - before
    votes.add(np.ones(WIDTH), np.zeros(WIDTH), "one more")
    started = time.perf_counter()
    votes.fit()
    again = time.perf_counter() - started
    return {
        "seconds": seconds,
        "again": again,
        "features_mb": 2 * count * WIDTH * 4 / 1e6,
        "peak_mb": peak,
        "accuracy": fit.blend.cv_accuracy or math.nan,
    }


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--votes", type=int, nargs="+", default=[200, 800, 2000, 20_000, 60_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    print(
        "| votes | seconds | slope | one more vote, s | features, MB | peak on top, MB | accuracy |"
    )
    print("|---|---|---|---|---|---|---|")
    last: tuple[int, float] | None = None
    for count in args.votes:
        command = [sys.executable, __file__, "--one", str(count)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout)
        seconds, slope = row["seconds"], ""
        if last is not None:
            slope = f"{math.log(seconds / last[1]) / math.log(count / last[0]):.2f}"
        last = count, seconds
        print(
            f"| {count:,} | {seconds:.1f} | {slope} | {row['again']:.2f} | "
            f"{row['features_mb']:.0f} | {row['peak_mb']:.0f} | {row['accuracy']:.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
