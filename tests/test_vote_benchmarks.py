"""The simulated votes of the benchmarks of the reward head, and how their figures are summed up."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from lorarlhf.rewards.raters import Answer, Rater, Rule

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import _pools
import calibration
import votes_to_accuracy
from _pools import Pool

RULE = Rule("much", "More letters a win.", lambda answer: float(answer.text.count("a")), 0.5)
AS = [[1, 0, 1, 3], [2, 2, 2, 2]]


def pool() -> Pool:
    """Two prompts with four answers each, of which the feature is the number of letters a."""
    answers = [[Answer("a" * count + " b" * place) for place, count in enumerate(r)] for r in AS]
    features = np.array(AS, float)[..., None]
    return Pool(["p", "q"], answers, features, features)


def test_votes_leave_out_ties_and_take_fresh_answers_first() -> None:
    votes = _pools.collect_votes(pool(), Rater.of(RULE, noise=0), [0, 1], 10)
    # Of the pairs 01, 23, 02, 13, 03, 12 only 02 ties; all pairs of the second prompt do.
    assert votes == [(0, 0, 1), (0, 3, 2), (0, 3, 1), (0, 3, 0), (0, 2, 1)]
    assert _pools.collect_votes(pool(), Rater.of(RULE, noise=0), [0, 1], 2) == votes[:2]
    assert _pools.collect_votes(pool(), Rater.of(RULE, noise=0), [1], 2) == []


def test_held_out_pairs_are_in_the_rules_order_and_wider_than_the_width() -> None:
    truth = np.array(AS, float)
    pairs = _pools.held_out_pairs(truth, [0, 1], 1)
    assert pairs == [(0, 3, 0), (0, 3, 1), (0, 3, 2)]
    assert _pools.pair_accuracy(truth, pairs) == 1
    assert _pools.pair_accuracy(np.zeros((2, 4)), pairs) == 0.5
    chosen, rejected = _pools.voted_features(pool().mean, pairs)
    assert chosen.tolist() == [[3], [3], [3]] and rejected.tolist() == [[1], [0], [1]]


def test_held_out_prompts_are_not_voted_on() -> None:
    seen, unseen = _pools.split_prompts(10, 3, 0)
    assert len(unseen) == 3 and sorted(seen + unseen) == list(range(10))
    assert _pools.split_prompts(10, 3, 1) != (seen, unseen)


def test_the_interval_over_seeds_is_students() -> None:
    # From tables: 2.776 for 4 degrees of freedom, 2.262 for 9, 1.984 for 100.
    for degrees, point in ((4, 2.776), (9, 2.262), (100, 1.984)):
        assert _pools.student_95(degrees) == pytest.approx(point, rel=5e-3)
    mean, margin = _pools.mean_and_margin([0.0, 1.0, 2.0, 3.0, 4.0])
    assert mean == 2 and margin == pytest.approx(2.776 * math.sqrt(2.5 / 5), rel=5e-3)
    assert math.isnan(_pools.mean_and_margin([0.5])[1])


def test_a_rule_is_described_by_ties_length_and_its_axis() -> None:
    axes = ["more a"], np.array([[1.0]])
    found = votes_to_accuracy.describe_rule(pool(), RULE, axes)
    assert found["ties"] == 7 / 12
    # They have 1, 1, 3 and 4 words. The longer one wins in 03, 12, 13 and 23; 01 counts half.
    assert found["longer_wins"] == pytest.approx(4.5 / 5)
    assert found["nearest_axis"] == "more a" and found["r"] == pytest.approx(1)


def test_held_out_votes_for_the_calibration_have_the_raters_noise() -> None:
    pairs, voted, true = calibration.held_out_votes(pool(), Rater.of(RULE, noise=0), [0, 1])
    assert pairs.tolist() == [[0, 0, 1], [0, 0, 3], [0, 1, 2], [0, 1, 3], [0, 2, 3]]
    assert true.tolist() == voted.tolist() == [1, 0, 0, 0, 0]
    flipped = [
        (voted != true).mean()
        for seed in range(200)
        for _, voted, true in [calibration.held_out_votes(pool(), Rater.of(RULE, 0.25, seed), [0])]
    ]
    assert 0.2 < np.mean(flipped) < 0.3


def test_the_loss_of_a_coin_and_the_ece_by_chance() -> None:
    assert calibration.log_loss(np.array([0.5, 0.5]), np.array([0, 1])) == pytest.approx(
        math.log(2)
    )
    assert calibration.log_loss(np.array([0.8, 0.3]), np.array([1.0, 0.0])) == pytest.approx(
        -(math.log(0.8) + math.log(0.7)) / 2
    )
    # The mean distance of a share of n fair coins from 1/2 is sqrt(1 / (2 pi n)).
    assert calibration.ece_by_chance(np.full(400, 0.5), 0) == pytest.approx(0.02, rel=0.4)
