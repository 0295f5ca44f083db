"""Over-optimisation: where the score of the reward and a held-out judge part, over the KL spent.

A policy that is tuned against a learned reward first gains by what the reward got right, then by
its errors: the score goes on rising while a judge that is no part of the reward falls (Gao et al.
2022, arXiv 2210.10760, figure 1). Pure functions; no torch.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorarlhf.evaluation.report_format import number, show

Row = Mapping[str, Any]

SURE = 2.5
"""Standard errors of a fall above which it counts. The best of several noisy verdicts is too high
by chance, and every later one is compared with it: of runs of eight measurements whose judge never
changes, most would be called falling at one error, and a few of a hundred are at 2.5
(tests/test_over_optimisation.py simulates them).
"""


@dataclass(frozen=True)
class Measurement:
    """What the held-out prompts said of a policy.

    Attributes:
        step: updates that made it.
        kl: to the reference, in nats per answer.
        score, judge: means over the answers, each in its own unit.
        judge_error: the standard error of the judge's mean; 0 if it is not known.
        score_rise, judge_rise: the same since the start, in standard deviations of the first
            policy's answers, so that the two can be compared (as in arXiv 2210.10760); None where
            these deviations are not known.
    """

    step: int
    kl: float
    score: float
    judge: float
    judge_error: float = 0.0
    score_rise: float | None = None
    judge_rise: float | None = None

    @property
    def gap(self) -> float | None:
        """By how much more the score has risen than the judge."""
        if self.score_rise is None or self.judge_rise is None:
            return None
        return self.score_rise - self.judge_rise


def measurements(metrics: Iterable[Row]) -> list[Measurement]:
    """The measurements with a judge among the rows of metrics.jsonl, by their KL.

    Of two rows of a step the later counts, since a resumed run repeats some.
    """
    found: dict[float, Row] = {}
    for row in metrics:
        step, *rest = (number(row.get(n)) for n in ("step", "eval_kl", "eval_score", "eval_judge"))
        if step is not None and None not in rest:
            found[step] = row
    if not found:
        return []
    start = found[min(found)]
    made = [_measurement(row, start) for row in found.values()]
    return sorted(made, key=lambda one: (one.kl, one.step))


def _measurement(row: Row, start: Row) -> Measurement:
    return Measurement(
        step=int(row["step"]),
        kl=row["eval_kl"],
        score=row["eval_score"],
        judge=row["eval_judge"],
        judge_error=number(row.get("eval_judge_se")) or 0.0,
        score_rise=_rise(row, start, "eval_score"),
        judge_rise=_rise(row, start, "eval_judge"),
    )


def _rise(row: Row, start: Row, name: str) -> float | None:
    deviation = number(start.get(f"{name}_std"))
    return (row[name] - start[name]) / deviation if deviation else None


def best_judged(measured: Sequence[Measurement]) -> Measurement:
    """The first of those that the judge likes best."""
    return max(measured, key=lambda one: one.judge)


def parting(measured: Sequence[Measurement]) -> Measurement | None:
    """Where score and judge part; None if they do not.

    It is the first measurement at a larger KL than the judge's best whose score is still higher
    than there, while the judge has fallen by more than `SURE` standard errors of that fall. The
    error counts the two means as independent. They are of the same prompts, so it is rather too
    large.

    Args:
        measured: by their KL (`measurements`).
    """
    if not measured:
        return None
    best = best_judged(measured)
    for one in measured:
        fall = best.judge - one.judge
        error = math.hypot(best.judge_error, one.judge_error)
        if one.kl > best.kl and one.score > best.score and fall > SURE * error:
            return one
    return None


def kept(measured: Sequence[Measurement], step: Any) -> Measurement | None:
    """The measurement of the policy that was kept: that of an update, else the last one."""
    wanted = number(step)
    if wanted is None:
        return max(measured, key=lambda one: one.step, default=None)
    return next((one for one in measured if one.step == wanted), None)


def describe(measured: Sequence[Measurement], step: Any = None) -> str:
    """What the measurements say, for a reader: whether score and judge part, and what was kept.

    Args:
        measured: two or more, by their KL.
        step: the update whose policy was kept; None for the last one.
    """
    point, policy = parting(measured), kept(measured, step)
    if point is None:
        found = f"Up to a KL of {show(measured[-1].kl)} nats, score and judge do not part."
        return f"{found} {_place(policy)}" if policy else found
    best = best_judged(measured)
    found = (
        f"Score and judge part at a KL of {show(point.kl)} nats (update {point.step}): the score "
        f"is higher than where the judge was best (KL {show(best.kl)}, update {best.step}), and "
        f"the judge is {show(best.judge - point.judge, digits=3)} lower, more than {SURE:g} "
        "standard errors of that fall. "
        "From there on the policy probably learns what the reward overrates."
    )
    if policy is None:
        return found
    if policy.kl < point.kl:
        return f"{found} {_place(policy)[:-1]}, before that point."
    return f"{found} {_place(policy)[:-1]}, beyond that point: {_remedy(best)}"


def _remedy(best: Measurement) -> str:
    """What to do, as the end of a sentence, where the policy went too far."""
    if best.step == 0 or best.kl <= 0:  # no budget can be so small
        return (
            "no policy of this run is better for the judge than the one that it started from, so "
            "collect votes on its answers."
        )
    return (
        f"train again with a kl_budget of about {show(best.kl)}, or collect votes on its answers."
    )


def _place(policy: Measurement) -> str:
    return f"The policy that was kept is that of update {policy.step}, KL {show(policy.kl)}."
