"""How the policy does on prompts that no update sees: score, KL, length, and another judge.

A rising training score is not success (arXiv 2307.04964): the policy may have found what the reward
overrates, on those prompts or in general.
"""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.rollout import Rollout, Sampling, collect
from lorarlhf.ppo.scores import Rewards, call_function, unique_names
from lorarlhf.rewards.functions import RewardFunction
from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError


def measure(
    backbone: Backbone,
    rows: Any,
    args: PPOConfig,
    rewards: Rewards,
    judges: Sequence[RewardFunction],
    state: Any,
    sampling: Sampling | None = None,
) -> dict[str, float]:
    """Answer every held-out prompt once, always with the same seeds, and score the answers.

    torch's random state is left alone.

    Args:
        rows: a list or data set of rows with a `prompt`.
        sampling: who answers, this process by default.

    Returns:
        `eval_score` (raw, as the training's `score`), `eval_kl` (nats an answer), `eval_length`
        (tokens), `eval_ended` (share), and `eval_judge` where there are judges (the mean of their
        sums) with its standard error `eval_judge_se`, and `eval_judge/NAME` of each where there
        are several.

    Raises:
        UserError: a reward function or judge raised, or gave no number for any sample.
    """
    figures: dict[str, list[float]] = {}
    opinions: list[list[float | None]] = [[] for _ in judges]
    size = args.rollout_batch_size
    for start in range(0, len(rows), size):
        chunk = [rows[i] for i in range(start, min(start + size, len(rows)))]
        rollout = collect(backbone, chunk, args, args.seed + start, sampling)
        own = distributed.own_share(len(chunk))
        for name, values in _figures(rollout, rewards, own, state).items():
            figures.setdefault(name, []).extend(values)
        for judge, said in zip(judges, opinions, strict=True):
            said.extend(distributed.all_gather(call_function(judge, rollout, own, state)))
        del rollout  # its kept states, before those of the next
    means = {name: fmean(values) for name, values in figures.items()}
    return means | _judgement(unique_names(judges), opinions)


def _figures(
    rollout: Rollout, rewards: Rewards, own: Sequence[int], state: Any
) -> dict[str, list[float]]:
    kl = ((rollout.logprobs - rollout.ref_logprobs) * rollout.mask).sum(dim=1)
    return {
        "eval_score": distributed.all_gather(rewards.score(rollout, own, state)[0]),
        "eval_kl": kl.tolist(),
        "eval_length": rollout.mask.sum(dim=1).float().tolist(),
        "eval_ended": [float(c.ended) for c in rollout.completions],
    }


def _judgement(names: list[str], opinions: list[list[float | None]]) -> dict[str, float]:
    """Mean and standard error of the judges' sums; an answer without an opinion is left out."""
    if not names:
        return {}
    known = [[x for x in row if x is not None] for row in zip(*opinions, strict=True)]
    sums = [sum(row) for row in known if row]
    if not sums:
        raise UserError("The judge gave None for every held-out answer, so it measures nothing.")
    found = {"eval_judge": fmean(sums)}
    if len(sums) > 1:
        found["eval_judge_se"] = stdev(sums) / len(sums) ** 0.5
    for name, said in zip(names, opinions, strict=True):
        values = [value for value in said if value is not None]
        if len(names) > 1 and values:
            found[f"eval_judge/{name}"] = fmean(values)
    return found
