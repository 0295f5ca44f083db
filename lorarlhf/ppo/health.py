"""Is this run healthy? Watches the log of a run and says in plain words what to change.

Every alarm stands in `ALARMS` with its threshold and the reason for it; docs/health.md shows how
each looks. The checks are pure functions of the log's rows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from transformers import TrainerCallback

from lorarlhf.runtime.files import replace_nonfinite
from lorarlhf.runtime.run import Run

Row = dict[str, Any]
WINDOW = 5
"""Updates that a figure is averaged over before it is judged: single rollouts are noisy."""


@dataclass(frozen=True)
class Alarm:
    """One thing that can go wrong.

    Attributes:
        name: in `metrics.jsonl`.
        limit: the threshold; reason: why it stands there.
        check: (rows, limit) -> the figure that is out of range, or None.
        says: what is happening, with the figure as `{0:...}`; advice: what to change.
    """

    name: str
    limit: float
    reason: str
    check: Callable[[Sequence[Row], float], float | None]
    says: str
    advice: str


@dataclass(frozen=True)
class Finding:
    """An alarm that is on, with the figure that set it off."""

    alarm: Alarm
    value: float

    def words(self) -> str:
        """What is happening and what to change, for a person."""
        return f"{self.alarm.says.format(self.value)} {self.alarm.advice}"


def _updates(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "completion_length" in row]


def _moved(rows: Sequence[Row]) -> list[Row]:
    """The updates in which the policy took part."""
    return [row for row in _updates(rows) if "policy_loss" in row]


def _mean(rows: Sequence[Row], name: str) -> float | None:
    """The mean of a figure over the last `WINDOW` rows; None before there are as many."""
    found = [row[name] for row in rows[-WINDOW:] if row.get(name) is not None]
    return fmean(found) if len(found) == WINDOW else None


def _start(rows: Sequence[Row], name: str) -> float | None:
    """The mean of a figure over the first rows, before anything can have gone wrong."""
    found = [row[name] for row in rows[: WINDOW - 2] if row.get(name) is not None]
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
"""Share of answers that end at the start; where fewer do, length is cut off anyway."""


def _endless(rows: Sequence[Row], limit: float) -> float | None:
    start, now = (
        _start(_updates(rows), "ended_fraction"),
        _mean(_moved(rows), "ended_fraction"),
    )
    if start is None or now is None or start < MANY_END or now > limit * start:
        return None
    return now


def _ratio(rows: Sequence[Row], limit: float) -> float | None:
    mean = _mean(_moved(rows), "ratio")
    return mean if mean is not None and abs(mean - 1) > limit else None


def _server_apart(rows: Sequence[Row], limit: float) -> float | None:
    apart = _mean(_updates(rows), "vllm_kl")
    moved = _mean(_moved(rows), "approx_kl") or 0.0
    return apart if apart is not None and apart > max(limit, moved) else None


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
        "not_a_number",
        0,
        "One infinite or undefined figure poisons all that follow.",
        _not_a_number,
        "{0:.0f} figures of the last update are no numbers.",
        "Halve learning_rate, look for a reward without bounds (score_clip), and go on from the "
        "last checkpoint with --resume.",
    ),
    Alarm(
        "negative_kl",
        -1.0,
        "The KL of samples is positive but for chance, which is well under 1 nat in 5 updates.",
        _below("kl"),
        "The KL is negative ({0:.1f} nats an answer): the answers are not samples of the policy.",
        "Look for a sampler of your own, another temperature, or weights that changed after the "
        "answers were written.",
    ),
    Alarm(
        "kl_runaway",
        0.5,
        "On average a token is then 1.6 times as likely as in the reference. In the demo tuned "
        "answers read well at 0.15 to 0.3 nats a token.",
        _kl_a_token,
        "The policy runs away from its reference ({0:.2f} nats a token).",
        "Double kl_coef, or set kl_target or kl_budget; halve learning_rate.",
    ),
    Alarm(
        "entropy_collapse",
        0.5,
        "Healthy demos keep three quarters of it. A policy that has lost half writes the same few "
        "answers, and has little left to learn from.",
        _entropy,
        "The answers become all alike: the entropy is {0:.0%} of what it was.",
        "Raise kl_coef or halve learning_rate, and read samples.jsonl.",
    ),
    Alarm(
        "length_drift",
        1.5,
        "Reward gains are often only length (arXiv 2310.03716).",
        _length,
        "Answers are {0:.1f} times as long as they were.",
        "The score may pay for length: compare win rates at like length, raise kl_coef, or vote on "
        "pairs of different lengths.",
    ),
    Alarm(
        "endless_answers",
        0.25,
        "Three of four answers that used to end no longer do; what is cut off can't be good. Only "
        "where a fifth of the answers ended at the start: elsewhere max_new_tokens is short.",
        _endless,
        "Answers no longer end by themselves ({0:.0%} do).",
        "Set missing_eos_penalty (1 or 2), or raise max_new_tokens.",
    ),
    Alarm(
        "clip_fraction",
        0.3,
        "Healthy demos have 9 to 12%; beyond 30% much of a step is thrown away by the clip.",
        _above("clip_fraction"),
        "{0:.0%} of the tokens leave the clip range: the steps are too large.",
        "Halve learning_rate, or take fewer num_ppo_epochs.",
    ),
    Alarm(
        "ratio",
        0.1,
        "Healthy demos stay between 1.00 and 1.02: the mean over samples of the old policy is 1.",
        _ratio,
        "The mean ratio of new to old probabilities is {0:.2f}, and should be near 1.",
        "Halve learning_rate, or set max_approx_kl (0.02).",
    ),
    Alarm(
        "server_apart",
        0.02,
        "The clip holds what the updates do, not what another sampler does: its difference must "
        "stay below theirs (approx_kl). 0.02 nats a token is as far as an update should "
        "go (the alarm ratio), and should be far more than rounding to 16 bit makes.",
        _server_apart,
        "The vLLM server answers with another policy than the one that learns (KL {0:.2g} nats a "
        "token).",
        "Start the server anew with the command in docs/scaling.md and go on with --resume; if the "
        "alarm comes back, take generation: transformers.",
    ),
    Alarm(
        "skipped_steps",
        0,
        "A step is only left out where its mean ratio passed max_ratio or its gradient is no "
        "number.",
        _skipped,
        "{0:.0f} of the last steps were left out because ratio or gradient had run wild.",
        "Halve learning_rate.",
    ),
    Alarm(
        "useless_value",
        0.0,
        "At zero the value role guesses no better than a constant, and advantages are noise.",
        _below("explained_variance"),
        "The value role explains nothing of the returns (explained variance {0:.2f}).",
        "Raise value_learning_rate or critic_warmup, or try algorithm=rloo, which has no critic.",
    ),
    Alarm(
        "length_reward",
        0.8,
        "Two thirds of the score's variance are then length alone (0.8 squared).",
        _length_reward,
        "The score measures little but length (correlation {0:.2f}).",
        "Vote on pairs in which the shorter answer is better, too, or the longer one; or add a "
        "reward function that sees more.",
    ),
    Alarm(
        "over_optimisation",
        2.0,
        "Two standard errors of the judge's mean, so that chance seldom does it "
        "(arXiv 2210.10760: the score goes on rising while the truth falls).",
        _over_optimised,
        "The score rises, but the judge of the held-out answers has fallen by {0:.2g}.",
        "Stop here and take an earlier checkpoint; set kl_budget; collect votes on answers of "
        "this policy.",
    ),
)


def diagnose(rows: Sequence[Row]) -> list[Finding]:
    """The alarms that are on after the last of a run's log rows."""
    found = ((alarm, alarm.check(rows, alarm.limit)) for alarm in ALARMS)
    return [Finding(alarm, value) for alarm, value in found if value is not None]


class HealthWatch(TrainerCallback):
    """Says each alarm when it goes on: in the terminal and as a row of `metrics.jsonl`.

    Args:
        run: whose `metrics.jsonl` gets `{"step", "alarm", "value", "words"}`.
        log: tells the person at the terminal.
        stage: of the rows, where the run has several.

    Attributes:
        on: the names of the alarms that are on.
    """

    def __init__(self, run: Run, log: Callable[[str], None], stage: str | None = None) -> None:
        self.run, self.log, self.stage = run, log, stage
        self.on: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A resumed run has said these before.
        self.on = {finding.alarm.name for finding in diagnose(state.log_history)}

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.look(state.log_history, state.global_step)

    def look(self, rows: Sequence[Row], step: int) -> None:
        """Judge the rows so far; an alarm that stays on is said once."""
        found = diagnose(rows)
        for finding in found:
            name = finding.alarm.name
            if name not in self.on:
                self.log(f"Update {step}, {name}: {finding.words()}")
                row = {"step": step, "alarm": name, "value": finding.value}
                self.run.log(replace_nonfinite(row | {"words": finding.words()}), stage=self.stage)
        self.on = {finding.alarm.name for finding in found}
