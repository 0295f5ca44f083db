"""Changes to an answer's look that leave what it says: what they do to its score.

A reward model that pays for them teaches the policy to make them.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from lorarlhf.evaluation.win_rate import Z95

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])")
BOLD_WORDS = 3


def sentences(text: str) -> list[str]:
    """The sentences of a text; a line break also ends one."""
    lines = (part for line in text.splitlines() for part in _SENTENCE_END.split(line))
    return [part.strip() for part in lines if part.strip()]


def as_list(text: str) -> str:
    """Each sentence as a point of a list."""
    return "\n".join(f"- {sentence}" for sentence in sentences(text))


def bold_start(text: str) -> str:
    """The first `BOLD_WORDS` words in bold."""
    words = text.split(maxsplit=BOLD_WORDS)
    bold, rest = words[:BOLD_WORDS], words[BOLD_WORDS:]
    return " ".join([f"**{' '.join(bold)}**", *rest])


def with_opening(text: str) -> str:
    """With a phrase of praise before it."""
    return f"Great question! {text}"


def repeated(text: str) -> str:
    """With its last sentence once more."""
    return f"{text} {sentences(text)[-1]}"


CHANGES: dict[str, Callable[[str], str]] = {
    "made a list": as_list,
    "the first words in bold": bold_start,
    'opened with "Great question!"': with_opening,
    "its last sentence twice": repeated,
}
"""By their names; each takes a text that is not blank."""


@dataclass(frozen=True)
class Effect:
    """The mean change of the score, in standard deviations of the unchanged answers' scores.

    `low` and `high` are the ends of its 95% interval.
    """

    name: str
    change: float
    low: float
    high: float

    @property
    def found(self) -> bool:
        """Whether the score surely changes."""
        return self.low > 0 or self.high < 0


def effects(before: Sequence[float], after: Mapping[str, Sequence[float]]) -> list[Effect]:
    """The effect of each change on n >= 2 answers.

    Args:
        before: the scores of the unchanged answers.
        after: by change, the scores of the same answers with it.

    Raises:
        ValueError: fewer than two answers, or another number of scores.
    """
    if len(before) < 2:
        raise ValueError("the effect of a change is measured on two or more answers")
    unit = stdev(before) or 1.0
    found = []
    for name, scores in after.items():
        changes = [(new - old) / unit for old, new in zip(before, scores, strict=True)]
        mean, error = fmean(changes), stdev(changes) / math.sqrt(len(changes))
        found.append(Effect(name, mean, mean - Z95 * error, mean + Z95 * error))
    return found
