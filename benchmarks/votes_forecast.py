"""Is the forecast of the learning curve right? Accuracy at twice the votes, foretold and measured.

    .venv/bin/python benchmarks/votes_forecast.py
    .venv/bin/python benchmarks/votes_forecast.py --seeds 10 --votes 100

Made-up features whose deviations fall like those of hidden states do (1 / sqrt(k)), a random linear
rule, and votes that break it at a set rate, two on each prompt. `easy` has 10 features, `hard` 200;
in `random` every vote is a coin. For each seed the curve of n votes is continued to 2n, and the
fit to 2n votes is measured on 4,000 fresh ones: how often the 95% interval holds what it reached,
how far the forecast was off on average, and what the verdict was.
"""

import argparse
from collections import Counter
from statistics import fmean

import numpy as np

from lorarlhf.rewards.learning_curve import forecast
from lorarlhf.rewards.vote_fit import VoteFit

FRESH = 4000
Measured = tuple[float, float, bool, float, str]
"""Accuracy at twice the votes, distance of the forecast, whether its interval holds it, the gain
from the votes to twice as many, the verdict."""
RULES = {"easy": (10, 0.1), "hard": (200, 0.1), "random": (50, 0.5)}
"""Width and share of votes against the rule."""


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--votes", type=int, nargs="+", default=[50, 100, 200, 400])
    parser.add_argument("--seeds", type=int, default=40)
    args = parser.parse_args()
    names = ["rule", "votes", "accuracy at twice", "interval holds it", "off by", "gain"]
    print("| " + " | ".join([*names, "more", "enough", "unclear"]) + " |")
    print("|" + "---|" * (len(names) + 3))
    for rule, (width, wrong) in RULES.items():
        for count in args.votes:
            rows = [measure(width, wrong, count, seed) for seed in range(args.seeds)]
            print(f"| `{rule}` | {count} | {summary(rows)} |", flush=True)


def summary(rows: list[Measured]) -> str:
    """The last columns of the table."""
    reached, off, held, gain, verdicts = zip(*rows, strict=True)
    counted = Counter(verdicts)
    shares = [f"{counted[name] / len(rows):.0%}" for name in ("more", "enough", "unclear")]
    figures = [f"{fmean(reached):.1%}", f"{fmean(held):.0%}", f"{100 * fmean(off):.1f}"]
    figures += [f"{100 * fmean(gain):.1f}", *shares]
    return " | ".join(figures)


def measure(width: int, wrong: float, count: int, seed: int) -> Measured:
    """One seed of a rule."""
    rng = np.random.default_rng(seed)
    spread = 1 / np.sqrt(np.arange(1, width + 1))
    rule = rng.normal(size=width)

    def votes(number: int) -> VoteFit:
        rows = (rng.normal(size=(number, 2, width)) * spread).astype(np.float32)
        order = np.argsort(rows @ rule, axis=1) ^ (rng.random((number, 1)) < wrong)
        made = VoteFit()
        chosen, rejected = (rows[np.arange(number), order[:, side]] for side in (1, 0))
        made.add_all(chosen, rejected, [place // 2 for place in range(number)])
        return made

    twice, fresh = votes(2 * count), votes(FRESH)
    half = twice.subset(range(count))
    half.fit()
    found = forecast(half, seed)
    assert found is not None
    head = [part.fit() for part in (half, twice)]
    before, reached = (
        float((fit.score(fresh.chosen) > fit.score(fresh.rejected)).mean()) for fit in head
    )
    then = found.doubled
    holds = then.low <= reached <= then.high
    return reached, abs(then.accuracy - reached), holds, reached - before, found.verdict


if __name__ == "__main__":
    main()
