"""Features for the reward head: the hidden states of the frozen base, pooled over an answer."""

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
    """The inputs of the reward head from the base without adapters -> float32 (N, F).

    F is 2H for `mean` (the trunk's output, then the final state; H without a trunk) and H for
    `last`. The tokens are those that the reward role scores: `mean` leaves out the stop token, and
    `last` is the stop token (see `encode_answer`). Answers of similar length share a batch; the
    rows are in the order of the answers.

    Args:
        prompts, answers: N of each; a plain-text prompt stays plain.
        progress: called after each batch with its number of answers.
    """
    pairs = zip(prompts, answers, strict=True)
    encoded = [encode_answer(backbone, prompt, answer, pooling) for prompt, answer in pairs]
    return pooled_states(backbone, encoded, pooling, batch_size, progress)
