"""Learning curves: the power law by hand, planted rules where votes help and where they do not."""

import numpy as np
import pytest

from lorarlhf.rewards.held_out import HeldOut, predict_held_out, sample_of
from lorarlhf.rewards.learning_curve import (
    WORTH,
    Forecast,
    Point,
    advice,
    extrapolate,
    forecast,
    learning_curve,
    power_law,
)
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf.runtime.errors import UserError
from tests.planted import planted, truth

COUNTS = np.array([100.0, 50.0, 25.0])


# ---- the power law


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0])
def test_a_curve_of_the_family_is_continued_exactly(power: float) -> None:
    errors = 0.1 + 0.8 * COUNTS**-power
    found = power_law(COUNTS, errors[None], np.array([200.0, 400.0]))
    np.testing.assert_allclose(found[0], 0.1 + 0.8 * np.array([200.0, 400.0]) ** -power)


def test_a_flat_or_rising_error_stays_at_its_mean() -> None:
    flat, rising, none = [0.3, 0.3, 0.3], [0.35, 0.3, 0.25], [0.0, 0.0, 0.0]
    found = power_law(COUNTS, np.array([flat, rising, none]), np.array([200.0]))
    np.testing.assert_allclose(found[:, 0], [0.3, 0.3, 0.0], atol=1e-12)


def test_an_error_never_falls_below_0() -> None:
    # Falling faster than 1/n: without the limit, the line through these would end below 0.
    errors = np.array([[0.05, 0.2, 0.5]])
    found = power_law(COUNTS, errors, np.array([200.0, 10_000.0]))
    falling = 1 / COUNTS
    b = errors[0] @ falling / (falling @ falling)
    np.testing.assert_allclose(found[0], b / np.array([200.0, 10_000.0]))


def test_a_single_size_promises_nothing() -> None:
    found = power_law(np.array([8.0]), np.array([[0.25]]), np.array([16.0]))
    assert found[0, 0] == pytest.approx(0.25)


# ---- the forecast of measured votes


def test_votes_that_are_all_predicted_are_enough() -> None:
    found = extrapolate([40, 20, 10], np.ones((3, 30)), [str(n) for n in range(30)], 50)
    assert [point.votes for point in found.points] == [10, 20, 40]
    assert found.now.accuracy == found.doubled.accuracy == 1.0 and found.gain == (0.0, 0.0, 0.0)
    assert found.verdict == "enough" and advice(found).startswith("Enough votes: twice as many")


