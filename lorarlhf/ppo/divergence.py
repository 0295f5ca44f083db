"""How far the policy is from another role, estimated on answers that it has sampled."""

from collections.abc import Callable, Sequence

import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import Completion
from lorarlhf.backbone.oom import batches_by_length
from lorarlhf.ppo.micro_batches import make_micro_batches, policy_logprobs

ROWS = 8
"""Answers in a forward, at most."""


@torch.no_grad()
def sampled_kl(
    backbone: Backbone,
    encoded: list[list[int]],
    completions: list[Completion],
    temperature: float,
    other: str = "reference",
    progress: Callable[[int], object] = lambda done: None,
) -> list[float]:
    """log p(answer) - log p_other(answer) of each answer, in nats.

    The mean over answers that the policy sampled is an unbiased estimate of its KL from the other
    role.

    Args:
        encoded: the prompts as token ids.
        temperature: of the sampling; both log-probabilities are taken at it.
        other: a role, or `base`.
        progress: gets the number of answers of each batch.

    Raises:
        UserError: the logits of the base's family are not known.
    """

    def gaps(rows: Sequence[int]) -> dict[int, float]:
        (micro,) = make_micro_batches(backbone, encoded, completions, len(rows), rows)
        totals = {}
        for role in ("policy", other):
            with backbone.role(role):
                totals[role], _ = policy_logprobs(backbone, micro, temperature)
        lengths = [len(completions[i].ids) for i in micro.rows]
        parts = (totals["policy"] - totals[other]).split(lengths)
        return {i: float(part.sum()) for i, part in zip(micro.rows, parts, strict=True)}

    found = [0.0] * len(completions)
    pairs = zip(encoded, completions, strict=True)
    for rows, done in batches_by_length([len(p) + len(c.ids) for p, c in pairs], ROWS, gaps):
        for i, gap in done.items():
            found[i] = gap
        progress(len(rows))
    return found
