"""What can go wrong in DPO by rounds: checks of the rounds' figures, and advice."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
FEW_PAIRS = 0.25
"""Below this share of prompts with a pair, a round learns from little but what is easy to tell."""
KL_A_TOKEN = 0.5
"""Nats. The limit of PPO's alarm of this name, with its reason (docs/health.md)."""
ENDED = 0.25
"""Of the share of answers that ended at the start: the limit of PPO's endless_answers."""
LONGER = 2.0
"""Answers that have doubled in length are often liked for their length alone."""
ADVICE = {
    "few_pairs": "Only {0:.0%} of the prompts gave a pair that the reward role is sure of, with a "
    "better answer that ended. More votes make it surer, a lower least_gap takes more pairs, and a "
    "higher max_new_tokens lets more answers end.",
    "kl_runaway": "The policy is far from its reference ({0:.2f} nats per token). Raise beta, "
    "halve learning_rate, or take fewer rounds.",
    "endless_answers": "Few answers end by themselves ({0:.0%} do). Raise max_new_tokens, or halve "
    "learning_rate.",
    "length_drift": "Answers are {0:.1f} times as long as at the start. Look whether they are "
    "better, and whether the votes prefer length (`lorarlhf report raters PROJECT`).",
}


def round_alarms(rows: Sequence[Row]) -> dict[str, tuple[float, str]]:
    """The figure and the words of each alarm that the last round raises, by name.

    Args:
        rows: of all rounds; the first are the figures of the start.
    """
    start, last = rows[0], rows[-1]
    found: dict[str, float] = {}
    answered = last.get("pairs", 0) + sum(last.get("left_out", {}).values())
    if answered and last["pairs"] < FEW_PAIRS * answered:
        found["few_pairs"] = last["pairs"] / answered
    a_token = last.get("eval_kl", 0.0) / max(last["eval_length"], 1.0)
    if a_token > KL_A_TOKEN:
        found["kl_runaway"] = a_token
    if start["eval_ended"] >= 0.2 and last["eval_ended"] < ENDED * start["eval_ended"]:
        found["endless_answers"] = last["eval_ended"]
    if last["eval_length"] > LONGER * start["eval_length"]:
        found["length_drift"] = last["eval_length"] / start["eval_length"]
    return {name: (value, ADVICE[name].format(value)) for name, value in found.items()}
