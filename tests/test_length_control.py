"""The length-controlled win rate: by hand, at its maximum, and on judges with a known taste."""

import math
from typing import Any

import numpy as np
import pytest

from lorarlhf.evaluation import length_control
from lorarlhf.evaluation.length_control import PRIOR_STD, LengthControlled, fit_logistic
from lorarlhf.evaluation.win_rate import wilson_interval


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def length_controlled(*args: Any) -> LengthControlled:
    found = length_control.length_controlled(*args)
    assert found is not None
    return found


def test_without_a_difference_of_lengths_it_is_the_win_rate() -> None:
    # The maximum of 40 (0.75 log p + 0.25 log(1 - p)) - b^2 / 18: 40 (0.75 - p) = b / 9.
    found = length_controlled([1] * 30 + [-1] * 10, [7.0] * 40, [7.0] * 40, range(40))
    bias = math.log(found.rate / (1 - found.rate))
    assert 40 * (0.75 - found.rate) == pytest.approx(bias / 9, abs=1e-6)
    assert found.rate == pytest.approx(0.747, abs=5e-4) and found.weight == 0.0
    assert found.ci95[0] < found.rate < found.ci95[1]


def test_ties_count_half() -> None:
    ties = length_controlled([0] * 20, [1.0] * 20, [1.0] * 20, range(20))
    assert ties.rate == pytest.approx(0.5) and ties.ci95 == wilson_interval(0.5, 20)
    mixed = length_controlled([1, -1] * 10, [1.0] * 20, [1.0] * 20, range(20))
    assert mixed.rate == pytest.approx(0.5)


def test_the_fit_is_at_the_maximum() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=50), rng.choice([0.0, 0.5, 1.0], size=50)
    counts = rng.integers(0, 4, size=(5, 50)).astype(float)
    for w, count in zip(fit_logistic(x, y, counts), counts, strict=True):
        p = 1 / (1 + np.exp(-(w[0] + w[1] * x)))
        errors = count * (y - p)
        gradient = np.array([errors.sum(), errors @ x]) - w / PRIOR_STD**2
        assert np.abs(gradient).max() < 1e-7


def test_separated_outcomes_have_a_finite_fit() -> None:
    x = np.linspace(-1, 1, 200)
    ((bias, slope),) = fit_logistic(x, (x > 0).astype(float), np.ones((1, 200)))
    assert abs(bias) < 0.1 and 5 < slope < 50


def test_wins_alone_need_no_fit() -> None:
    mixed = [9.0, 3.0] * 30
    always = length_controlled([1] * 60, mixed, [5.0] * 60, range(60))
    assert always.rate == 1.0 and always.weight == 0.0
    assert always.ci95 == wilson_interval(1.0, 60)
    never = length_controlled([-1] * 60, mixed, [5.0] * 60, [*range(30)] * 2)
    assert never.rate == 0.0 and never.ci95 == wilson_interval(0.0, 30)


def test_where_one_side_is_always_longer_nothing_is_known_at_equal_length() -> None:
    outcomes, base = [1, 1, 1, -1] * 10, [40.0] * 40
    constant, varied = [148.0] * 40, [147.0, 148.0] * 20
    for longer in (constant, varied, [b + 200 * (i % 2) for i, b in enumerate(varied)]):
        assert length_control.length_controlled(outcomes, longer, base, range(40)) is None
        assert length_control.length_controlled(outcomes, base, longer, range(40)) is None
    known = length_controlled(outcomes, [44.0, *constant[1:]], base, range(40))  # one is similar
    other = length_controlled(outcomes, [44.0, *varied[1:]], base, range(40))
    assert known.rate == pytest.approx(other.rate, abs=0.01)  # a token more or less: no jump
    assert known.ci95[0] <= known.rate <= known.ci95[1]
    both = length_controlled(outcomes, [10.0, *constant[1:]], base, range(40))
    assert 0 < both.rate < 1  # shorter once, longer otherwise