def test_prompts_are_resampled_and_not_votes() -> None:
    """Ten votes on each prompt, all right or all wrong: as many votes say as little as prompts."""
    right = np.repeat([1.0, 0.0] * 10, 10)[None].repeat(3, axis=0)
    groups = [str(n // 10) for n in range(200)]
    apart = extrapolate([40, 20, 10], right, [str(n) for n in range(200)], 50).points[-1]
    together = extrapolate([40, 20, 10], right, groups, 50).points[-1]
    assert together.accuracy == apart.accuracy == 0.5
    # 1.96 * sqrt(0.25 / 20) is 0.22, and 0.07 of 200; times 1.5, to both sides.
    assert together.high - together.low == pytest.approx(0.66, abs=0.08)
    assert apart.high - apart.low == pytest.approx(0.21, abs=0.03)


def test_a_hard_rule_is_worth_more_votes() -> None:
    votes = planted(120, width=40, a_prompt=1)
    found = forecast(votes)
    assert found is not None and found.verdict == "more"
    accuracies = [point.accuracy for point in found.points]
    assert accuracies == sorted(accuracies) and found.doubled.accuracy > found.now.accuracy
    assert all(point.low <= point.accuracy <= point.high for point in found.points)
    text = advice(found)
    assert text.startswith("About 120 more votes are worth it. With twice as many, ")
    # Twice the votes do bring what made them worth it.
    fresh = np.random.default_rng(99).normal(size=(4000, 2, 40))
    fit = planted(240, width=40, a_prompt=1).fit()
    good = (fit.score(fresh[:, 0]) > fit.score(fresh[:, 1])) == (
        fresh[:, 0] @ truth(40) > fresh[:, 1] @ truth(40)
    )
    assert good.mean() > found.now.accuracy + WORTH and good.mean() > found.doubled.low


def test_an_easy_rule_has_enough() -> None:
    found = forecast(planted(600, width=2, wrong=0.1))
    assert found is not None and found.verdict == "enough"
    assert found.chance < 0.1 and 0.85 < found.now.accuracy < 0.95


@pytest.mark.parametrize("seed", range(3))
def test_random_votes_are_never_called_enough(seed: int) -> None:
    found = forecast(planted(200, width=10, wrong=0.5, seed=seed))
    assert found is not None and found.verdict == "unclear"
    assert "no better than a coin" in advice(found)


def test_few_votes_or_prompts_have_no_forecast() -> None:
    assert forecast(planted(19, width=3)) is None
    assert forecast(planted(60, width=3, a_prompt=10)) is None  # 6 prompts
    assert advice(None).startswith("Too few votes to tell")
    assert forecast(planted(20, width=3)) is not None


def test_an_unclear_gain_is_told_with_its_interval() -> None:
    point = Point(60, 0.7, 0.6, 0.8)
    found = Forecast([point], 60, point, Point(120, 0.72, 0.6, 0.84), (0.02, 0.0, 0.06), 0.4)
    assert found.verdict == "unclear"
    assert advice(found) == (
        "It can't be told yet whether more votes would help. With twice as many, 72% of new votes "
        "would be predicted right (60% to 84%); now it is 70%."
    )


def test_a_curve_is_not_continued_far_beyond_what_was_measured() -> None:
    """Of 50,000 votes, fits to 640 are measured: their curve says nothing about 100,000."""
    point = Point(640, 0.7, 0.68, 0.72)
    right = np.full((3, 800), 0.8)
    groups = [str(n // 2) for n in range(800)]
    for votes, verdict, said in (
        (800, "enough", "now it is 80%."),
        (2000, "enough", "now it is about 80% by the curve."),
        (2560, "enough", "now it is about 80% by the curve."),
        (2561, "unclear", "Only fits to up to 640 votes were measured, too few to say what 2,561"),
        (50_000, "unclear", "what 50,000 do."),
    ):
        found = extrapolate([640, 320, 160], right, groups, votes)
        assert found.measured == 640 and found.verdict == verdict and said in advice(found)
    # Not even a clear rise: it is the same guess.
    far = Forecast([point], 50_000, point, Point(100_000, 0.9, 0.8, 1.0), (0.2, 0.1, 0.3), 1.0)
    assert far.verdict == "unclear" and "twice as many" not in advice(far)


def test_more_votes_are_told_in_two_figures() -> None:
    point = Point(1234, 0.7, 0.68, 0.72)
    found = Forecast([point], 1234, point, Point(2468, 0.74, 0.7, 0.78), (0.04, 0.02, 0.06), 0.9)
    assert found.verdict == "more" and advice(found).startswith("About 1,200 more votes")


def test_the_curve_of_a_run_on_held_out_pairs() -> None:
    votes, pairs = planted(60, width=6), planted(400, width=6, seed=1)
    found = list(learning_curve(votes, pairs.chosen, pairs.rejected, counts=(10, 30, 400)))
    assert [count for count, _ in found] == [10, 30, 60]
    fit = votes.subset(range(10)).fit()
    assert found[0][1] == (fit.score(pairs.chosen) > fit.score(pairs.rejected)).mean()
    assert found[0][1] < found[2][1]


# ---- predictions by fits that have not seen the prompt


def test_no_vote_is_predicted_by_a_fit_that_saw_its_prompt() -> None:
    """Each prompt has a direction of its own, which only its own votes speak of."""
    rows = np.eye(12, dtype=np.float32).repeat(2, axis=0)
    votes = VoteFit()
    votes.add_all(rows, np.zeros_like(rows), [n // 2 for n in range(24)])
    found = predict_held_out(votes)
    assert (found.right == 0.5).all() and (found.confidence() == 0.5).all()
    found_curve = forecast(votes)
    assert found_curve is not None
    assert all(point.accuracy == 0.5 for point in found_curve.points)


def test_a_prediction_is_that_of_the_other_folds_posterior() -> None:
    votes = planted(40, width=3)
    found = predict_held_out(votes)
    assert found.places.tolist() == list(range(40))
    # Prompts 0, 5, 10 and 15 are the first of five folds: two votes each.
    test = [n for n in range(40) if (n // 2) % 5 == 0]
    rest = votes.subset([n for n in range(40) if n not in test]).posterior()
    mean, deviation = rest.margins(votes.chosen[test], votes.rejected[test])
    np.testing.assert_allclose((found.chosen - found.rejected)[test], mean, atol=1e-9)
    np.testing.assert_allclose(found.deviations[test], deviation)
    chance = rest.win_probability(votes.chosen[test], votes.rejected[test])
    np.testing.assert_allclose(found.confidence()[test], np.maximum(chance, 1 - chance))


def test_doubt_makes_less_sure() -> None:
    numbers = np.arange(3)
    scores = np.array([2.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0])
    found = HeldOut(numbers, *scores, np.ones(3), np.ones(3))
    assert found.right.tolist() == [1.0, 0.0, 0.5]
    np.testing.assert_allclose(found.confidence(doubt=False), 1 / (1 + np.exp([-2.0, -1.0, 0.0])))
    assert (found.confidence()[:2] < found.confidence(doubt=False)[:2]).all()
    doubled = HeldOut(numbers, *scores, np.ones(3), np.full(3, 2.0))
    np.testing.assert_allclose(doubled.confidence(doubt=False), 1 / (1 + np.exp([-4.0, -2.0, 0])))


def test_of_many_votes_a_sample_of_prompts_is_measured() -> None:
    votes = planted(2500, width=2)
    places = sample_of(votes)
    assert 700 <= len(places) <= 900 and places[-1] > 2300
    whole = [(places == n).any() == (places == n + 1).any() for n in range(0, 2500, 2)]
    assert all(whole)  # both votes of a prompt, or none
    found = forecast(votes)
    assert found is not None and found.votes == 2500 and found.points[-1].votes < 800


def test_of_few_prompts_with_many_votes_each_a_part_of_every_one_is_measured() -> None:
    votes = planted(10_000, width=2, wrong=0.1, a_prompt=1000)
    places = sample_of(votes)
    assert len(places) == 800
    assert [sum(votes.groups[p] == str(n) for p in places) for n in range(10)] == [80] * 10
    found = predict_held_out(votes)
    assert found.places.tolist() == places.tolist() and 0.85 < found.right.mean() < 0.95
    curve = forecast(votes)
    assert curve is not None and curve.measured == 640 and curve.verdict == "unclear"
    assert forecast(planted(2000, width=2, a_prompt=250)) is None  # 8 prompts


def test_votes_on_one_prompt_can_not_predict_each_other() -> None:
    with pytest.raises(UserError, match="two or more prompts"):
        predict_held_out(planted(10, width=2, a_prompt=10))
    with pytest.raises(UserError, match="two or more prompts"):
        predict_held_out(VoteFit())
