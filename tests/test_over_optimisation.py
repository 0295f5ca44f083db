"""Over-optimisation: where score and judge part, by hand, and the section of the report."""

import math
from typing import Any

import numpy as np
import pytest
from report_page import Page

from lorarlhf.evaluation.over_optimisation import (
    Measurement,
    best_judged,
    describe,
    kept,
    measurements,
    parting,
)
from lorarlhf.evaluation.report import build_html

RUN = {"stage": "ppo"}


def rows(*figures: tuple[int, float, float, float]) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl from (step, KL, score, judge), between rows of updates."""
    made: list[dict[str, Any]] = []
    for step, kl, score, judge in figures:
        made.append({"step": step, "score": 1.0, "kl": kl})
        made.append(
            {"step": step, "eval_kl": kl, "eval_score": score, "eval_judge": judge}
            | {"eval_judge_se": 0.03, "eval_score_std": 2.0, "eval_judge_std": 0.5}
        )
    return made


PARTS = rows(
    (0, 0.0, 1.0, 0.50),
    (10, 2.0, 2.0, 0.70),  # the judge's best
    (20, 4.0, 3.0, 0.60),  # lower, by less than 2.5 * hypot(0.03, 0.03) = 0.106
    (30, 6.0, 2.5, 0.55),  # here they part
    (40, 8.0, 4.0, 0.40),
)


def test_where_they_part() -> None:
    measured = measurements(PARTS)
    assert [one.step for one in measured] == [0, 10, 20, 30, 40]
    assert best_judged(measured).step == 10
    point = parting(measured)
    assert point is not None and point.step == 30
    # Changes since the start in the start's deviations: 1.5 / 2 and 0.05 / 0.5.
    assert (point.score_rise, point.judge_rise) == (0.75, pytest.approx(0.1))
    assert point.gap == pytest.approx(0.65)


@pytest.mark.parametrize(
    "figures",
    [
        [(0, 0.0, 1.0, 0.5), (10, 2.0, 2.0, 0.7)],  # both rise
        [(0, 0.0, 1.0, 0.7), (10, 2.0, 2.0, 0.60)],  # within the error of the fall
        [(0, 0.0, 1.0, 0.5), (10, 2.0, 2.0, 0.7), (20, 4.0, 1.5, 0.3)],  # both fall
        [(0, 0.0, 1.0, 0.7), (10, 0.0, 2.0, 0.3)],  # at no larger KL
        [(0, 0.0, 1.0, 0.5)],
        [],
    ],
)
def test_where_they_do_not(figures: list[tuple[int, float, float, float]]) -> None:
    assert parting(measurements(rows(*figures))) is None


def test_a_judge_that_falls_from_the_start() -> None:
    point = parting(measurements(rows((0, 0.0, 1.0, 0.7), (10, 2.0, 2.0, 0.5))))
    assert point is not None and point.step == 10


def judged_by_chance(seed: int, count: int, fall: float = 0.0) -> list[Measurement]:
    """A run whose score rises; 60 prompts, whose verdicts of a deviation of 1 are alike by 0.3.

    Args:
        fall: of the judge's mean, from the middle of the run to its end.
    """
    rng = np.random.default_rng(seed)
    prompts, made = rng.normal(size=60) * math.sqrt(0.3), []
    for step in range(count):
        verdicts = prompts + rng.normal(size=60) * math.sqrt(0.7)
        verdicts -= fall * max(0.0, 2 * step / (count - 1) - 1)
        error = float(verdicts.std(ddof=1)) / math.sqrt(60)
        made.append(Measurement(step, step, step, float(verdicts.mean()), error))
    return made


@pytest.mark.parametrize(("count", "most"), [(4, 8), (8, 25)])
def test_a_judge_that_never_changes_is_seldom_called_falling(count: int, most: int) -> None:
    """In 400 runs: 2% and 6% at most. At one standard error it was 37% and 66%."""
    alarms = sum(parting(judged_by_chance(seed, count)) is not None for seed in range(400))
    assert alarms <= most


def test_a_judge_that_falls_is_found() -> None:
    runs = [judged_by_chance(seed, 8, fall=1.0) for seed in range(100)]
    points = [parting(run) for run in runs]
    assert sum(point is not None and point.step > 3 for point in points) >= 95


def test_measurements_are_by_kl_and_the_later_row_of_a_step_counts() -> None:
    doubled = rows((0, 0.0, 1.0, 0.5), (10, 5.0, 2.0, 0.7), (20, 3.0, 2.5, 0.6))
    doubled += rows((10, 6.0, 2.0, 0.8))
    doubled += [{"step": 30, "eval_kl": 9.0, "eval_score": 1.0}]  # without a judge
    doubled += [{"step": 40, "eval_kl": float("nan"), "eval_score": 1.0, "eval_judge": 1.0}]
    found = measurements(doubled)
    assert [(one.step, one.kl) for one in found] == [(0, 0.0), (20, 3.0), (10, 6.0)]
    assert found[2].judge == 0.8


def test_without_deviations_there_is_no_gap() -> None:
    plain = [{n: x for n, x in row.items() if "std" not in n} for row in PARTS]
    assert [one.gap for one in measurements(plain)] == [None] * 5
    same = rows((0, 0.0, 1.0, 0.5), (10, 2.0, 2.0, 0.7))
    for row in same:
        row |= {"eval_judge_std": 0.0} if "eval_judge" in row else {}
    assert measurements(same)[1].gap is None


def test_in_a_sentence() -> None:
    measured = measurements(PARTS)
    late = describe(measured)
    assert late == (
        "Score and judge part at a KL of 6.00 nats (update 30): the score is higher than where the "
        "judge was best (KL 2.00, update 10), and the judge is 0.150 lower, more than 2.5 standard "
        "errors of that fall. From there on the policy probably learns what the reward overrates. "
        "The policy that was kept is that of update 40, KL 8.00, beyond that point: train again "
        "with a kl_budget of about 2.00, or collect votes on its answers."
    )
    assert describe(measured, 20).endswith("update 20, KL 4.00, before that point.")
    assert describe(measured, 7).endswith("what the reward overrates.")  # not measured
    assert describe(measured[:2]) == (
        "Up to a KL of 2.00 nats, score and judge do not part. The policy that was kept is that of "
        "update 10, KL 2.00."
    )
    assert kept(measured, None) == measured[-1] and kept(measured, 20) == measured[2]
    assert kept([], None) is None


def test_a_judge_that_was_best_at_the_start_is_given_no_budget_of_0() -> None:
    said = describe(measurements(rows((0, 0.0, 1.0, 0.7), (10, 2.0, 2.0, 0.5))))
    assert "kl_budget" not in said
    assert said.endswith(
        "beyond that point: no policy of this run is better for the judge than the one that it "
        "started from, so collect votes on its answers."
    )


def test_the_report_has_a_section() -> None:
    page = Page(build_html({"kept_step": 20, "updates": 40}, PARTS, None, RUN))
    assert "Over-optimisation" in page.words
    assert "Score and judge part at a KL of 6.00 nats" in page.words
    assert page.row("20 (kept)") == ["4.00", "3.00", "0.60 ± 0.03", "0.80"]
    assert page.row("30 (they part)") == ["6.00", "2.50", "0.55 ± 0.03", "0.65"]
    label = next(label for label in page.values("aria-label") if "by KL on held-out" in label)
    assert "score from 0 to 1.5, judge from 0 to -0.2" in label
    assert "score less judge from 0 to 1.7" in label


def test_the_report_without_deviations_has_no_figure_of_the_gap() -> None:
    plain = [{n: x for n, x in row.items() if "std" not in n} for row in PARTS]
    page = Page(build_html({}, plain, None, RUN))
    assert page.row("40 (kept)")[-1] == "–"
    assert not any("by KL on held-out" in label for label in page.values("aria-label"))


@pytest.mark.parametrize("count", [0, 1])
def test_the_report_leaves_out_a_section_without_two_verdicts(count: int) -> None:
    page = Page(build_html({}, PARTS[: 2 * count], None, RUN))
    assert "Over-optimisation" not in page.words


def test_a_measurement_without_an_error_may_part() -> None:
    measured = [Measurement(0, 0.0, 1.0, 0.5), Measurement(1, 1.0, 1.1, 0.49)]
    assert parting(measured) == measured[1]