def test_groups_that_are_all_alike_have_an_interval() -> None:
    outcomes = [1, 0, -1, 1, 1, 1]
    lengths = [5.0, 6.0, 4.0, 7.0, 5.0, 3.0]
    one = length_controlled(outcomes, lengths, [5.0] * 6, [0] * 6)
    assert one.ci95 == wilson_interval(one.rate, 1)
    assert one.ci95[0] < 0.2 and one.ci95[1] > 0.8
    # Each of ten prompts is won once and lost once.
    even = length_controlled([1, -1] * 10, [5.0] * 20, [5.0] * 20, [n // 2 for n in range(20)])
    assert even.ci95 == wilson_interval(even.rate, 10)


def test_the_interval_holds_the_rate() -> None:
    rng = np.random.default_rng(5)
    for _ in range(40):
        n = int(rng.integers(2, 8))
        outcomes = [int(x) for x in rng.choice([-1, 0, 1], size=n)]
        lengths = rng.integers(1, 30, size=(2, n)).astype(float).tolist()
        found = length_control.length_controlled(outcomes, *lengths, rng.integers(0, 4, n).tolist())
        if found is not None:
            assert found.ci95[0] <= found.rate <= found.ci95[1]
            assert found.ci95[1] - found.ci95[0] > 1e-3


def test_a_judge_of_length_alone_has_no_preference_at_equal_length() -> None:
    """The longer answer wins with a chance that grows with the difference."""
    rng = np.random.default_rng(1)
    base = rng.integers(10, 60, size=300).astype(float)
    extra = rng.normal(15, 20, size=300)  # longer in three of four cases
    odds = 3 * np.tanh(extra / extra.std())
    outcomes = [1 if u < sigmoid(z) else -1 for u, z in zip(rng.random(300), odds, strict=True)]
    found = length_controlled(outcomes, [*(base + extra)], [*base], range(300))
    assert np.mean(np.array(outcomes) > 0) > 0.65
    assert found.rate == pytest.approx(0.5, abs=0.07) and found.weight > 2
    assert found.ci95[0] < 0.5 < found.ci95[1]


def test_a_better_model_that_is_also_longer() -> None:
    """The outcomes follow a known curve: log-odds of 0.8 + 1.5 tanh(difference / scale)."""
    rng = np.random.default_rng(2)
    base, extra = rng.integers(10, 60, size=4000).astype(float), rng.normal(10, 20, size=4000)
    odds = 0.8 + 1.5 * np.tanh(extra / np.sqrt(np.mean(extra**2)))
    outcomes = [1 if u < sigmoid(z) else -1 for u, z in zip(rng.random(4000), odds, strict=True)]
    found = length_controlled(outcomes, [*(base + extra)], [*base], range(4000))
    assert found.rate == pytest.approx(sigmoid(0.8), abs=0.03)
    assert found.ci95[0] < sigmoid(0.8) < found.ci95[1]
    assert found.weight == pytest.approx(1.5, abs=0.2)


def test_prompts_are_resampled_whole() -> None:
    rng = np.random.default_rng(3)
    outcomes = [int(x) for x in rng.choice([-1, 1, 1], size=60)]
    lengths = [float(x) for x in rng.integers(5, 50, size=60)]
    once = length_controlled(outcomes, lengths, lengths[::-1], range(60))
    thrice = length_controlled(outcomes * 3, lengths * 3, lengths[::-1] * 3, [*range(60)] * 3)
    assert thrice.ci95 == pytest.approx(once.ci95, abs=0.03)
    naive = length_controlled(outcomes * 3, lengths * 3, lengths[::-1] * 3, range(180))
    assert naive.ci95[1] - naive.ci95[0] < 0.75 * (thrice.ci95[1] - thrice.ci95[0])
    again = length_controlled(outcomes, lengths, lengths[::-1], range(60))
    assert again == once


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="at least one"):
        length_controlled([], [], [], [])
    with pytest.raises(ValueError, match="as many"):
        length_controlled([1], [1.0, 2.0], [1.0], ["a"])
