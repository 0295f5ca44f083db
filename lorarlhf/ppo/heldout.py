"""Score, KL, length and judges' verdicts on prompts that are never trained on.

A rising training score alone is no success (arXiv 2307.04964): the policy may exploit errors of the
reward, on the training prompts or in general.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.rollout import PolicySampler, Rollout, collect
from lorarlhf.ppo.scores import Rewards, call_function, unique_names
from lorarlhf.rewards.functions import RewardFunction
from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError


def missing(settings: Mapping[str, Any], heldout: bool, judged: bool, add: tuple[str, str]) -> str:
    """What the settings need and lack, as a sentence; empty if nothing.

    Args:
        settings: the fields of `PPOConfig`.
        heldout, judged: whether there are held-out prompts and a judge.
        add: how to give held-out prompts, and a judge.
    """
    prompts, judge = add
    measured = {"A judge": judged} | {
        name: settings[name] is not None for name in ("kl_budget", "eval_kl_steps")
    }
    for name, used in measured.items():
        if used and not heldout:
            return f"{name} needs held-out prompts: {prompts}."
    if settings["keep_best_by"] == "judge" and not judged:
        return f"keep_best_by judge needs a judge: {judge}."
    if settings["keep_best_by"] == "judge" and settings["kl_budget"] is None:
        return (
            "keep_best_by chooses among the policies inside a KL budget, and without one the last "
            "policy is kept: set kl_budget."
        )
    return ""


def check(args: PPOConfig, heldout: bool, judged: bool) -> None:
    """Raise ValueError where the settings or judges need held-out prompts, a judge or a budget."""
    lack = missing(vars(args), heldout, judged, ("give eval_dataset", "give judge_funcs"))
    if lack:
        raise ValueError(lack)


def is_due(args: PPOConfig, step: int, kl: float, history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the held-out prompts are to be answered after an update.

    They are after every `eval_steps` updates and after the last one, and with `eval_kl_steps` also
    when the KL has grown by so much over the largest that was measured.

    Args:
        step: updates so far.
        kl: of the update's rollout, in nats per answer.
        history: the run's log, with earlier measurements.
    """
    if step == args.updates or step % max(1, args.eval_steps) == 0:
        return True
    if args.eval_kl_steps is None:
        return False
    measured = [row["eval_kl"] for row in history if "eval_kl" in row]
    return kl >= max([0.0, *measured]) + args.eval_kl_steps


def measure(
    backbone: Backbone,
    rows: Any,
    args: PPOConfig,
    rewards: Rewards,
    judges: Sequence[RewardFunction],
    state: Any,
    sampler: PolicySampler | None = None,
) -> dict[str, float]:
    """Answer every held-out prompt once, always with the same seeds, and score the answers.

    torch's random state does not change.

    Args:
        rows: a list or dataset of rows with a `prompt`.
        sampler: answers the prompts; a `LocalSampler` by default.

    Returns:
        `eval_score` (raw, like the training's `score`) and its deviation over the answers
        `eval_score_std`, `eval_kl` (nats per answer), `eval_length` (tokens) and `eval_ended`
        (share). With pessimism also the mean `eval_reward_deviation`. With judges also
        `eval_judge` (the mean of their sums), `eval_judge_std`, the mean's standard error
        `eval_judge_se`, and with several judges `eval_judge/NAME` for each.

    Raises:
        UserError: a reward function or judge raised, or gave no number for any answer.
    """
    figures: dict[str, list[float]] = {}
    verdicts: list[list[float | None]] = [[] for _ in judges]
    size = args.rollout_batch_size
    for start in range(0, len(rows), size):
        chunk = [rows[i] for i in range(start, min(start + size, len(rows)))]
        rollout = collect(backbone, chunk, args, args.seed + start, sampler)
        own = distributed.own_share(len(chunk))
        for name, values in _figures(rollout, rewards, own, state).items():
            figures.setdefault(name, []).extend(values)
        for judge, given in zip(judges, verdicts, strict=True):
            given.extend(distributed.all_gather(call_function(judge, rollout, own, state)))
        del rollout  # frees its kept states before the next rollout
    means = {name: fmean(values) for name, values in figures.items()}
    if len(scores := figures["eval_score"]) > 1:
        means["eval_score_std"] = stdev(scores)
    return means | _judge_figures(unique_names(judges), verdicts)


def _figures(
    rollout: Rollout, rewards: Rewards, own: Sequence[int], state: Any
) -> dict[str, list[float]]:
    kl = ((rollout.logprobs - rollout.ref_logprobs) * rollout.mask).sum(dim=1)
    found = rewards.score(rollout, own, state)
    unsure = distributed.all_gather(found.deviations) if rewards.pessimism else []
    return ({"eval_reward_deviation": unsure} if unsure else {}) | {
        "eval_score": distributed.all_gather(found.sums),
        "eval_kl": kl.tolist(),
        "eval_length": rollout.mask.sum(dim=1).float().tolist(),
        "eval_ended": [float(c.ended) for c in rollout.completions],
    }


def _judge_figures(names: list[str], verdicts: list[list[float | None]]) -> dict[str, float]:
    """Mean and standard error of the judges' sums; answers that no judge scored are left out."""
    if not names:
        return {}
    known = [[x for x in row if x is not None] for row in zip(*verdicts, strict=True)]
    sums = [sum(row) for row in known if row]
    if not sums:
        raise UserError("The judge gave None for every held-out answer, so there is no verdict.")
    found = {"eval_judge": fmean(sums)}
    if len(sums) > 1:
        found["eval_judge_std"] = stdev(sums)
        found["eval_judge_se"] = found["eval_judge_std"] / len(sums) ** 0.5
    for name, values in zip(names, verdicts, strict=True):
        given = [value for value in values if value is not None]
        if len(names) > 1 and given:
            found[f"eval_judge/{name}"] = fmean(given)
    return found
