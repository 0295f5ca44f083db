"""The figures of a rollout, and the summary of a run; pure functions."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from lorarlhf.ppo import objective
from lorarlhf.ppo.rollout import Rollout

RECENT = 10
"""Updates over which the summary's KL is averaged."""


def rollout_metrics(
    rollout: Rollout, raw_scores: torch.Tensor, scores: torch.Tensor
) -> dict[str, float]:
    """Figures of one rollout, over answer tokens only.

    Args:
        raw_scores: (B,) as the reward gave them.
        scores: (B,) normalised, with penalties.

    Returns:
        KL in nats per answer, entropy in nats per token, length in tokens.
    """
    mask, completions = rollout.mask, rollout.completions
    kl = ((rollout.logprobs - rollout.ref_logprobs) * mask).sum(dim=1)
    return {
        "score": raw_scores.mean().item(),
        "score_std": raw_scores.std(unbiased=False).item(),
        "score_normalised": scores.mean().item(),
        "kl": kl.mean().item(),
        "entropy": objective.masked_mean(rollout.entropy, mask).item(),
        "completion_length": mask.sum().item() / len(completions),
        "score_length_corr": objective.correlation(raw_scores, mask.sum(dim=1)),
        "ended_fraction": sum(c.ended for c in completions) / len(completions),
        "explained_variance": objective.explained_variance(rollout.values, rollout.returns, mask),
    }


def sampler_mismatch(rollout: Rollout) -> dict[str, float]:
    """How far another program that sampled is from the policy that is trained, per token.

    Returns:
        nothing where this process sampled. Otherwise `vllm_kl`, the KL of its distribution to ours
        in nats (k3 of John Schulman's "Approximating KL divergence"), and `vllm_gap`, the mean
        absolute difference of the log-probabilities; both over the answers that came with them.
    """
    known = [(i, c.sampled_logprobs) for i, c in enumerate(rollout.completions)]
    given = [(i, theirs) for i, theirs in known if theirs is not None]
    if not given:
        return {}
    device = rollout.logprobs.device
    theirs = torch.tensor([x for _, row in given for x in row], device=device)
    rows = [i for i, _ in given]
    log_ratio = rollout.logprobs[rows][rollout.mask[rows]] - theirs
    kl = log_ratio.exp() - 1 - log_ratio
    return {"vllm_kl": kl.mean().item(), "vllm_gap": log_ratio.abs().mean().item()}


def summarize(
    log_history: Sequence[dict[str, Any]], updates: int, batch_size: int, kept_step: int | None
) -> dict[str, Any]:
    """The summary of a run from its log.

    Args:
        updates: how many have been made.
        batch_size: prompts answered in one update.
        kept_step: with a KL budget the update whose policy was kept.

    Returns:
        `updates`, `episodes`, `kl_per_sequence` (mean of the last updates, nats per answer) and
        `seconds_per_update` (median). With held-out prompts also their last figures. With
        `kept_step` that update; the held-out figures and `kl_per_sequence` are then its policy's.
    """
    rows = [row for row in log_history if "kl" in row]
    recent = [row["kl"] for row in rows[-RECENT:]]
    summary: dict[str, Any] = {
        "updates": updates,
        "episodes": updates * batch_size,
        "kl_per_sequence": sum(recent) / len(recent) if recent else 0.0,
        "seconds_per_update": median(row["seconds"] for row in rows) if rows else 0.0,
    }
    measured = [
        row for row in log_history if "eval_score" in row and kept_step in (None, row["step"])
    ]
    if measured:
        summary |= {name: x for name, x in measured[-1].items() if name.startswith("eval_")}
    if kept_step is not None and measured:
        summary |= {"kept_step": kept_step, "kl_per_sequence": summary["eval_kl"]}
    return summary
