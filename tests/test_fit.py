"""The Bradley-Terry fit against hand-made Newton steps, planted truths and awkward votes."""

import math

import numpy as np
import pytest

from lorarlhf.rewards.bradley_terry import solve_dual, solve_primal
from lorarlhf.rewards.fit import fit_head
from lorarlhf.rewards.priors import (
    PRIORS_WITHOUT_AXES,
    Blend,
    Prior,
    VoteMatrix,
    best_scale,
    blend_priors,
    prior_masses,
    split_groups,
)
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf.runtime.errors import UserError
from tests.planted import planted_rows


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def primal_newton(d: np.ndarray, l2: float) -> np.ndarray:
    """The textbook's Newton in the H x H primal, undamped: fine for small, easy cases."""
    w = np.zeros(d.shape[1])
    for _ in range(50):
        p = sigmoid(-d @ w)
        hessian = d.T @ (d * (p * (1 - p))[:, None]) + l2 * np.eye(len(w))
        w -= np.linalg.solve(hessian, l2 * w - d.T @ p)
    return w


def accuracy(weight: np.ndarray, truth: np.ndarray) -> float:
    """Share of 4000 fresh pairs that the weight orders like the truth."""
    d = np.random.default_rng(99).normal(size=(4000, len(truth)))
    return float(np.mean((d @ weight) * (d @ truth) > 0))


def weight_of(d: np.ndarray, l2: float) -> np.ndarray:
    """The weights (H,) from differences (N, H), by way of the dual."""
    return d.T @ solve_dual(d @ d.T / l2) / l2


def votes_of(d: np.ndarray) -> VoteMatrix:
    return VoteMatrix(d, d.shape[1])


def test_a_single_vote() -> None:
    # One feature, difference 1, l2 1: w = sigmoid(-w), which w = 0.4010581 solves.
    (w,) = weight_of(np.array([[1.0]]), 1.0)
    assert w == pytest.approx(0.4010581, abs=1e-6)
    assert 1 / (1 + math.exp(w)) == pytest.approx(w, abs=1e-9)


def test_dual_equals_primal() -> None:
    d = np.random.default_rng(0).normal(size=(12, 4))
    for l2 in (0.05, 1.0, 30.0):
        np.testing.assert_allclose(weight_of(d, l2), primal_newton(d, l2), rtol=1e-6, atol=1e-9)


def test_both_ways_find_the_same_weights_from_any_start() -> None:
    rng = np.random.default_rng(3)
    d, scale = rng.normal(size=(40, 9)), np.array([0.0, 0.3, 1.0, 1.0, 1.0, 2.0, 2.0, 5.0, 0.0])
    dual = solve_dual(d * scale**2 @ d.T)
    wanted = scale**2 * (dual @ d)
    for start in (None, rng.normal(size=9), 50 * rng.normal(size=9)):
        found = scale * solve_primal(d, scale, start)
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)
    for start in (rng.normal(size=40), 50 * rng.normal(size=40)):
        again = solve_dual(d * scale**2 @ d.T, start)
        np.testing.assert_allclose(scale**2 * (again @ d), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 50), (80, 7), (200, 576)])
def test_gradient_is_zero_at_the_solution(shape: tuple[int, int]) -> None:
    d = np.random.default_rng(1).normal(size=shape)
    for l2 in (0.1, 10.0, 1000.0):
        w = weight_of(d, l2)
        gradient = l2 * w - d.T @ sigmoid(-d @ w)
        assert np.abs(gradient).max() < 1e-5 * np.abs(d).sum(axis=0).max()


def test_separable_and_huge_differences_stay_finite() -> None:
    d = np.array([[1e4, 0.0], [2e4, 1.0], [1e-8, 1e4]])
    for l2 in (1e-8, 1.0):
        w = weight_of(d, l2)
        assert np.isfinite(w).all() and (d[:2] @ w > 0).all()


def test_scores_do_not_depend_on_scale_or_shift_of_the_features() -> None:
    truth = np.array([1.0, -1.0, 0.5, 0.0])
    chosen, rejected = planted_rows(0, 40, truth)
    axes = np.array([[1.0, -1.0, 0.0, 0.0]])
    background = np.vstack([chosen, rejected])
    groups = list(range(40))
    plain = fit_head(chosen, rejected, groups, background=[background], axes=axes)
    scale, shift = np.array([10.0, 0.01, 3.0, 1.0]), np.array([100.0, -1.0, 0.0, 7.0])
    moved = fit_head(
        chosen * scale + shift,
        rejected * scale + shift,
        groups,
        background=[background * scale + shift],
        axes=axes * scale,
    )
    # float32 weights at features of size 100: 1e-5 of a score's spread.
    np.testing.assert_allclose(
        moved.score(chosen * scale + shift), plain.score(chosen), rtol=1e-3, atol=1e-4
    )
    assert plain.score(background).mean() == pytest.approx(0, abs=1e-6)


