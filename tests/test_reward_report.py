"""The report on a reward model: figures by hand, planted faults, and words."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lorarlhf.evaluation.cosmetics import Effect
from lorarlhf.evaluation.rater_report import Share
from lorarlhf.evaluation.reward_report import (
    Calibration,
    LengthReport,
    Rate,
    RewardReport,
    Text,
    length_report,
    most_reachable,
    rank_correlation,
    reward_report,
)
from lorarlhf.evaluation.reward_words import in_words, verdict
from lorarlhf.evaluation.win_rate import wilson_interval
from lorarlhf.rewards.held_out import HeldOut, predict_held_out
from tests.planted import planted

# ---- figures


def test_rank_correlation_by_hand() -> None:
    groups = [str(n) for n in range(5)]
    # Spearman: 1 - 6 * (0 + 1 + 1 + 1 + 1) / (5 * 24) = 0.8.
    found, low, high = rank_correlation(np.arange(5.0), np.array([1, 3, 2, 5, 4]), groups)
    assert found == pytest.approx(0.8) and low <= found <= high
    # Of ties: ranks 1.5, 1.5, 3 against 1, 2, 3 give 1.5 / sqrt(1.5 * 2).
    found, _, _ = rank_correlation(np.array([1, 1, 2]), np.array([1, 2, 3]), groups[:3])
    assert found == pytest.approx(1.5 / np.sqrt(3))
    assert rank_correlation(np.ones(3), np.arange(3.0), groups[:3]) == (0.0, -1.0, 1.0)


def test_the_interval_of_a_correlation_is_that_of_its_groups() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 40))
    apart = rank_correlation(first, second, [str(n) for n in range(40)])
    ten = [str(n) for n in range(40)] * 10
    again = rank_correlation(np.tile(first, 10), np.tile(second, 10), ten)
    assert again[0] == pytest.approx(apart[0], abs=0.01)
    # Fisher: about 1.96 / sqrt(37) to both sides, and ten copies are no more evidence.
    for found in (apart, again):
        assert found[2] - found[1] == pytest.approx(2 * 1.96 / np.sqrt(37), rel=0.25)


def test_the_most_that_a_model_can_reach() -> None:
    # One vote in ten goes wrong: 0.9^2 + 0.1^2 = 0.82 agree again, and 0.9 can be predicted.
    assert most_reachable(0.82) == pytest.approx(0.9)
    assert most_reachable(1.0) == 1.0
    assert most_reachable(0.5) == most_reachable(0.3) == 0.5
    # It is a bound, not an estimate, where some votes are clear and others a coin.
    p = np.random.default_rng(0).beta(0.5, 0.5, size=1000)
    again, ceiling = np.mean(p**2 + (1 - p) ** 2), np.mean(np.maximum(p, 1 - p))
    assert again < ceiling < most_reachable(float(again)) < ceiling + 0.05


def test_length_by_hand() -> None:
    long, short = "one two three four", "one"
    texts = [
        Text("a", long, short),
        Text("b", short, long),
        Text("c", short, long),
        Text("d", short, "two"),
        Text("e", "left out of the sample", short),
    ]
    scores = np.array([3.0, -1.0, 2.0, 0.0]), np.array([-1.0, 2.0, 0.0, 0.0])
    found = HeldOut(np.arange(4), *scores, np.ones(4), np.ones(4))
    report = length_report(found, texts, list("abcde"))
    assert report.longer == Rate((1 + 0 + 0 + 0.5) / 4, 4)
    assert report.shorter_chosen == Rate(0.5, 2)  # of b and c only c is right
    assert report.longer_chosen == Rate(1.0, 1)  # a; in d both are as long
    # Scores 3 -1 2 0 -1 2 0 0 against words 4 1 1 1 1 4 4 1.
    ranks = np.array([8, 1.5, 6.5, 4, 1.5, 6.5, 4, 4]), np.array([7, 3, 3, 3, 3, 7, 7, 3])
    assert report.correlation == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_a_share_has_wilson_s_interval() -> None:
    assert Rate.mean(np.array([1.0, 0.5, 0.0, 1.0])) == Rate(0.625, 4)
    assert Rate(0.625, 4).interval == wilson_interval(0.625, 4)
    nothing = Rate.mean(np.array([]))
    assert np.isnan(nothing.value) and nothing.interval == (0.0, 1.0)


def test_a_planted_rule_is_measured() -> None:
    votes = planted(200, width=8, wrong=0.1)
    texts = [Text(f"{n // 2}?", "some words", "a few words") for n in range(200)]
    found = reward_report(votes, texts, Share(9, 10))
    assert (found.votes, found.prompts, found.accuracy.of) == (200, 100, 200)
    assert 0.75 < found.accuracy.value < 0.92
    wrong = round((1 - found.accuracy.value) * 200)
    assert len(found.mistakes) == wrong
    surest = [mistake.confidence for mistake in found.mistakes]
    assert surest == sorted(surest, reverse=True) and surest[0] > 0.7
    assert found.calibration.error < 0.1
    assert sum(part.count for part in found.calibration.curve) == 200
    assert all(part.low >= 0.5 for part in found.calibration.curve)
    assert found.length is not None and found.length.longer == Rate(0.0, 200)
    assert found.length.shorter_chosen == found.accuracy
    assert found.same_again == Share(9, 10) and found.curve is not None
    bare = reward_report(votes)
    assert bare.length is None and bare.same_again is None and bare.accuracy == found.accuracy
    assert reward_report(votes, same_again=Share(0, 0)).same_again is None


def test_the_doubt_about_the_weights_helps_where_votes_contradict_each_other() -> None:
    """Of 60 votes two in five are wrong: the best weights alone are too sure of themselves."""
    losses, errors = [], []
    for seed in range(10):
        votes = planted(60, width=10, wrong=0.4, seed=seed)
        found, report = predict_held_out(votes), reward_report(votes)
        both = [found.confidence(doubt) for doubt in (True, False)]
        losses.append([log_loss(sure, found.right) for sure in both])
        errors.append([report.calibration.error, report.without_doubt.error])
    with_doubt, without = np.array(losses).T
    assert (with_doubt < without).sum() >= 9
    assert np.mean(errors, axis=0)[0] < np.mean(errors, axis=0)[1]


def test_the_doubt_costs_next_to_nothing_where_they_do_not() -> None:
    """A rule that few votes contradict: there the best weights alone are no worse."""
    losses = []
    for seed in range(10):
        found = predict_held_out(planted(60, width=30, wrong=0.1, seed=seed))
        losses.append([log_loss(found.confidence(doubt), found.right) for doubt in (True, False)])
    with_doubt, without = np.mean(losses, axis=0)
    assert with_doubt < without + 0.01


def log_loss(sure: np.ndarray, right: np.ndarray) -> float:
    """The mean -log of the chance that was given to what came true."""
    return float(-np.mean(right * np.log(sure) + (1 - right) * np.log(1 - sure)))


def test_texts_of_other_votes_are_refused() -> None:
    with pytest.raises(ValueError, match="20 votes have 1 texts"):
        reward_report(planted(20, width=2), [Text("a", "b", "c")])


# ---- the verdict


SOME = Rate(0.5, 40)  # of votes that went against a rule for length


def made(
    accuracy: float,
    longer: float | None = None,
    against: tuple[Rate, Rate] = (SOME, SOME),
    **more: Any,
) -> RewardReport:
    calibration = Calibration.of(np.array([0.6, 0.9]), np.array([1.0, 1.0]))
    length = None
    if longer is not None:
        length = LengthReport(Rate(longer, 100), *against, 0.3, 0.1, 0.5)
    fields = {"same_again": None, "curve": None} | more
    rate = Rate(accuracy, 100)
    return RewardReport(100, 50, rate, calibration, calibration, [], length, **fields)


def test_good_and_not_good() -> None:
    assert verdict(made(0.75, 0.55)).level == "good"
    assert verdict(made(0.75)).text == "Good enough for PPO."
    coin = verdict(made(0.58))  # from 48%
    assert coin.level == "no" and "no better than a coin" in coin.text
    assert "Collect more votes" in coin.text


def test_a_rater_who_contradicts_themselves_is_told_so_first() -> None:
    text = verdict(made(0.58, same_again=Share(20, 40))).text
    assert "Asked again, you often vote the other way" in text
    assert "Collect more votes" in verdict(made(0.58, same_again=Share(5, 10))).text  # too few
    assert "Collect more votes" in verdict(made(0.58, same_again=Share(38, 40))).text


@pytest.mark.parametrize(("longer", "rule"), [(0.8, "longer"), (0.2, "shorter")])
def test_a_fit_that_is_no_better_than_a_rule_for_length(longer: float, rule: str) -> None:
    found = verdict(made(0.78, longer))
    assert found.level == "doubtful" and f'"the {rule} one wins"' in found.text
    rare = "shorter" if rule == "longer" else "longer"
    assert f"ones where the {rare} answer is better" in found.text


@pytest.mark.parametrize("rule", ["longer", "shorter"])
def test_a_fit_that_fails_where_length_fails_is_not_called_good(rule: str) -> None:
    """It beats the rule for length by two points, but knows nothing of the votes against it."""

    def judged(share: float, of: int, longer: float = 0.7) -> Any:
        against = (Rate(share, of), Rate(0.9, 300))
        report = made(0.72, longer, against) if rule == "longer" else None
        report = report or made(0.72, 1 - longer, against[::-1])
        return verdict(report)

    rare = "shorter" if rule == "longer" else "longer"
    found = judged(0.15, 200)
    assert found.level == "doubtful"
    assert f"where you chose the {rare} answer it is right in only 15%" in found.text
    assert f"PPO may only make answers {rule}." in found.text
    assert judged(0.15, 200, longer=0.72).text.count("predicts your votes as well") == 1
    for share, of in ((0.0, 9), (0.4, 60), (0.55, 200)):  # too few, not surely, and not at all
        assert judged(share, of).level == "good"


def test_a_weak_fit_and_one_that_pays_for_looks() -> None:
    weak = verdict(replace(made(0.57), accuracy=Rate(0.57, 1000)))
    assert weak.level == "doubtful" and "two votes in five are predicted wrong" in weak.text
    bold, praised = Effect("in bold", 0.8, 0.6, 1.0), Effect("praised", 0.7, 0.4, 1.0)
    paid = verdict(made(0.75), [bold, praised])  # surely more than half a deviation: only bold
    assert paid.level == "doubtful" and "gains much by being in bold. Collect" in paid.text
    assert verdict(made(0.75), [praised]).level == "good"


def test_the_words() -> None:
    report = made(0.75, 0.55, same_again=Share(18, 20))
    effect = Effect("made a list", 0.25, -0.1, 0.6)
    lines = in_words(report, [effect], Rate(0.7, 20))
    assert lines[0].startswith("100 votes on 50 prompts. Each is predicted")
    assert "  predicted right       75% (66% to 82%) of 100" in lines
    assert '  "the longer one"      55% (45% to 64%) of 100' in lines
    assert (
        "  the same rater again  90% (70% to 97%) of 20, so a model can reach 95% at most (82% to "
        "99%)" in lines
    )
    assert any(line.startswith("  the trained model     70%") for line in lines)
    assert "Score and length: rank correlation +0.30 (+0.10 to +0.50)" in lines
    assert "Right where the shorter answer was chosen: 50% (35% to 65%) of 40" in lines
    assert "Right where the longer answer was chosen: 50% (35% to 65%) of 40" in lines
    assert "  60% to 70% sure       100% (21% to 100%) of 1" in lines
    assert "  made a list  +0.25 (-0.10 to +0.60)" in lines
    assert lines[-1] == "Good enough for PPO." and lines[-2].startswith("Too few votes to tell")
    part = in_words(replace(report, accuracy=Rate(0.7, 80)))[0]
    assert part.endswith("of 80 of them (a fit to all is better):")
    few = in_words(replace(report, same_again=Share(1, 2)))
    assert any(line.endswith("of 2: too few to judge") for line in few)
    never = LengthReport(Rate(1.0, 100), Rate(float("nan"), 0), SOME, 0.3, 0.1, 0.5)
    assert "The shorter answer was never chosen." in in_words(replace(report, length=never))
