"""Win rates: how often the tuned answers win, with intervals and controls for length.

An outcome is +1 (the tuned answer won), 0 (tie) or -1 (the base's answer won).
"""

import math
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lorarlhf.rewards.raters import Answer
from lorarlhf.runtime.errors import UserError

Z95 = 1.959963984540054
"""97.5% point of the standard normal distribution."""

BOOTSTRAP_RESAMPLES = 10_000

SIMILAR = 0.3
"""Two lengths count as similar if they differ by at most this share of the longer one."""


class Judge(Protocol):
    """Anything that can compare two answers, such as the simulated raters."""

    def judge(self, a: Answer, b: Answer) -> int:
        """1 if `a` is better, -1 if `b` is, 0 for a tie."""


@dataclass(frozen=True)
class WinRate:
    """The result of n comparisons.

    Attributes:
        n: Number of comparisons.
        wins, ties, losses: Their numbers for the tuned answer; they add up to n.
        rate: (wins + ties / 2) / n, from 0 to 1; 0.5 means no difference.
        ci95: 95% interval of the rate, (low, high).
    """

    n: int
    wins: int
    ties: int
    losses: int
    rate: float
    ci95: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `ci95` as a list of two."""
        return {
            "n": self.n,
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
            "rate": self.rate,
            "ci95": list(self.ci95),
        }


def win_rate(
    outcomes: Sequence[int], groups: Sequence[Hashable] | None = None, seed: int = 0
) -> WinRate:
    """Win rate with ties as half, and its 95% interval.

    Args:
        outcomes: n values +1, 0 or -1.
        groups: n labels; comparisons with the same label belong together (the same prompt). With
            them the interval is a cluster bootstrap over the groups, since two comparisons on one
            prompt are not independent. Without them it is Wilson's interval.
        seed: For the bootstrap.

    Raises:
        UserError: There are no outcomes.
        ValueError: An outcome is none of the three, or there are not n groups.
    """
    if len(outcomes) == 0:
        raise UserError(
            "There are no comparisons, so there is no win rate. Give at least one held-out prompt."
        )
    for index, outcome in enumerate(outcomes):
        if outcome not in (-1, 0, 1):
            raise ValueError(f"outcome {index} is {outcome!r}, not -1, 0 or 1")
    n = len(outcomes)
    wins = sum(1 for outcome in outcomes if outcome == 1)
    ties = sum(1 for outcome in outcomes if outcome == 0)
    rate = (wins + ties / 2) / n
    if groups is None:
        ci95 = wilson_interval(rate, n)
    else:
        ci95 = bootstrap_interval([(outcome + 1) / 2 for outcome in outcomes], groups, seed)
    return WinRate(n, wins, ties, n - wins - ties, rate, ci95)


def wilson_interval(rate: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share among n independent comparisons. Source: Wilson 1927.

    With `p` the rate and `z` = 1.96: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    It treats a tie as half a win and half a loss. With ties the interval is too wide, never too
    narrow: a value of 0, 1/2 or 1 varies less around the same mean than one of 0 or 1 does.
    """
    square = Z95 * Z95
    middle = rate + square / (2 * n)
    half_width = Z95 * math.sqrt(rate * (1 - rate) / n + square / (4 * n * n))
    scale = 1 + square / n
    # At 0 and 1 the formula gives exactly this end, except for rounding.
    low = 0.0 if rate == 0 else (middle - half_width) / scale
    high = 1.0 if rate == 1 else (middle + half_width) / scale
    return low, high


def binomial_test(count: int, of: int) -> float:
    """The chance that a fair coin lands on one side this often or seldom, two-sided and exact.

    It adds up all outcomes that are not likelier than this one; 1 where there is nothing.
    """
    log_half = -of * math.log(2)

    def chance(k: int) -> float:
        ways = math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1)
        return math.exp(ways + log_half)

    limit = chance(count) * (1 + 1e-7)
    return min(1.0, math.fsum(p for k in range(of + 1) if (p := chance(k)) <= limit))


