"""Win rates against numbers worked out by hand, and their intervals by simulation."""

import json
import math
import random
from collections import Counter

import numpy as np
import pytest

from lorarlhf.evaluation import win_rate as module
from lorarlhf.evaluation.win_rate import (
    bootstrap_interval,
    judge_pairs,
    length_matched_win_rate,
    length_only_rate,
    length_ratio,
    shuffle_sides,
    wilson_interval,
    win_rate,
)
from lorarlhf.rewards.raters import Answer, Rater
from lorarlhf.runtime.errors import UserError


@pytest.mark.parametrize(
    ("rate", "n", "low", "high"),
    [
        # z^2 = 3.8415. (0.8 + 0.19207 -+ 1.95996 sqrt(0.016 + 0.0096036)) / 1.38415
        (0.8, 10, 0.4902, 0.9433),
        # z^2 / (n + z^2) = 3.8415 / 13.8415
        (0.0, 10, 0.0, 0.2775),
        (1.0, 10, 0.7225, 1.0),
        # 0.5 -+ 1.95996 sqrt(0.0025 + 0.0000960) / 1.038415
        (0.5, 100, 0.4038, 0.5962),
        (1.0, 1, 0.2065, 1.0),
    ],
)
def test_wilson_interval(rate: float, n: int, low: float, high: float) -> None:
    assert wilson_interval(rate, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_stays_inside_zero_and_one() -> None:
    for n in range(1, 60):
        for wins in range(n + 1):
            low, high = wilson_interval(wins / n, n)
            assert 0 <= low <= wins / n <= high <= 1


def test_ties_count_half() -> None:
    result = win_rate([1] * 7 + [0, 0, -1])
    assert (result.n, result.wins, result.ties, result.losses) == (10, 7, 2, 1)
    assert result.rate == 0.8
    assert result.ci95 == wilson_interval(0.8, 10)


def test_to_dict_is_plain_json() -> None:
    result = win_rate(np.array([1, -1]), groups=["a", "b"])  # type: ignore[arg-type]
    again = json.loads(json.dumps(result.to_dict()))
    assert list(again) == ["n", "wins", "ties", "losses", "rate", "ci95"]
    assert again["rate"] == 0.5 and again["ci95"] == list(result.ci95)


def test_wrong_outcomes_are_refused() -> None:
    with pytest.raises(UserError, match="no comparison"):
        win_rate([])
    with pytest.raises(ValueError, match="outcome 1 is 2"):
        win_rate([1, 2])
    with pytest.raises(ValueError, match="shorter"):
        win_rate([1, -1], groups=["a"])


def test_the_bootstrap_of_single_comparisons_is_the_normal_interval() -> None:
    low, high = win_rate([1] * 70 + [-1] * 30, groups=range(100)).ci95
    half = 1.96 * math.sqrt(0.7 * 0.3 / 100)
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.011)


def test_repeating_every_comparison_adds_no_certainty() -> None:
    outcomes = random.Random(1).choices([-1, 0, 1, 1], k=60)
    once = win_rate(outcomes, groups=range(60))
    twice = win_rate(outcomes * 2, groups=list(range(60)) * 2)
    assert twice.n == 120
    assert twice.ci95 == pytest.approx(once.ci95)
    narrow_low, narrow_high = win_rate(outcomes * 2).ci95
    assert narrow_high - narrow_low < twice.ci95[1] - twice.ci95[0]


def test_the_bootstrap_is_deterministic_by_seed() -> None:
    outcomes = random.Random(2).choices([-1, 0, 1], k=120)
    # Groups of unequal size: with equal ones the few possible rates make most seeds agree.
    groups = [f"prompt {math.isqrt(10 * i)}" for i in range(120)]
    first = win_rate(outcomes, groups, seed=3)
    assert win_rate(outcomes, groups, seed=3) == first
    others = [win_rate(outcomes, groups, seed=seed) for seed in range(5)]
    assert len({other.ci95 for other in others}) > 1
    for other in others:
        assert other.rate == first.rate
        assert other.ci95 == pytest.approx(first.ci95, abs=0.01)


def test_the_bootstrap_of_many_groups_is_the_normal_interval() -> None:
    rng = random.Random(5)
    values = [rng.choice([0.0, 0.5, 1.0]) for _ in range(3000)]
    low, high = bootstrap_interval(values, range(3000))  # 333 resamples a part
    mean, deviation = np.mean(values), np.std(values)
    half = 1.96 * deviation / math.sqrt(3000)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.001)


