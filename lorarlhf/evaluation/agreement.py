"""Agreement between raters, and of raters with themselves, beyond what chance would give.

A verdict on a pair is the position of the better answer, or `TIE`. Only numpy is used.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lorarlhf.preferences.records import RANKED, SKIP, Vote
from lorarlhf.preferences.statistics import FEWEST_OVERLAPS

TIE = -1
RESAMPLES = 2000


@dataclass(frozen=True)
class Agreement:
    """How far raters agree on the items that several of them rated.

    Attributes:
        items: that two or more raters rated.
        raw: the share of pairs of verdicts on one item that are the same; None with too few items.
        alpha: Krippendorff's, for categories: 0 is what chance gives, 1 is full agreement; None
            also where all verdicts are the same.
        low, high: its 95% interval, by a bootstrap over the items.
    """

    items: int
    raw: float | None = None
    alpha: float | None = None
    low: float | None = None
    high: float | None = None


def verdict_on(vote: Vote) -> int | None:
    """The better of two answers, or `TIE`; None for skips and for other numbers of answers."""
    if len(vote.completions) != 2 or vote.verdict.verdict == SKIP:
        return None
    return vote.verdict.ranking[0][0] if vote.verdict.verdict == RANKED else TIE


def votes_by_item(votes: Iterable[Vote]) -> dict[int, dict[str, Vote]]:
    """Each rater's vote on each item of two answers; the last one, and no repeats or skips."""
    units: dict[int, dict[str, Vote]] = {}
    for vote in votes:
        if verdict_on(vote) is not None and vote.repeats is None:
            units.setdefault(vote.item_id, {})[vote.rater] = vote
    return units


def agreement_of(votes: Iterable[Vote], seed: int = 0) -> Agreement:
    """Agreement between raters; only the number of items below `FEWEST_OVERLAPS` of them."""
    units = [
        [verdict for vote in unit.values() if (verdict := verdict_on(vote)) is not None]
        for unit in votes_by_item(votes).values()
        if len(unit) > 1
    ]
    if len(units) < FEWEST_OVERLAPS:
        return Agreement(len(units))
    pairs = [pair for unit in units for pair in itertools.combinations(unit, 2)]
    raw = sum(a == b for a, b in pairs) / len(pairs)
    tables = _coincidences(units)
    alpha = _alpha(tables.sum(axis=0))
    # Items with the same verdicts are drawn together, so that a resample takes no time.
    kinds, counts = np.unique(tables.reshape(len(tables), -1), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(units), counts / len(units), size=RESAMPLES) @ kinds
    alphas = [_alpha(table) for table in drawn.reshape(-1, *tables.shape[1:])]
    known = [value for value in alphas if not math.isnan(value)]
    if math.isnan(alpha) or not known:
        return Agreement(len(units), raw)
    low, high = np.percentile(known, [2.5, 97.5])
    return Agreement(len(units), raw, alpha, float(low), float(high))


def krippendorff_alpha(units: Sequence[Sequence[int]]) -> float:
    """Krippendorff's alpha for categories (Krippendorff 2011, "Computing Krippendorff's
    alpha-reliability", part C).

    Args:
        units: the verdicts on each item; items with a single one count nothing.

    Returns:
        1 - observed / expected disagreement; NaN if all verdicts are the same.
    """
    return _alpha(_coincidences([unit for unit in units if len(unit) > 1]).sum(axis=0))


def _coincidences(units: Sequence[Sequence[int]]) -> np.ndarray:
    """For each item (U, C, C): how often two of its verdicts are of these categories."""
    categories = sorted({verdict for unit in units for verdict in unit})
    places = {category: place for place, category in enumerate(categories)}
    tables = np.zeros((len(units), len(categories), len(categories)))
    for table, unit in zip(tables, units, strict=True):
        for a, b in itertools.permutations(unit, 2):
            table[places[a], places[b]] += 1 / (len(unit) - 1)
    return tables


def _alpha(table: np.ndarray) -> float:
    totals = table.sum(axis=0)
    count = totals.sum()
    observed = count - np.trace(table)
    expected = (count**2 - (totals**2).sum()) / (count - 1) if count > 1 else 0.0
    return float(1 - observed / expected) if expected else math.nan


@dataclass(frozen=True)
class Disagreement:
    """Raters with different verdicts on one item, to be talked over."""

    votes: tuple[Vote, ...]


def disagreements(votes: Iterable[Vote]) -> list[Disagreement]:
    """Items on which two raters prefer different answers, the newest first."""
    found = []
    for unit in votes_by_item(votes).values():
        preferring = [vote for vote in unit.values() if verdict_on(vote) != TIE]
        if len({verdict_on(vote) for vote in preferring}) > 1:
            found.append(Disagreement(tuple(preferring)))
    return sorted(found, key=lambda d: -max(vote.created_at for vote in d.votes))


def cycles_of_three(votes: Iterable[Vote]) -> tuple[int, int]:
    """How many triples of answers to one prompt a rater ordered in a circle, and of how many.

    A triple counts where the rater preferred one answer in each of its three pairs.
    """
    better: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for vote in votes:
        if verdict_on(vote) in (None, TIE):
            continue
        best = vote.verdict.ranking[0][0]
        pair = (vote.completions[best], vote.completions[1 - best])
        better.setdefault((vote.rater, str(vote.prompt)), set()).add(pair)
    circles = triples = 0
    for pairs in better.values():
        own = [(one, other) for one, other in pairs if (other, one) not in pairs]
        judged: dict[str, set[str]] = {}
        for one, other in own:
            judged.setdefault(one, set()).add(other)
            judged.setdefault(other, set()).add(one)
        # Through the pairs that were judged, and not through all triples of answers.
        for one, other in own:
            for third in judged[one] & judged[other]:
                triples += 1
                circles += (other, third) in pairs and (third, one) in pairs
    return circles // 3, triples // 3  # each was met at each of its three pairs
