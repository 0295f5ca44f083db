"""What can go wrong in a run: checks of its figures, thresholds with their reasons, and advice.

The checks are pure functions of the log's rows; docs/health.md has a picture of each alarm.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

Row = dict[str, Any]
WINDOW = 5
"""Updates over which a figure is averaged before it is checked, since one rollout is noisy."""


@dataclass(frozen=True)
class Alarm:
    """One thing that can go wrong.

    Attributes:
        name: in `metrics.jsonl`.
        limit: the threshold.
        reason: why the threshold has this value.
        check: (rows, limit) -> the figure that is out of range, or None.
        problem: what is happening, with the figure as `{0:...}`.
        advice: what to change.
        critic_free_advice: the same for the algorithms rloo and grpo, which have fewer settings;
            the advice itself by default.
    """

    name: str
    limit: float
    reason: str
    check: Callable[[Sequence[Row], float], float | None]
    problem: str
    advice: str
    critic_free_advice: str = ""


def _updates(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "completion_length" in row]


def _moved(rows: Sequence[Row]) -> list[Row]:
    """The updates in which the policy took part."""
    return [row for row in _updates(rows) if "policy_loss" in row]


def _is_number(figure: float | None) -> bool:
    return figure is not None and math.isfinite(figure)


def _mean(rows: Sequence[Row], name: str) -> float | None:
    """The mean of a figure over the last `WINDOW` rows; None while there are fewer.

    Figures that are no numbers have an alarm of their own.
    """
    found = [row[name] for row in rows[-WINDOW:] if _is_number(row.get(name))]
    return fmean(found) if len(found) == WINDOW else None


def _start(rows: Sequence[Row], name: str) -> float | None:
    """The mean of a figure over the first rows, from before anything can go wrong."""
    found = [row[name] for row in rows[: WINDOW - 2] if _is_number(row.get(name))]
    return fmean(found) if len(rows) >= WINDOW and found else None


def _below(name: str) -> Callable[[Sequence[Row], float], float | None]:
    def check(rows: Sequence[Row], limit: float) -> float | None:
        mean = _mean(_moved(rows), name)
        return mean if mean is not None and mean < limit else None

    return check


def _above(name: str) -> Callable[[Sequence[Row], float], float | None]:
    def check(rows: Sequence[Row], limit: float) -> float | None:
        mean = _mean(_moved(rows), name)
        return mean if mean is not None and mean > limit else None

    return check


def _not_a_number(rows: Sequence[Row], limit: float) -> float | None:
    judged = [row for row in rows if "eval_score" in row]
    last = [*_updates(rows)[-1:], *judged[-1:]]
    bad = [v for row in last for v in row.values() if isinstance(v, float) and not math.isfinite(v)]
    return float(len(bad)) if len(bad) > limit else None


def _kl_a_token(rows: Sequence[Row], limit: float) -> float | None:
    moved = [r | {"kl_token": r["kl"] / max(1, r["completion_length"])} for r in _moved(rows)]
    mean = _mean(moved, "kl_token")
    return mean if mean is not None and mean > limit else None


def _entropy(rows: Sequence[Row], limit: float) -> float | None:
    start, now = _start(_updates(rows), "entropy"), _mean(_moved(rows), "entropy")
    if start is None or now is None or start <= 0 or now >= limit * start:
        return None
    return now / start


def _length(rows: Sequence[Row], limit: float) -> float | None:
    start, now = (
        _start(_updates(rows), "completion_length"),
        _mean(_moved(rows), "completion_length"),
    )
    if start is None or now is None or 1 / limit <= now / start <= limit:
        return None
    return now / start


MANY_END = 0.2
"""Smallest share of answers that end at the start; where fewer do, max_new_tokens is short."""


def _endless(rows: Sequence[Row], limit: float) -> float | None:
    start, now = (
        _start(_updates(rows), "ended_fraction"),
        _mean(_moved(rows), "ended_fraction"),
    )
    if start is None or now is None:
        return None
    return now if now == 0 or (start >= MANY_END and now <= limit * start) else None


def _ratio(rows: Sequence[Row], limit: float) -> float | None:
    mean = _mean(_moved(rows), "ratio")
    return mean if mean is not None and abs(mean - 1) > limit else None


def _server_mismatch(rows: Sequence[Row], limit: float) -> float | None:
    mismatch = _mean(_updates(rows), "vllm_kl")
    moved = _mean(_moved(rows), "approx_kl") or 0.0
    return mismatch if mismatch is not None and mismatch > max(limit, moved) else None


def _skipped(rows: Sequence[Row], limit: float) -> float | None:
    skipped = sum(row.get("skipped_steps") or 0 for row in _moved(rows)[-WINDOW:])
    return skipped if skipped > limit else None


def _length_reward(rows: Sequence[Row], limit: float) -> float | None:
    mean = _mean(_moved(rows), "score_length_corr")
    return mean if mean is not None and abs(mean) > limit else None


def _over_optimised(rows: Sequence[Row], limit: float) -> float | None:
    judged = [row for row in rows if row.get("eval_judge") is not None]
    if len(judged) < 3:
        return None
    best = max(judged, key=lambda row: row["eval_judge"])
    last = judged[-1]
    lost = best["eval_judge"] - last["eval_judge"]
    noise = math.hypot(best.get("eval_judge_se", 0.0), last.get("eval_judge_se", 0.0))
    rose = last["eval_score"] > best["eval_score"]
    return lost if rose and lost > limit * noise and lost > 0 else None


ALARMS = (
    Alarm(
        name="not_a_number",
        limit=0,
        reason="One infinite or undefined figure spreads to all that follow.",
        check=_not_a_number,
        problem="{0:.0f} figures of the last update are infinite or undefined.",
        advice="Halve learning_rate, limit the scores with score_clip if the reward has no "
        "bounds, and continue from the last checkpoint with --resume.",
        critic_free_advice="Halve learning_rate, keep the scores of reward functions within "
        "bounds, and continue from the last checkpoint with --resume.",
    ),
    Alarm(
        name="negative_kl",
        limit=-1.0,
        reason="The expected KL of samples is positive, and over 5 updates chance changes it by "
        "much less than 1 nat.",
        check=_below("kl"),
        problem="The KL is negative ({0:.1f} nats per answer): the answers are not samples of the "
        "policy.",
        advice="Check whether a custom sampler or another temperature is in use, or whether the "
        "weights changed after the answers were sampled.",
    ),
    Alarm(
        name="kl_runaway",
        limit=0.5,
        reason="A token is then on average 1.6 times as likely as in the reference. In the demo, "
        "tuned answers read well at 0.15 to 0.3 nats per token.",
        check=_kl_a_token,
        problem="The policy is far from its reference ({0:.2f} nats per token).",
        advice="Raise kl_coef, set kl_target or (with --eval) kl_budget, or halve learning_rate.",
        critic_free_advice="Raise kl_coef or halve learning_rate.",
    ),
    Alarm(
        name="entropy_collapse",
        limit=0.5,
        reason="Healthy demos keep three quarters of their entropy. A policy that has lost half "
        "of it writes the same few answers and has little left to learn from.",
        check=_entropy,
        problem="The answers become too similar: the entropy is {0:.0%} of what it was at the "
        "start.",
        advice="Raise kl_coef or halve learning_rate, and read samples.jsonl.",
    ),
    Alarm(
        name="length_drift",
        limit=1.5,
        reason="Reward gains are often only length (arXiv 2310.03716).",
        check=_length,
        problem="Answers are {0:.1f} times as long as at the start.",
        advice="The score may reward length: compare win rates at equal length, raise kl_coef, or "
        "vote on pairs of different lengths.",
    ),
    Alarm(
        name="endless_answers",
        limit=0.25,
        reason="Three of four answers that would have ended no longer do, and a cut-off answer "
        "can't be good. Where fewer than a fifth ended at the start, max_new_tokens is short, and "
        "only a policy that never ends an answer is reported.",
        check=_endless,
        problem="Few answers end by themselves ({0:.0%} do).",
        advice="Raise max_new_tokens, or set missing_eos_penalty (1 or 2). If answers go on with "
        "turns that nobody wrote, the base has not learned to stop: tune it with sft first.",
        critic_free_advice="Raise max_new_tokens, or add a reward function that gives less to "
        "answers whose `ended` is false. If answers go on with turns that nobody wrote, the base "
        "has not learned to stop: tune it with sft first.",
    ),
    Alarm(
        name="clip_fraction",
        limit=0.3,
        reason="Healthy demos have 9 to 12%. Above 30%, clipping discards much of each step.",
        check=_above("clip_fraction"),
        problem="{0:.0%} of the tokens are clipped: the steps are too large.",
        advice="Halve learning_rate or lower num_ppo_epochs.",
    ),
    Alarm(
        name="ratio",
        limit=0.1,
        reason="The expected ratio over samples of the old policy is 1. Healthy demos stay "
        "between 1.00 and 1.02.",
        check=_ratio,
        problem="The mean ratio of new to old probabilities is {0:.2f}; it should be near 1.",
        advice="Halve learning_rate or set max_approx_kl (0.02).",
    ),
    Alarm(
        name="server_apart",
        limit=0.02,
        reason="Clipping limits what the updates change, but not how another sampler differs, so "
        "that difference must be smaller than an update's (approx_kl). An update should not "
        "exceed 0.02 nats per token (the alarm ratio), and rounding to 16 bits should cause far "
        "less.",
        check=_server_mismatch,
        problem="The vLLM server answers with another policy than the one that is trained (KL "
        "{0:.2g} nats per token).",
        advice="Restart the server with the command in docs/scaling.md and continue with "
        "--resume. If the alarm returns, use generation: transformers.",
    ),
    Alarm(
        name="skipped_steps",
        limit=0,
        reason="A step is only skipped where its mean ratio exceeds max_ratio or its gradient is "
        "not finite.",
        check=_skipped,
        problem="{0:.0f} of the last steps were skipped because their ratio or gradient was too "
        "large.",
        advice="Halve learning_rate.",
    ),
    Alarm(
        name="useless_value",
        limit=0.0,
        reason="At zero the value role predicts no better than a constant, and advantages are "
        "noise.",
        check=_below("explained_variance"),
        problem="The value role does not predict the returns (explained variance {0:.2f}).",
        advice="Raise value_learning_rate or critic_warmup, or try algorithm=rloo, which has no "
        "critic.",
    ),
    Alarm(
        name="length_reward",
        limit=0.8,
        reason="Length alone then explains two thirds of the score's variance (0.8 squared).",
        check=_length_reward,
        problem="The score measures little but length (correlation {0:.2f}).",
        advice="Vote on pairs in which the better answer is sometimes the shorter one and "
        "sometimes the longer one, or add a reward function that measures something else.",
    ),
    Alarm(
        name="over_optimisation",
        limit=2.5,
        reason="The best of several noisy verdicts is too high by chance, so a fall of two "
        "standard errors is common without any cause. (arXiv 2210.10760: the score keeps rising "
        "while the true reward falls.)",
        check=_over_optimised,
        problem="The score rises, but the judge of the held-out answers has fallen by {0:.2g}.",
        advice="Stop here and use an earlier checkpoint, set kl_budget, or collect votes on "
        "answers of this policy.",
    ),
)