@pytest.mark.parametrize(
    ("outcomes", "rate"), [([1] * 40, 1.0), ([-1] * 40, 0.0), ([1, -1] * 20, 0.5), ([0] * 40, 0.5)]
)
def test_equal_groups_fall_back_to_wilson_over_the_groups(outcomes: list, rate: float) -> None:
    groups = [i // 2 for i in range(40)]
    result = win_rate(outcomes, groups)
    assert result.rate == rate
    assert result.ci95 == pytest.approx(wilson_interval(rate, 20))


def test_a_single_group_is_a_single_observation() -> None:
    assert win_rate([1, 1, -1], ["p"] * 3).ci95 == pytest.approx(wilson_interval(2 / 3, 1))


def test_groups_of_unequal_size_weigh_by_their_comparisons() -> None:
    # One group of 8 wins and one of 2 losses: a resample is one of the two, or both.
    result = win_rate([1] * 8 + [-1] * 2, ["a"] * 8 + ["b"] * 2)
    assert result.rate == 0.8
    assert result.ci95 == (0.0, 1.0)


def test_the_bootstrap_covers_the_truth_where_the_naive_interval_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "BOOTSTRAP_RESAMPLES", 1000)
    rng = np.random.default_rng(0)
    groups = [i // 4 for i in range(160)]
    covered = naive_covered = 0
    for _ in range(200):
        # The four comparisons on a prompt usually agree: a win rate of its own for each prompt.
        chances = np.repeat(rng.beta(0.6, 0.4, size=40), 4)
        values = (rng.random(160) < chances).astype(float).tolist()
        low, high = bootstrap_interval(values, groups)
        covered += low <= 0.6 <= high
        low, high = wilson_interval(float(np.mean(values)), 160)
        naive_covered += low <= 0.6 <= high
    assert covered >= 0.9 * 200
    assert naive_covered <= 0.85 * 200


@pytest.mark.parametrize("n", [0, 1, 2, 7, 60, 121])
def test_sides_are_balanced_within_one(n: int) -> None:
    for seed in range(20):
        sides = shuffle_sides(n, seed)
        assert len(sides) == n
        assert abs(2 * sum(sides) - n) <= 1
        assert sides == shuffle_sides(n, seed)


def test_sides_are_shuffled_and_the_odd_one_goes_either_way() -> None:
    assert len({tuple(shuffle_sides(20, seed)) for seed in range(50)}) > 45
    assert Counter(sum(shuffle_sides(3, seed)) for seed in range(50)).keys() == {1, 2}
    first = sum(shuffle_sides(4, seed)[0] for seed in range(400)) / 400
    assert first == pytest.approx(0.5, abs=0.1)


def test_outcomes_are_those_of_the_tuned_answer() -> None:
    short, long = Answer("one"), Answer("one two")
    tuned = [short, long, short, short] * 5
    base = [long, short, short, Answer("cut", ended=False)] * 5
    for seed in range(5):
        assert judge_pairs(Rater.named("brief", noise=0.5), tuned, base, seed) == [1, -1, 0, 1] * 5
    with pytest.raises(ValueError, match="shorter"):
        judge_pairs(Rater.named("brief"), tuned, base[:-1], 0)


class FirstWins:
    def judge(self, a: Answer, b: Answer) -> int:
        return 1


def test_a_judge_that_always_takes_the_first_gains_nothing_for_either_side() -> None:
    outcomes = judge_pairs(FirstWins(), [Answer("a")] * 60, [Answer("b")] * 60, seed=0)
    assert sum(outcomes) == 0
    assert [outcome == 1 for outcome in outcomes] == shuffle_sides(60, 0)


def test_length_ratio() -> None:
    assert length_ratio([30, 20], [10, 30, 20]) == 1.25
    assert length_ratio([0], [4]) == 0
    with pytest.raises(ValueError, match="no lengths"):
        length_ratio([], [1])
    with pytest.raises(ValueError, match="length 0"):
        length_ratio([1], [0, 0])


def test_length_only_rate() -> None:
    tuned, base = [5, 6, 7, 8], [4, 6, 9, 7]  # longer, equal, shorter, longer
    assert length_only_rate(tuned, base) == 0.625
    assert length_only_rate(tuned, base, prefer_shorter=True) == 0.375
    assert length_only_rate(base, tuned) == 0.375
    with pytest.raises(ValueError, match="no lengths"):
        length_only_rate([], [])
    with pytest.raises(ValueError, match="longer"):
        length_only_rate([1], [1, 2])


def test_length_matched_win_rate_keeps_pairs_within_the_tolerance() -> None:
    outcomes = [1, 1, -1, 0, 1, 1]
    tuned = [10, 20, 14, 7, 100, 0]
    base = [10, 10, 20, 10, 69, 0]
    # Kept: equal; not 20 to 10; 14 to 20 and 7 to 10 differ by 30% exactly; not 100 to 69; 0 to 0.
    result = length_matched_win_rate(outcomes, tuned, base)
    assert result is not None
    assert (result.n, result.wins, result.ties, result.losses) == (4, 2, 1, 1)
    assert result.rate == 0.625
    swapped = length_matched_win_rate([-o for o in outcomes], base, tuned)
    assert swapped is not None and swapped.rate == 0.375
    everything = length_matched_win_rate(outcomes, tuned, base, tolerance=1)
    assert everything == win_rate(outcomes)


def test_length_matched_win_rate_carries_its_groups_along() -> None:
    result = length_matched_win_rate([1, 1, -1], [5, 5, 50], [5, 5, 5], groups=["a", "b", "b"])
    assert result is not None
    assert result.n == 2
    assert result.ci95 == pytest.approx(wilson_interval(1, 2))


def test_length_matched_win_rate_of_no_similar_pair_is_none() -> None:
    assert length_matched_win_rate([1, 1], [10, 20], [1, 2]) is None
    with pytest.raises(ValueError, match="2 outcomes but 1 groups"):
        length_matched_win_rate([1, 1], [10, 20], [1, 2], groups=["a"])
