"""Does it save votes to ask the most informative pair next?

Three simulated raters with 10% noise vote on pairs of the base's answers to the bundled prompts.
For each of ten seeds, 60 prompts are held out. The head is fitted to the votes so far, as on the
Rate page, and judged on pairs of answers to the held-out prompts, by the rater's rule
without noise and without near ties (as in `votes_to_accuracy.py`).

    python benchmarks/ask_next.py --jobs 2 --out runs/ask_next.json
    python benchmarks/ask_next.py --tables runs/ask_next.json

Each row of a table is a set of pairs from which the next one is chosen, and what it is chosen by:

- queue of N: N pairs wait, and a new one takes the place of the one that is asked, as on the page.
  What was not chosen stays, so that in the long run everything is asked;
- best of N new: N pairs are drawn anew each time, and those not chosen are dropped;
- pairs of a prompt: a new prompt each time; one of the six pairs of its four answers;
- information: the mutual information of the vote and the weights (`rewards/information.py`), by the
  posterior before the newest vote, as on the page; from 20 votes on it is renewed after five each;
- fisher: the gain in the determinant of the information matrix (arXiv 2502.04354);
- moderate: information, among pairs whose vote is predicted with 20% to 80% as far as there are
  any, since the most informative pairs may be outliers.

Columns: accuracy by number of votes; the difference to random at 100 votes; how many votes are
needed for the accuracy that random has at 100; and how many pairs are asked for 100 votes, as the
rater calls some a tie. Intervals are those of a bootstrap over seeds (95%). "random, again" is
random with other draws, and shows what is chance.
"""

import argparse
import itertools
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from _fisher import fisher_gain
from _pools import (
    MAX_NEW_TOKENS,
    PAIRS,
    bundled_prompts,
    held_out_pairs,
    pair_accuracy,
    sample_pool,
    split_prompts,
)

from lorarlhf.backbone.base import Backbone
from lorarlhf.rewards.axes import style_axes
from lorarlhf.rewards.fit import HeadFit, in_vote_space
from lorarlhf.rewards.information import mutual_information
from lorarlhf.rewards.posterior import Posterior, moderated
from lorarlhf.rewards.raters import RATERS
from lorarlhf.rewards.vote_fit import VoteFit

NOISE = 0.1
VOTES = (25, 50, 75, 100, 150, 200)
SHOWN = (25, 50, 100, 150, 200)
TARGET = 100
SEEDS = 10
FEWEST = 4  # as on the page: with fewer votes there is no head
WIDTHS = {"cheerful": 0.37, "brief": 0.03, "plain": 0.0}
"""How far the scores of a held-out pair differ at least; see `votes_to_accuracy.py`."""
DRAWS = 2000

Pair = tuple[int, int, int]  # a prompt and two of its answers


@dataclass(frozen=True)
class Way:
    """A way of asking: the set of pairs, its size, and what the next one is chosen by."""

    choice: str
    size: int
    order: str

    @property
    def chooses(self) -> bool:
        """Whether the head has a say."""
        return not self.order.startswith("random")

    @property
    def name(self) -> str:
        if not self.chooses:
            return self.order
        sets = {"queue": "queue of {}", "new": "best of {} new", "prompt": "pairs of a prompt"}
        return f"{sets[self.choice].format(self.size)}: {self.order}"


WAYS = (
    Way("queue", 1, "random"),
    Way("queue", 1, "random, again"),
    Way("queue", 6, "information"),
    Way("queue", 24, "information"),
    Way("new", 6, "information"),
    Way("prompt", 6, "information"),
    Way("new", 48, "information"),
    Way("new", 48, "fisher"),
    Way("new", 48, "moderate"),
)


