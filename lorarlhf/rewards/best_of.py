"""Best of n: one role answers n times, the reward role picks. Needs votes, but no training."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import Completion, generate
from lorarlhf.backbone.tokenizer import Prompt
from lorarlhf.rewards.role import score_answers


@dataclass(frozen=True)
class BestOf:
    """The answers to one prompt with their scores.

    Attributes:
        answers, scores: n of each, as they were sampled.
        best: the place of the highest score.
    """

    answers: list[Completion]
    scores: list[float]

    @property
    def best(self) -> int:
        """The first place with the highest score."""
        return best_places(self.scores, len(self.scores))[0]

    @property
    def answer(self) -> Completion:
        """The answer that was picked."""
        return self.answers[self.best]


def best_of(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    count: int,
    *,
    role: str,
    **sampling: Any,
) -> list[BestOf]:
    """The best of `count` answers of a role to each prompt, by the reward role.

    The same seed gives the same answers.

    Args:
        sampling: `max_new_tokens`, `temperature`, `seed` and others of `generation.generate`.

    Raises:
        ValueError: fewer than one answer.
        UserError: a prompt is too long, or the base has no chat template.
    """
    if count < 1:
        raise ValueError(f"one answer or more, not {count}")
    repeated = [prompt for prompt in prompts for _ in range(count)]
    answers = generate(backbone, repeated, role=role, **sampling)
    scores = score_answers(backbone, repeated, [answer.text for answer in answers])
    places = range(0, len(repeated), count)
    return [BestOf(answers[at : at + count], scores[at : at + count]) for at in places]


def best_places(scores: Sequence[float], count: int) -> list[int]:
    """Of each `count` scores in turn, the first place (from 0) with the highest one."""
    parts = (scores[at : at + count] for at in range(0, len(scores), count))
    return [max(range(len(part)), key=part.__getitem__) for part in parts]


def best_stream(
    backbone: Backbone, prompt: Prompt, count: int, *, role: str, **sampling: Any
) -> Iterator[str]:
    """The text of `best_of` for one prompt, in one piece: it is known when all have ended."""
    (found,) = best_of(backbone, [prompt], count, role=role, **sampling)
    yield found.answer.text


def kl_bound(count: int) -> float:
    """The most nats by which best of n moves away from the role that answers.

    log(n) - (n - 1) / n (Beirami et al. 2024, arXiv 2401.01879, theorem 1).
    """
    return math.log(count) - (count - 1) / count