def test_folds_keep_groups_together_and_similar_in_size() -> None:
    groups = [f"prompt {i % 23}" for i in range(100)]
    folds = split_groups(groups)
    of_group = {g: {f for h, f in zip(groups, folds, strict=True) if h == g} for g in groups}
    assert all(len(found) == 1 for found in of_group.values())
    sizes = np.bincount([next(iter(found)) for found in of_group.values()])
    assert len(sizes) == 5 and sizes.max() - sizes.min() <= 1


def test_copies_of_a_vote_do_not_improve_cross_validation() -> None:
    # Labels are coin flips, and each vote stands there four times. Were a group's votes on both
    # sides of a split, the held-out ones would be predicted by their copies.
    rng = np.random.default_rng(5)
    d = np.repeat(rng.normal(size=(40, 400)), 4, axis=0)
    by_prompt = [place // 4 for place in range(160)]
    assert blend_priors(votes_of(d), by_prompt, priors=[Prior(0.1)]).cv_accuracy < 0.7
    leaky = blend_priors(votes_of(d), list(range(160)), priors=[Prior(0.1)])
    assert leaky.cv_accuracy > 0.95


def test_shares_follow_the_held_out_loss() -> None:
    truth = np.zeros(30)
    truth[0] = 1.0
    chosen, rejected = planted_rows(3, 200, truth, noise=0.0)
    d, groups = chosen - rejected, list(range(200))
    alone = [blend_priors(votes_of(d), groups, priors=[Prior(l2)]) for l2 in (1.0, 1.2, 1e5)]
    blend = blend_priors(votes_of(d), groups, priors=[Prior(1.0), Prior(1.2), Prior(1e5)])
    shares = {prior.l2: share for prior, share in blend.priors}
    assert set(shares) == {1.0, 1.2}  # the one that is far off has no say
    assert sum(shares.values()) == pytest.approx(1)
    ratio = math.exp(200 * (alone[0].cv_loss - alone[1].cv_loss))
    assert shares[1.2] / shares[1.0] == pytest.approx(ratio)
    assert blend.cv_accuracy > 0.8 and blend.cv_loss < math.log(2)
    assert blend.cv_loss <= max(alone[0].cv_loss, alone[1].cv_loss)  # a mean of convex losses
    assert alone[2].cv_loss == pytest.approx(math.log(2), abs=0.01)


def test_a_blend_s_weight_is_the_average_of_its_fits() -> None:
    chosen, rejected = planted_rows(0, 60, np.ones(6))
    axes, both = np.eye(6)[:2], np.vstack([chosen, rejected])
    fit = fit_head(chosen, rejected, range(60), background=[both], axes=axes)
    wanted = sum(
        share
        * fit_head(
            *(chosen, rejected, range(60)),
            background=[both],
            axes=axes,
            blend=Blend(((prior, 1.0),)),
        ).weight
        for prior, share in fit.blend.priors
    )
    assert len(fit.blend.priors) > 1
    np.testing.assert_allclose(fit.weight, wanted, rtol=1e-5, atol=1e-6)


def test_the_scale_makes_margins_as_sure_as_they_are_right() -> None:
    rng = np.random.default_rng(0)
    margins = rng.normal(size=20000)
    right = rng.random(20000) < sigmoid(2 * margins)
    signed = np.where(right, margins, -margins)
    assert best_scale(signed) == pytest.approx(2, rel=0.06)
    assert best_scale(signed * 4) == pytest.approx(1 / 2, rel=0.06)
    # Without votes, or where margins tell nothing of a few votes, it stays at 1 or near it.
    assert best_scale(np.zeros(3)) == 1
    assert 0.4 < best_scale(np.array([1.0, -1.0, 0.5])) < 1
    assert best_scale(np.full(5, 1.0)) < 4


def test_priors_with_and_without_axes_count_the_same_before_any_vote() -> None:
    some = (Prior(1.0, 0.1), Prior(3.0), Prior(1.0, 0.2), Prior(3.0, 0.1))
    np.testing.assert_allclose(prior_masses(some), [1 / 6, 1 / 2, 1 / 6, 1 / 6])
    np.testing.assert_allclose(prior_masses(some[:1]), [1])
    np.testing.assert_allclose(prior_masses(some[2:]), [1 / 2, 1 / 2])
    chosen, rejected = planted_rows(0, 2, np.ones(6))
    found = fit_head(chosen, rejected, [0, 1], background=[chosen], axes=np.ones((1, 6))).blend
    along = [share for prior, share in found.priors if prior.axis_strength]
    assert sum(along) == pytest.approx(1 / 2) and len(along) == 9


@pytest.mark.parametrize("votes", [1, 2, 30])
def test_few_votes_or_a_single_prompt_give_equal_shares(votes: int) -> None:
    chosen, rejected = planted_rows(0, votes, np.ones(6))
    fit = fit_head(
        chosen, rejected, ["the same"] * votes, background=[np.vstack([chosen, rejected])]
    )
    assert [prior for prior, _ in fit.blend.priors] == list(PRIORS_WITHOUT_AXES)
    assert len({share for _, share in fit.blend.priors}) == 1
    assert fit.blend.cv_accuracy is None and fit.blend.cv_loss is None
    assert np.isfinite(fit.weight).all() and np.isfinite(fit.bias)
    assert np.mean(fit.score(chosen) - fit.score(rejected)) > 0


def test_features_that_never_vary_get_no_weight() -> None:
    chosen, rejected = planted_rows(0, 20, np.ones(4))
    chosen[:, 2] = rejected[:, 2] = 5.0
    background = np.vstack([chosen, rejected])
    axes = np.array([[0.0, 0, 1, 0], [0.0, 0, 0, 0]])
    fit = fit_head(chosen, rejected, range(20), background=[background], axes=axes)
    assert fit.weight[2] == 0 and np.isfinite(fit.weight).all()
    same = np.ones((3, 4))
    flat = fit_head(same, same, [1, 2, 3], background=[same[:1]])
    assert np.isfinite(flat.weight).all() and flat.score(same).tolist() == [0, 0, 0]


def test_recovers_a_planted_direction() -> None:
    truth = np.random.default_rng(7).normal(size=10)
    chosen, rejected = planted_rows(1, 400, truth)
    fit = fit_head(chosen, rejected, range(400), background=[np.vstack([chosen, rejected])])
    assert accuracy(fit.weight, truth) > 0.9
    assert fit.blend.cv_accuracy > 0.75  # of 90%: one vote in ten is flipped


@pytest.mark.parametrize(("votes", "gain", "cost"), [(50, 0.2, 0.06), (150, 0.2, 0.06)])
def test_axes_gain_much_along_them_and_cost_less_across(
    votes: int, gain: float, cost: float
) -> None:
    # What the prior is worth and what it costs. Plain accuracies here are 0.58 and 0.64; a truth
    # across all axes, in a space where nothing else is known, is the worst case for it.
    rng = np.random.default_rng(11)
    axes = rng.normal(size=(8, 300))
    along, across = axes[2] + 0.3 * rng.normal(size=300), rng.normal(size=300)
    differences = {}
    for name, truth in (("along", along), ("across", across)):
        found = []
        for seed in range(10):
            chosen, rejected = planted_rows(seed, votes, truth)
            both, groups = np.vstack([chosen, rejected]), range(votes)
            plain = fit_head(chosen, rejected, groups, background=[both])
            helped = fit_head(chosen, rejected, groups, background=[both], axes=axes)
            found.append(accuracy(helped.weight, truth) - accuracy(plain.weight, truth))
        differences[name] = np.mean(found)
    assert differences["along"] > gain
    assert -cost < differences["across"] < 0.02


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64])
def test_features_of_every_type_are_those_numbers(dtype: type) -> None:
    """Their differences do not overflow or lose digits: those of float16 end at 65,504."""
    rng = np.random.default_rng(2)
    chosen, rejected = (np.round(rng.normal(size=(30, 4)) * 2e4).astype(dtype) for _ in range(2))
    chosen[0], rejected[0] = 60_000, -60_000
    groups = [str(place // 2) for place in range(30)]
    fits = [
        fit_head(plus, minus, groups, background=[plus, minus])
        for plus, minus in (
            (chosen, rejected),
            (chosen.astype(np.float64), rejected.astype(np.float64)),
        )
    ]
    np.testing.assert_allclose(fits[0].weight, fits[1].weight, rtol=1e-5)


def test_votes_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(UserError, match="no votes yet"):
        VoteFit().fit()
    votes = VoteFit()
    votes.add(np.ones(3), np.zeros(3), "p")
    with pytest.raises(ValueError, match="3 features"):
        votes.add(np.ones(4), np.zeros(4), "p")
    with pytest.raises(ValueError, match="background"):
        fit_head(np.ones((1, 3)), np.zeros((1, 3)), ["p"], background=[np.ones((2, 4))])
    with pytest.raises(ValueError, match="finite"):
        fit_head(np.full((1, 3), np.nan), np.zeros((1, 3)), ["p"], background=[np.ones((2, 3))])
