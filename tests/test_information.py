"""What a vote would teach: against integration, limits that are known, and what it has to do."""

import numpy as np
import pytest

from lorarlhf.rewards.information import expected_information, mutual_information
from lorarlhf.rewards.vote_fit import VoteFit

WIDTH = 5
KNOWN = (-3.0, -0.4, 0.0, 1.0, 6.0)


def by_integration(mean: float, deviation: float) -> float:
    """E log(p(y | z) / p(y)) over the vote y and the margin z, on a fine grid."""
    z = mean + deviation * np.linspace(-10, 10, 400_001)
    density = np.exp(-(((z - mean) / deviation) ** 2) / 2)
    density /= density.sum()
    total = 0.0
    for chance in (1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))):
        whole = (density * chance).sum()
        total += (density * chance * np.log(chance / whole)).sum()
    return float(total)


@pytest.mark.parametrize("mean", KNOWN)
@pytest.mark.parametrize("deviation", [0.01, 0.5, 2.0, 10.0])
def test_it_is_the_integral(mean: float, deviation: float) -> None:
    found = mutual_information(mean, deviation)
    assert found == pytest.approx(by_integration(mean, deviation), rel=1e-5, abs=1e-9)


def test_a_known_difference_teaches_nothing() -> None:
    found = mutual_information(np.array(KNOWN), np.zeros(len(KNOWN)))
    np.testing.assert_allclose(found, 0, atol=1e-12)


def test_a_vote_is_one_bit_at_most() -> None:
    assert 0.5 < mutual_information(0.0, 10.0) < np.log(2)
    extreme = mutual_information(np.array([-1e4, 1e4, 0.0]), np.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(extreme, 0, atol=1e-12)


def test_the_sides_do_not_matter_and_doubt_does() -> None:
    mean, deviation = np.linspace(-4, 4, 9)[:, None], np.linspace(0, 5, 26)[None, :]
    grid = mutual_information(*np.broadcast_arrays(mean, deviation))
    np.testing.assert_allclose(grid, grid[::-1], atol=1e-12)
    assert (np.diff(grid, axis=1) > 0).all()  # grows with the deviation
    assert (np.diff(grid[4:, 1:8], axis=0) < 0).all()  # a coin teaches more than a sure thing


def test_little_doubt_teaches_half_its_share_of_the_variance() -> None:
    """To second order it is p (1 - p) s^2 / 2."""
    mean = np.array(KNOWN)
    p = 1 / (1 + np.exp(-mean))
    wanted = p * (1 - p) * 0.01**2 / 2
    np.testing.assert_allclose(mutual_information(mean, np.full(5, 0.01)), wanted, rtol=1e-3)


def votes_along_one_axis(count: int = 30) -> VoteFit:
    """Votes on pairs that differ in the first feature alone, and in nothing else much."""
    draw, fit = np.random.default_rng(1), VoteFit()
    for place in range(count):
        better, worse = 0.1 * draw.normal(size=(2, WIDTH))
        better[0], worse[0] = 1 + draw.random(), -draw.random()
        fit.add(better, worse, place)
    return fit


def test_what_no_vote_was_about_teaches_more() -> None:
    posterior = votes_along_one_axis().posterior()
    answers = np.zeros((3, WIDTH))
    answers[1, 0] = 0.5  # as in the votes
    answers[2, 1] = 0.5  # along another feature, which varies less, so this is a long way
    known, new, same, three = expected_information(
        posterior, [answers[[0, 1]], answers[[0, 2]], answers[[0, 0]], answers]
    )
    assert same == pytest.approx(0, abs=1e-9) and 0 < known < new
    pairs = expected_information(posterior, [answers[[1, 2]], answers[[2, 1]]])
    assert pairs[0] == pytest.approx(pairs[1])
    assert three == pytest.approx(max(known, new, pairs[0]))  # the best pair of a ranking
    assert expected_information(posterior, []).shape == (0,)


def test_a_vote_lowers_what_the_same_pair_teaches() -> None:
    fit = votes_along_one_axis()
    pair = np.zeros((2, WIDTH))
    pair[0, 1] = 0.3
    before = expected_information(fit.posterior(), [pair])[0]
    fit.add(pair[0], pair[1], "the same pair")
    assert expected_information(fit.posterior(), [pair])[0] < before
