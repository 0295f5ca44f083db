"""What the reward head is fitted on: the frozen base's hidden states, pooled over an answer."""

from collections.abc import Callable, Sequence

import numpy as np

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.tokenizer import Prompt
from lorarlhf.rewards.role import Answer, encode_answer, pooled_states


def answer_features(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    batch_size: int = 16,
    *,
    pooling: str = "mean",
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """What the reward head reads, of the bare base and pooled over each answer -> float32 (N, F).

    F is 2H for `mean` (the trunk's output, then the final state; H where no trunk is kept) and H
    for `last`. The same tokens as the reward role scores: `mean` leaves the stop token out, `last`
    is the stop token (see `encode_answer`). Answers of like length share a batch; rows come back in
    order.

    Args:
        prompts, answers: N of each; a plain-text prompt stays plain.
        progress: called with the number of answers that each batch added.
    """
    pairs = zip(prompts, answers, strict=True)
    encoded = [encode_answer(backbone, prompt, answer, pooling) for prompt, answer in pairs]
    return pooled_states(backbone, encoded, pooling, batch_size, progress)
