"""How the policy does on prompts that no update sees: score, KL, length, and another judge.

A rising training score is not success (arXiv 2307.04964): the policy may have found what the reward
overrates, on those prompts or in general.
"""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.errors import UserError
from lorarlhf.ppo import processes
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.rollout import Rollout, collect
from lorarlhf.ppo.scores import Rewards, call_function
from lorarlhf.rewards.functions import RewardFunction, function_name

Row = dict[str, Any]


def measure(
    backbone: Backbone,
    rows: Sequence[Row],
    args: PPOConfig,
    rewards: Rewards,
    judges: Sequence[RewardFunction],
    state: Any,
) -> dict[str, float]:
    """Answer every held-out prompt once, always with the same seeds, and score the answers.

    The random state of the training is left alone.

    Returns:
        `eval_score` (raw, as the training's `score`), `eval_kl` (nats an answer), `eval_length`
        (tokens), `eval_ended` (share), and `eval_judge` where there are judges (the mean of their
        sums) with its standard error `eval_judge_se`, and `eval_judge/NAME` of each where there
        are several.

    Raises:
        UserError: a reward function or judge raised, or gave no number for any sample.
    """
    found: dict[str, list[float]] = {}
    size = args.rollout_batch_size
    for start in range(0, len(rows), size):
        rollout = collect(backbone, list(rows[start : start + size]), args, args.seed + start)
        for name, values in _one_rollout(rollout, rewards, judges, state).items():
            found.setdefault(name, []).extend(values)
    means = {name: fmean(values) for name, values in found.items() if values}
    judged = found.get("eval_judge", [])
    if len(judged) > 1:
        means["eval_judge_se"] = stdev(judged) / len(judged) ** 0.5
    return means


def _one_rollout(
    rollout: Rollout, rewards: Rewards, judges: Sequence[RewardFunction], state: Any
) -> dict[str, list[float]]:
    own = processes.own_share(len(rollout.prompts))
    kl = ((rollout.logprobs - rollout.ref_logprobs) * rollout.mask).sum(dim=1)
    columns: dict[str, list[float]] = {
        "eval_score": processes.all_rows(rewards.score(rollout, own, state)[0]),
        "eval_kl": kl.tolist(),
        "eval_length": rollout.mask.sum(dim=1).float().tolist(),
        "eval_ended": [float(c.ended) for c in rollout.completions],
    }
    by_judge: dict[str, list[float | None]] = {
        function_name(judge): processes.all_rows(call_function(judge, rollout, own, state))
        for judge in judges
    }
    if by_judge:
        columns["eval_judge"] = _judged(list(by_judge.values()))
    if len(by_judge) > 1:
        columns |= {
            f"eval_judge/{name}": [v for v in values if v is not None]
            for name, values in by_judge.items()
        }
    return columns


def _judged(opinions: list[list[float | None]]) -> list[float]:
    sums = [[x for x in row if x is not None] for row in zip(*opinions, strict=True)]
    if not any(sums):
        raise UserError("The judge gave None for every held-out answer, so it measures nothing.")
    return [sum(row) for row in sums if row]
