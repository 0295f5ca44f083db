"""Fits to many votes: the same as to few, in a time that grows with the votes."""

import numpy as np
import pytest

from lorarlhf.rewards import bradley_terry, priors
from lorarlhf.rewards.bradley_terry import solve_dual
from lorarlhf.rewards.fit import VoteSpace
from lorarlhf.rewards.posterior import Posterior
from lorarlhf.rewards.priors import Blend, Prior, VoteMatrix, blend_priors, spread_groups


def test_many_votes_are_fitted_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    columns = rng.normal(size=(300, 12)) + 0.2
    matrix = VoteMatrix(columns, 9)  # the primal; the last three columns are scores along axes
    tried = (Prior(1.0, 0.01), Prior(3.0, 0.3), Prior(0.3))
    for prior, found in zip(tried, matrix.fits(tried), strict=True):
        variance = np.array([1 / prior.l2] * 9 + [prior.axis_strength] * 3)
        wanted = variance * (solve_dual(columns * variance @ columns.T) @ columns)
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)
    groups = [f"prompt {place // 2}" for place in range(300)]
    whole = blend_priors(matrix, groups)
    monkeypatch.setattr(priors, "MOST_WEIGHED", 100)
    part = blend_priors(matrix, groups)
    taken = spread_groups(groups, 100)
    kept = [group for group, wanted in zip(groups, taken, strict=True) if wanted]
    assert len(kept) == 100 and all(kept.count(group) == 2 for group in kept)
    assert part == blend_priors(matrix.part(taken), kept) != whole


def test_priors_of_few_prompts_with_many_votes_are_weighted_by_a_part_of_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns = np.random.default_rng(5).normal(size=(1200, 6))
    groups = [f"prompt {place // 100}" for place in range(1200)]
    taken = spread_groups(groups, 120)
    assert taken.reshape(12, 100).sum(axis=1).tolist() == [10] * 12  # not all of one
    monkeypatch.setattr(priors, "MOST_WEIGHED", 120)
    found = blend_priors(VoteMatrix(np.abs(columns), 6), groups)
    assert found.cv_accuracy == 1.0 and found.cv_loss is not None and found.cv_loss < 0.2


def test_a_weak_prior_does_not_keep_the_dual_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rounding hides how small a step is, the loss alone says that it was the last one."""
    steps: list[int] = []
    slopes = bradley_terry.slopes

    def count(margins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        steps.append(len(margins))
        return slopes(margins)

    monkeypatch.setattr(bradley_terry, "slopes", count)
    columns = np.random.default_rng(7).normal(size=(200, 20))
    dual = solve_dual(columns @ columns.T / 1e-7)
    assert len(steps) < 20
    probability, _ = slopes(columns @ (columns.T @ dual / 1e-7))
    assert np.abs(probability @ columns).max() < 1e-4


def test_the_curvature_of_all_votes_is_computed_a_few_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: list[int] = []
    gram = bradley_terry.curved_gram

    def count(differences: np.ndarray, curvature: np.ndarray) -> np.ndarray:
        counted.append(len(differences))
        return gram(differences, curvature)

    monkeypatch.setattr(bradley_terry, "curved_gram", count)
    rng = np.random.default_rng(6)
    columns = rng.normal(size=(6000, 20))
    agree = rng.random(6000) < 1 / (1 + np.exp(-columns @ rng.normal(size=20)))
    columns[~agree] *= -1
    tried = (Prior(1.0), Prior(3.0))
    found = VoteMatrix(columns, 20).fits(tried)
    some = len(range(0, 6000, 6000 // (20 * priors.BEGIN_WITH)))
    assert counted.count(6000) <= 5 and 0 < counted.count(some) < 10
    assert set(counted) == {6000, some}
    for prior, weights in zip(tried, found, strict=True):
        slope, _ = bradley_terry.slopes(columns @ weights)
        assert np.abs(slope @ columns - prior.l2 * weights).max() < 1e-6


def test_deviations_of_many_votes_are_right_where_few_features_have_most_of_the_spread() -> None:
    """The curvature of so many votes is added up in float32."""
    rng = np.random.default_rng(8)
    count = 3 * bradley_terry.ROWS + 5
    spread = 10.0 ** -np.linspace(0, 3, 30)
    columns = rng.normal(size=(count, 30)) * spread * 10
    columns[columns @ rng.normal(size=30) < rng.logistic(size=count)] *= -1
    votes, prior = VoteMatrix(columns, 30), Prior(0.3)
    weights = votes.fits([prior])[0]
    slope, curvature = bradley_terry.slopes(columns @ weights)
    assert np.abs(slope @ columns - prior.l2 * weights).max() < 1e-8  # the fit itself is exact
    exact = (columns.T * curvature) @ columns
    rough = bradley_terry.curved_gram(columns, curvature)
    assert 0 < np.abs(rough - exact).max() < 1e-6 * np.linalg.eigvalsh(exact)[-1]
    few = bradley_terry.curved_gram(columns[: bradley_terry.ROWS], curvature)
    rows = columns[: bradley_terry.ROWS]
    np.testing.assert_allclose(few, (rows.T * curvature[: len(rows)]) @ rows, atol=1e-9)
    precision = exact + prior.l2 * np.eye(30)
    space = VoteSpace(np.zeros(30), np.ones(30), np.zeros((0, 30)))
    asked = rng.normal(size=(50, 30))
    _, found = Posterior(space, votes, Blend(((prior, 1.0),))).scores(asked)
    wanted = np.sqrt(np.einsum("ij,jk,ik->i", asked, np.linalg.inv(precision), asked))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
