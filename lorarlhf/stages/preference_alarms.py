"""What goes wrong in DPO, ORPO and KTO: checks of a run's log, thresholds with reasons, advice.

The checks are pure functions of the log's rows, as those of PPO (`lorarlhf.ppo.alarms`). Rows of
`PreferenceWatch` have the figures of fixed prompts at a few steps; they are compared with the
first such row, which is from before the training.
"""

import math
from collections.abc import Sequence
from statistics import fmean

from lorarlhf.ppo.alarms import WINDOW, Alarm, Row

MANY_END = 0.3
"""Smallest share of sampled answers that end at the start; where fewer do, they are long."""


def _figures(rows: Sequence[Row], name: str) -> list[float]:
    return [row[name] for row in rows if math.isfinite(row.get(name, math.nan))]


def _first_and_last(rows: Sequence[Row], name: str) -> tuple[float, float] | None:
    """A figure before the training and now; None before it was measured twice."""
    found = _figures(rows, name)
    return (found[0], found[-1]) if len(found) > 1 else None


def _chosen_falls(rows: Sequence[Row], limit: float) -> float | None:
    found = _first_and_last(rows, "chosen_logp")
    return found[0] - found[1] if found and found[0] - found[1] > limit else None


def _margins_explode(rows: Sequence[Row], limit: float) -> float | None:
    # ORPO's margins are no log-odds; its log odds ratio is.
    margins = _figures(rows, "log_odds_chosen") or _figures(rows, "rewards/margins")
    recent = margins[-WINDOW:]
    mean = fmean(recent) if len(recent) == WINDOW else 0.0
    return mean if mean > limit else None


def _repetition(rows: Sequence[Row], limit: float) -> float | None:
    found = _first_and_last(rows, "repetition")
    return found[1] if found and found[1] - found[0] > limit else None


def _length(rows: Sequence[Row], limit: float) -> float | None:
    found = _first_and_last(rows, "completion_length")
    if not found or found[0] <= 0 or 1 / limit <= found[1] / found[0] <= limit:
        return None
    return found[1] / found[0]


def _endless(rows: Sequence[Row], limit: float) -> float | None:
    found = _first_and_last(rows, "ended_fraction")
    return found[1] if found and found[0] >= MANY_END and found[1] <= limit * found[0] else None


ALARMS = (
    Alarm(
        name="chosen_falls",
        limit=0.5,
        check=_chosen_falls,
        reason="A token of the answers that people prefer is then on average 1.6 times less likely "
        "than before. DPO needs only the difference to the rejected ones, and the policy moves to "
        "answers that nobody has voted on (arXiv 2402.13228).",
        problem="Chosen answers become less likely ({0:.2f} nats per token below the start).",
        advice="Halve learning_rate. In dpo raise sft_weight or beta, in kto raise beta, in orpo "
        "lower it.",
    ),
    Alarm(
        name="margins_explode",
        limit=10.0,
        check=_margins_explode,
        reason="A margin of 10 claims that one vote in 22,000 is wrong (the sigmoid of -10), and "
        "people agree with each other on about three of four pairs (arXiv 2203.02155).",
        problem="The margins explode (on average {0:.1f}): the policy is surer of the votes than "
        "people are.",
        advice="Lower epochs or halve learning_rate.",
    ),
    Alarm(
        name="repetition",
        limit=0.2,
        check=_repetition,
        reason="In texts by people less than 1% of the runs of four tokens repeat (arXiv "
        "1908.04319), and a rise by a fifth is seen in every answer.",
        problem="Answers repeat themselves: {0:.0%} of their runs of four tokens stood in them "
        "before.",
        advice="Halve learning_rate or lower epochs, in dpo raise sft_weight, and read "
        "samples.jsonl.",
    ),
    Alarm(
        name="length_drift",
        limit=1.5,
        check=_length,
        reason="Preference tuning often learns length first (arXiv 2403.19159).",
        problem="Sampled answers are {0:.1f} times as long as at the start.",
        advice="The votes may prefer length: see `lorarlhf report raters`, vote on pairs of "
        "different lengths, or halve learning_rate.",
    ),
    Alarm(
        name="endless_answers",
        limit=0.25,
        check=_endless,
        reason="Three of four sampled answers that would have ended no longer do.",
        problem="Few sampled answers end by themselves ({0:.0%} do).",
        advice="Halve learning_rate or lower epochs, in dpo raise sft_weight, and look whether the "
        "chosen answers end or were cut off.",
    ),
)