class Candidates:
    """The pairs that wait to be asked."""

    def __init__(self, way: Way, prompts: list[int], draw: np.random.Generator) -> None:
        self.way, self.draw = way, draw
        self.stream = self._in_turn(prompts)
        self.left = list(self.stream) if way.choice == "new" else []
        self.waiting: list[Pair] = []
        self.asked: set[Pair] = set()

    def _in_turn(self, prompts: list[int]) -> Iterator[Pair]:
        """One pair of every prompt, then the next one of each; the prompts in a new order."""
        for a, b in PAIRS:
            for place in self.draw.permutation(prompts):
                yield int(place), a, b

    def options(self) -> list[Pair]:
        """Among which the next one is chosen; the first has waited the longest."""
        if self.way.choice == "new":
            places = self.draw.choice(len(self.left), min(self.way.size, len(self.left)), False)
            self.waiting = [self.left[place] for place in places]
        elif self.way.choice == "prompt":
            place = next(self.stream)[0]
            self.waiting = [(place, a, b) for a, b in PAIRS if (place, a, b) not in self.asked]
        else:
            more = self.way.size - len(self.waiting)
            self.waiting += itertools.islice(self.stream, more)
        return self.waiting

    def take(self, pair: Pair) -> None:
        """It is asked."""
        self.asked.add(pair)
        if self.way.choice == "new":
            self.left.remove(pair)
        elif self.way.choice == "queue":
            self.waiting.remove(pair)


def chosen(
    way: Way,
    options: list[Pair],
    features: np.ndarray,
    posterior: Posterior | None,
) -> Pair:
    """The pair of `options` that is asked next."""
    if posterior is None:
        return options[0]
    place, first, second = np.array(options).T
    mean, deviation = posterior.margins(features[place, first], features[place, second])
    gain = (fisher_gain if way.order == "fisher" else mutual_information)(mean, deviation)
    if way.order == "moderate":
        gain = gain - (np.abs(moderated(mean, deviation) - 0.5) > 0.3)
    return options[int(np.argmax(gain))]


def simulate(
    way: Way,
    features: np.ndarray,
    vote: Callable[[Pair], int],
    prompts: list[int],
    axes: np.ndarray | None,
    draw: np.random.Generator,
    counts: tuple[int, ...] = VOTES,
) -> Iterator[tuple[VoteFit, HeadFit, int]]:
    """Vote until there are as many votes as the last of `counts`.

    Args:
        features: (P, A, F) of all answers.
        vote: 1 if the first answer of a pair wins, -1 if the second does, 0 for a tie.
        prompts: those that are voted on.

    Yields:
        At each of `counts`: the votes so far, their head, and how many pairs were asked for them.
    """
    fit, blend, posterior, asked = VoteFit(axes), None, None, 0
    candidates, marks = Candidates(way, prompts, draw), list(counts)
    while marks:
        pair = chosen(way, candidates.options(), features, posterior)
        candidates.take(pair)
        asked += 1
        won = vote(pair)
        if not won:
            continue
        due = len(fit) % (1 if len(fit) < 20 else 5) == 0
        if len(fit) >= FEWEST and due and way.chooses:
            # Without this vote: the page asks the next pair before it is learned.
            blend = blend or fit.fit().blend
            rows = fit.chosen, fit.rejected
            posterior = Posterior(*in_vote_space(*rows, background=rows, axes=axes), blend)
        place, first, second = pair if won > 0 else (pair[0], pair[2], pair[1])
        fit.add(features[place, first], features[place, second], place)
        if len(fit) == marks[0]:
            head = fit.subset(range(len(fit))).fit()  # its priors are weighted anew
            blend = head.blend
            yield fit, head, asked
            marks.pop(0)


