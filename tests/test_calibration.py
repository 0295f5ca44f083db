"""The calibration of probabilities, by numbers computed by hand."""

import numpy as np
import pytest

from lorarlhf.evaluation.calibration import Bin, calibration_curve, expected_calibration_error
from lorarlhf.evaluation.win_rate import wilson_interval


def test_predictions_in_two_bins() -> None:
    curve = calibration_curve([0.6, 0.7, 0.62, 0.95], [1, 0, 0, 1], bins=5)
    assert [(part.low, part.high, part.count) for part in curve] == [(0.6, 0.8, 3), (0.8, 1.0, 1)]
    # (0.6 + 0.7 + 0.62) / 3 = 0.64 against 1 / 3; 0.95 against 1.
    assert [part.predicted for part in curve] == pytest.approx([0.64, 0.95])
    assert [part.observed for part in curve] == pytest.approx([1 / 3, 1.0])
    assert curve[0].interval == pytest.approx(wilson_interval(1 / 3, 3))
    expected = (3 * (0.64 - 1 / 3) + 1 * 0.05) / 4
    found = expected_calibration_error([0.6, 0.7, 0.62, 0.95], [1, 0, 0, 1], bins=5)
    assert found == pytest.approx(expected)


def test_an_edge_belongs_to_the_bin_above_and_one_to_the_last() -> None:
    edges = [place / 10 for place in range(11)]  # 0.3 and 0.7 are not exact in binary
    counts = [part.count for part in calibration_curve(edges, [1] * 11)]
    assert counts == [1] * 9 + [2]


def test_gaps_in_one_bin_cancel_and_in_two_bins_do_not() -> None:
    chances, outcomes = [0.1, 0.9], [0.5, 0.5]
    assert expected_calibration_error(chances, outcomes, bins=1) == pytest.approx(0)
    assert expected_calibration_error(chances, outcomes) == pytest.approx(0.4)


def test_it_does_not_matter_which_of_two_answers_the_chance_is_of() -> None:
    rng = np.random.default_rng(0)
    chances, sides = rng.uniform(size=500), rng.random(500) < 0.5
    outcomes = (rng.random(500) < chances).astype(float)
    turned = np.where(sides, chances, 1 - chances), np.where(sides, outcomes, 1 - outcomes)
    confident = np.maximum(chances, 1 - chances), np.where(chances > 0.5, outcomes, 1 - outcomes)
    # Chance alone makes about 0.03 of 500 predictions that are perfectly calibrated.
    for given in ((chances, outcomes), turned, confident):
        assert expected_calibration_error(*given) < 0.06
    too_sure = 1 / (1 + np.exp(-4 * np.log(chances / (1 - chances))))
    assert expected_calibration_error(too_sure, outcomes) > 0.1


def test_a_tie_is_half_an_outcome_and_one_prediction_is_enough() -> None:
    assert calibration_curve(np.array([0.25]), [0.5], bins=2) == [
        Bin(0.0, 0.5, 1, 0.25, 0.5, wilson_interval(0.5, 1))
    ]


@pytest.mark.parametrize(
    ("chances", "outcomes", "bins"),
    [
        ([], [], 10),
        ([0.5], [1, 0], 10),
        ([[0.5]], [[1]], 10),
        ([1.1], [1], 10),
        ([float("nan")], [1], 10),
        ([0.5], [-1], 10),
        ([0.5], [1], 0),
    ],
)
def test_what_is_no_prediction_is_refused(chances: list, outcomes: list, bins: int) -> None:
    with pytest.raises(ValueError):
        calibration_curve(chances, outcomes, bins)