def bootstrap_interval(
    values: Sequence[float], groups: Sequence[Hashable], seed: int = 0
) -> tuple[float, float]:
    """95% interval of the mean of values in [0, 1] that come in groups.

    Percentile bootstrap: groups, not single values, are drawn with replacement, 10,000 times, and
    the middle 95% of the means is kept. Source: Davison and Hinkley 1997, section 3.8.

    If every group has the same mean (all wins, or a single group), each resample repeats it and the
    bootstrap would give the interval [1, 1]. Wilson's interval is used instead, with the number of
    groups as n: the values in a group may be fully dependent, so only groups count as independent.

    With fewer than about twenty groups the interval is somewhat too narrow.

    Args:
        values: n numbers from 0 to 1.
        groups: n labels.
        seed: Equal seeds give equal intervals.

    Raises:
        ValueError: The lengths differ.
    """
    import numpy as np

    totals: dict[Hashable, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        total = totals.setdefault(group, [0.0, 0.0])
        total[0] += value
        total[1] += 1
    sums, counts = np.array(list(totals.values())).T  # (groups,) each
    means = sums / counts
    if np.ptp(means) < 1e-12:
        return wilson_interval(float(sums.sum() / counts.sum()), len(totals))

    rng = np.random.default_rng(seed)
    # In parts, so that many groups do not need gigabytes of memory.
    part = max(1, 1_000_000 // len(totals))
    rates = []
    for start in range(0, BOOTSTRAP_RESAMPLES, part):
        rows = min(part, BOOTSTRAP_RESAMPLES - start)
        drawn = rng.integers(len(totals), size=(rows, len(totals)))
        rates.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(rates), [2.5, 97.5])
    return float(low), float(high)


def shuffle_sides(n: int, seed: int) -> list[bool]:
    """For each of n comparisons, whether the tuned answer is shown first.

    True and False occur equally often; for an odd n one of them, at random, occurs once more.
    """
    rng = random.Random(seed)
    sides = [index < n // 2 for index in range(n)]
    if n % 2:
        sides[-1] = rng.random() < 0.5
    rng.shuffle(sides)
    return sides


def judge_pairs(
    rater: Judge, tuned: Sequence[Answer], base: Sequence[Answer], seed: int
) -> list[int]:
    """Outcomes of tuned[i] against base[i], each pair shown to the rater in shuffled order.

    Shuffling removes the bias of a judge that favours the first answer. The outcomes are mapped
    back, so +1 always means that the tuned answer won.

    Raises:
        ValueError: The lengths differ.
    """
    sides = shuffle_sides(len(tuned), seed)
    return [
        rater.judge(ours, theirs) if tuned_first else -rater.judge(theirs, ours)
        for ours, theirs, tuned_first in zip(tuned, base, sides, strict=True)
    ]


def length_ratio(after: Sequence[float], before: Sequence[float]) -> float:
    """Mean length after tuning divided by the mean length before; 1 is no change.

    The two may differ in number. Lengths are tokens or words, the same unit for both.

    Raises:
        ValueError: One of them is empty, or all answers before have length 0.
    """
    if not after or not before:
        raise ValueError("there are no lengths to compare")
    mean_before = math.fsum(before) / len(before)
    if mean_before == 0:
        raise ValueError("every answer before tuning has length 0")
    return math.fsum(after) / len(after) / mean_before


def length_only_rate(
    tuned_lengths: Sequence[float], base_lengths: Sequence[float], prefer_shorter: bool = False
) -> float:
    """The win rate of a judge that looks only at length, ties as half.

    Near 0.5, length does not favour either side, and the real win rate cannot be due to length
    alone. Near the real win rate, it may be.

    Args:
        tuned_lengths: n lengths in tokens or words.
        base_lengths: n lengths of the answers they are compared with.
        prefer_shorter: Count the shorter answer as the winner instead of the longer.

    Raises:
        ValueError: The lengths of the two differ, or both are empty.
    """
    if not tuned_lengths:
        raise ValueError("there are no lengths to compare")
    points = [
        0.5 if ours == theirs else float(ours > theirs)
        for ours, theirs in zip(tuned_lengths, base_lengths, strict=True)
    ]
    longer = math.fsum(points) / len(points)
    return 1 - longer if prefer_shorter else longer


def similar_lengths(ours: float, theirs: float, tolerance: float = SIMILAR) -> bool:
    """Whether two lengths differ by at most `tolerance` of the longer one."""
    # The margin lets 14 and 20 differ by 30%, however 0.3 * 20 is rounded.
    return abs(ours - theirs) <= tolerance * max(ours, theirs) + 1e-9


def length_matched_win_rate(
    outcomes: Sequence[int],
    tuned_lengths: Sequence[float],
    base_lengths: Sequence[float],
    tolerance: float = SIMILAR,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> WinRate | None:
    """Win rate over the pairs of similar length only.

    A pair is kept if the lengths differ by at most `tolerance` of the longer one, whichever of the
    two is the tuned answer.

    Args:
        outcomes: n values +1, 0 or -1.
        tuned_lengths: n lengths in tokens or words.
        base_lengths: n lengths of the answers they are compared with.
        tolerance: Share of the longer length, 0 to 1.
        groups: As in `win_rate`.
        seed: As in `win_rate`.

    Returns:
        The win rate, or None if no pair is of similar length.

    Raises:
        ValueError: The lengths of the arguments differ.
    """
    rows = zip(outcomes, tuned_lengths, base_lengths, strict=True)
    kept = [
        index
        for index, (_, ours, theirs) in enumerate(rows)
        if similar_lengths(ours, theirs, tolerance)
    ]
    if groups is not None and len(groups) != len(outcomes):
        raise ValueError(f"there are {len(outcomes)} outcomes but {len(groups)} groups")
    if not kept:
        return None
    kept_groups = None if groups is None else [groups[index] for index in kept]
    return win_rate([outcomes[index] for index in kept], kept_groups, seed)
