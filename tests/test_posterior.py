"""How sure a score is: the closed form against inverses, integrals and what it has to do."""

from collections.abc import Callable

import numpy as np
import pytest

from lorarlhf.rewards.fit import fit_head, in_vote_space
from lorarlhf.rewards.posterior import Posterior, moderated
from lorarlhf.rewards.priors import Blend, Prior
from lorarlhf.rewards.vote_fit import VoteFit

WIDTH = 6
Rows = np.ndarray
Made = Callable[[int], tuple[Rows, Rows, Rows]]


def made(count: int, seed: int = 0) -> tuple[Rows, Rows, Rows]:
    """Better and worse answers (N, F), and two axes."""
    rng = np.random.default_rng(seed)
    truth, axes = rng.normal(size=WIDTH), rng.normal(size=(2, WIDTH))
    rows = rng.normal(size=(count, 2, WIDTH))
    order = np.argsort(rows @ truth + rng.logistic(size=(count, 2)), axis=1)
    better, worse = (np.take_along_axis(rows, order[:, [k], None], 1)[:, 0] for k in (1, 0))
    return better, worse, axes


def posterior(rows: tuple[Rows, Rows, Rows], blend: Blend) -> Posterior:
    better, worse, axes = rows
    return Posterior(*in_vote_space(better, worse, background=[better, worse], axes=axes), blend)


@pytest.mark.parametrize("count", [4, 40])  # fewer votes than columns, and more
@pytest.mark.parametrize("axis", [0.0, 0.5])
def test_the_variance_is_that_of_the_inverse_curvature(count: int, axis: float) -> None:
    better, worse, axes = made(count)
    prior = Prior(0.7, axis)
    space, votes = in_vote_space(better, worse, background=[better, worse], axes=axes)
    weights = votes.fits([prior])[0]
    p = 1 / (1 + np.exp(votes.columns @ weights))
    precision = np.full(WIDTH, 0.7)
    columns = votes.columns[:, :WIDTH]
    if axis:
        precision, columns = np.r_[precision, 1 / axis, 1 / axis], votes.columns
    covariance = np.linalg.inv(columns.T @ (columns * (p * (1 - p))[:, None]) + np.diag(precision))
    asked = np.random.default_rng(1).normal(size=(5, WIDTH))
    rows = space.columns(asked)[:, : len(precision)]
    found = posterior((better, worse, axes), Blend(((prior, 1.0),)))
    mean, deviation = found.scores(asked)
    np.testing.assert_allclose(deviation**2, np.einsum("ij,jk,ik->i", rows, covariance, rows))
    np.testing.assert_allclose(mean, space.columns(asked) @ weights)
    # A margin is the difference of two scores whose errors go together.
    margin, spread = found.margins(asked[:2], asked[2:4])
    apart = rows[:2] - rows[2:4]
    np.testing.assert_allclose(margin, mean[:2] - mean[2:4])
    np.testing.assert_allclose(spread**2, np.einsum("ij,jk,ik->i", apart, covariance, apart))


def test_a_blend_also_counts_how_far_its_fits_differ() -> None:
    rows, asked = made(20), np.random.default_rng(1).normal(size=(3, WIDTH))
    priors = (Prior(0.2, 0.1), Prior(5.0))
    parts = [posterior(rows, Blend(((prior, 1.0),))).scores(asked) for prior in priors]
    (m1, s1), (m2, s2) = parts
    mean, deviation = posterior(rows, Blend(((priors[0], 0.3), (priors[1], 0.7)))).scores(asked)
    np.testing.assert_allclose(mean, 0.3 * m1 + 0.7 * m2)
    wanted = 0.3 * s1**2 + 0.7 * s2**2 + 0.3 * 0.7 * (m1 - m2) ** 2
    np.testing.assert_allclose(deviation**2, wanted)


def test_the_means_are_the_head_s_scores() -> None:
    better, worse, axes = made(30)
    groups = [str(n // 2) for n in range(30)]
    fit = fit_head(better, worse, groups, background=[better, worse], axes=axes)
    mean, _ = posterior((better, worse, axes), fit.blend).scores(better)
    np.testing.assert_allclose(mean, fit.score(better), atol=1e-5)


def test_votes_make_it_surer() -> None:
    """Four times the votes halve the deviation, where the votes and not the prior decide."""
    asked, blend = np.eye(WIDTH), Blend(((Prior(0.01), 1.0),))
    spread = [posterior(made(n), blend).scores(asked)[1].mean() for n in (500, 2000)]
    assert spread[1] / spread[0] == pytest.approx(0.5, rel=0.15)
    few = posterior(made(10), blend).scores(asked)[1].mean()
    assert few > spread[0]


def test_the_chance_of_a_vote_is_the_mean_over_the_weights() -> None:
    draws = np.random.default_rng(0).normal(size=200_000)
    for mean, deviation in ((0.0, 3.0), (1.0, 0.0), (1.0, 1.0), (2.0, 3.0), (-1.5, 0.5)):
        wanted = (1 / (1 + np.exp(-(mean + deviation * draws)))).mean()
        found = moderated(np.array(mean), np.array(deviation))
        assert found == pytest.approx(wanted, abs=0.02)
    assert moderated(np.array(1.0), np.array(0.0)) == pytest.approx(1 / (1 + np.exp(-1.0)))


def test_of_stored_votes() -> None:
    better, worse, axes = made(24)
    votes = VoteFit(axes)
    for place, (plus, minus) in enumerate(zip(better, worse, strict=True)):
        votes.add(plus, minus, place // 2)
    found, fit = votes.posterior(), votes.fit()
    np.testing.assert_allclose(found.scores(better)[0], fit.score(better), atol=1e-4)
    chance = found.win_probability(better, worse)
    margin = fit.score(better) - fit.score(worse)
    assert ((chance > 0.5) == (margin > 0)).all()
    certain = 1 / (1 + np.exp(-found.scale * margin))
    assert (np.abs(chance - 0.5) < np.abs(certain - 0.5)).all()  # less sure


def test_a_scale_changes_probabilities_and_no_score() -> None:
    rows, asked = made(20), np.random.default_rng(1).normal(size=(2, 3, WIDTH))
    plain, scaled = (posterior(rows, Blend(((Prior(0.7), 1.0),), scale=k)) for k in (1.0, 2.0))
    mean, deviation = plain.margins(*asked)
    np.testing.assert_allclose(scaled.margins(*asked), (mean, deviation))
    np.testing.assert_allclose(scaled.win_probability(*asked), moderated(2 * mean, 2 * deviation))
    np.testing.assert_allclose(plain.win_probability(*asked), moderated(mean, deviation))