def one_seed(
    features: np.ndarray, truth: np.ndarray, name: str, axes: np.ndarray | None, seed: int
) -> dict[str, list[tuple[float, int]]]:
    """By way: accuracy and pairs asked at each of `VOTES`, for one rater and one seed; from the
    features (P, A, F) and what the rater's rule scores (P, A)."""
    seen, unseen = split_prompts(len(truth), min(60, len(truth) // 4), seed)
    flipped = np.random.default_rng([seed, 1]).random(truth.shape + truth.shape[1:]) < NOISE
    width = RATERS[name].tie_width * (1 + 1e-9)

    def vote(pair: Pair) -> int:
        place, a, b = pair
        margin = truth[place, a] - truth[place, b]
        return 0 if abs(margin) <= width else int(np.sign(margin)) * (1 - 2 * flipped[pair])

    pairs = held_out_pairs(truth, unseen, WIDTHS[name])
    found: dict[str, list[tuple[float, int]]] = {}
    for way in WAYS:
        draw = np.random.default_rng([seed, 2 + (way.order == "random, again")])
        found[way.name] = [
            (pair_accuracy(head.score(features), pairs), asked)
            for _, head, asked in simulate(way, features, vote, seen, axes, draw)
        ]
    return found


# ---- tables


def votes_needed(curve: np.ndarray, target: float) -> float:
    """Votes at which a curve over `VOTES` first reaches a target, on a straight line between two of
    them; infinite if it does not."""
    best = np.maximum.accumulate(curve)
    if best[-1] < target:
        return float("inf")
    return float(np.interp(target, best + 1e-12 * np.arange(len(best)), VOTES))


def summarise(found: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """By way: means, differences to random and votes needed, each with its interval; `found`: by
    way, (S, R, V, 2), accuracy and pairs asked of S seeds and R raters at V = `VOTES`."""
    seeds = len(found["random"])
    draws = np.random.default_rng(0).integers(0, seeds, (DRAWS, seeds))
    at = VOTES.index(TARGET)
    plain = found["random"][..., 0].mean(axis=1)  # (S, V)
    table = {}
    for name, both in found.items():
        curves = both[..., 0].mean(axis=1)
        apart = curves[:, at] - plain[:, at]
        needed = [votes_needed(curves[rows].mean(axis=0), plain[rows, at].mean()) for rows in draws]
        table[name] = {
            "accuracy": curves.mean(axis=0).tolist(),
            "apart": [apart.mean(), *np.quantile(apart[draws].mean(axis=1), (0.025, 0.975))],
            "needed": [
                votes_needed(curves.mean(axis=0), plain[:, at].mean()),
                *np.quantile(needed, (0.025, 0.975), method="inverted_cdf"),
            ],
            "asked": both[:, :, at, 1].mean(),
        }
    return table


def print_table(title: str, table: dict[str, dict[str, Any]]) -> None:
    """Print a Markdown table."""

    def votes(value: float) -> str:
        return f"over {VOTES[-1]}" if value == float("inf") else f"{value:.0f}"

    print(f"\n{title}\n")
    print("| asked | " + " | ".join(f"{n} votes" for n in SHOWN), end="")
    print(f" | difference at {TARGET} | votes needed | pairs asked |")
    print("|---" * (len(SHOWN) + 4) + "|")
    for name, row in table.items():
        shown = [row["accuracy"][VOTES.index(count)] for count in SHOWN]
        middle, low, high = (100 * value for value in row["apart"])
        needed, fewest, most = (votes(value) for value in row["needed"])
        print(
            f"| {name} | " + " | ".join(f"{value:.1%}" for value in shown) + " | "
            f"{middle:+.1f} ({low:+.1f} to {high:+.1f}) | {needed} ({fewest} to {most}) | "
            f"{row['asked']:.0f} |"
        )


def print_tables(found: dict[str, list[dict[str, Any]]]) -> None:
    """A table of all raters together, then one of each; `found`: by rater, by seed, by way.

    Of an unfinished run, the seeds that all raters have.
    """
    stacked = {
        way.name: np.array(
            [[one[way.name] for one in rows] for rows in zip(*found.values(), strict=False)]
        )
        for way in WAYS
    }
    print(f"\n{len(stacked['random'])} seeds")
    print_table("all raters", summarise(stacked))
    for place, name in enumerate(found):
        print_table(name, summarise({way: x[:, [place]] for way, x in stacked.items()}))


# ---- the run


def run(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Simulate all raters and seeds; what is known so far is written after each."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that are started below
    backbone = Backbone.load(args.base)
    axes = style_axes(backbone, log=print)[1]
    pool = sample_pool(backbone, MAX_NEW_TOKENS, 1.0, bundled_prompts())
    features = pool.mean.astype(np.float32)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in args.raters}
    truth = {
        name: np.array([[RATERS[name].score(one) for one in row] for row in pool.answers])
        for name in found
    }
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as workers:
        running = [
            (name, workers.submit(one_seed, features, truth[name], name, axes, seed))
            for seed in range(args.seeds)
            for name in args.raters
        ]
        for name, job in running:
            found[name].append(job.result())
            print(f"{name}: {len(found[name])} of {args.seeds} seeds", flush=True)
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return found


def main() -> None:
    """Simulate, or read the file of a run, and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m", help="name, folder or id of a base")
    parser.add_argument("--raters", nargs="+", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1, help="processes that simulate")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--tables", type=Path, help="only print the tables of such a file")
    args = parser.parse_args()
    print_tables(json.loads(args.tables.read_text("utf-8")) if args.tables else run(args))


if __name__ == "__main__":
    main()
