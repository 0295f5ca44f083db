"""What votes can be explained by without any model: length, form, and the side of the screen.

A vote is a coin whose odds depend on what the two answers differ in. All causes are in one logit
(McFadden 1974), so that a taste for lists is not mistaken for one for length.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorarlhf.preferences.records import RANKED, Vote
from lorarlhf.rewards.bradley_terry import curved_gram, slopes, solve_primal

Array = NDArray[np.float64]

WIDEST = 3.0
"""The deviation of each weight under the prior. It keeps weights finite where every vote goes one
way, and changes others by little: odds of one to twenty are a weight of 3."""
ALARM = 0.03
"""The chance that votes without any of these causes show one (a little higher with a few hundred
votes; see benchmarks/planted_biases.py)."""
Z95 = 1.959963984540054

_LIST = re.compile(r"^\s*(?:[-*+•‣◦]|\d{1,3}[.)])\s+\S", re.MULTILINE)
_HEADING = re.compile(r"^\s*#{1,6}\s+\S", re.MULTILINE)
_BOLD = re.compile(r"\*\*(?=\S)[^*\n]+(?<=\S)\*\*|__(?=\S)[^_\n]+(?<=\S)__")
_CODE = re.compile(r"```|`[^`\n]+`")
_HEDGES = re.compile(
    r"\b(?:I think|I believe|I guess|I'm not sure|I am not sure|perhaps|maybe|it depends|"
    r"it seems|possibly|as an AI)\b",
    re.IGNORECASE,
)
OPENING = 100
"""Characters in which a hedge counts as an opening."""


def doublings(text: str) -> float:
    """The length in doublings: the binary logarithm of the number of words, and one."""
    return math.log2(1 + len(text.split()))


CAUSES: dict[str, Callable[[str], float]] = {
    "longer": doublings,
    "a list": lambda text: float(len(_LIST.findall(text)) >= 2),
    "a heading": lambda text: float(_HEADING.search(text) is not None),
    "bold": lambda text: float(_BOLD.search(text) is not None),
    "code": lambda text: float(_CODE.search(text) is not None),
    "an exclamation mark": lambda text: float("!" in text or "\uff01" in text),
    "a hedging opening": lambda text: float(_HEDGES.search(text[:OPENING]) is not None),
}
"""A number for each text. That of `longer` counts doublings, all others are 0 or 1."""
LEFT = "on the left"


@dataclass(frozen=True)
class Cause:
    """How much one cause explains.

    Attributes:
        name: a key of `CAUSES`, or `LEFT`.
        pairs: votes whose answers differ in it.
        chosen: in how many of them the answer with more of it won.
        weight: by how much it raises the log of the odds, the other causes being equal.
        low, high: the 95% interval of the weight.
        p: the chance of a weight as far from 0, or farther, if there is none (Wald's test).
        found: whether it stands out from all causes that were looked at (Holm 1979, at `ALARM`).
    """

    name: str
    pairs: int
    chosen: int
    weight: float
    low: float
    high: float
    p: float
    found: bool


def vote_causes(votes: Sequence[Vote]) -> list[Cause]:
    """The causes in which at least one pair differs, the surest first.

    Only votes that prefer one of two answers count.
    """
    pairs = [pair for vote in votes if (pair := _pair(vote)) is not None]
    if not pairs:
        return []
    values = np.array(
        [[side, *(cause(a) - cause(b) for cause in CAUSES.values())] for a, b, side in pairs]
    )
    names = [LEFT, *CAUSES]
    differ = (values != 0).any(axis=0)
    used = [name for name, wanted in zip(names, differ, strict=True) if wanted]
    columns = values[:, differ]
    weights, errors = logit(columns)
    chances = [_two_sided(w / e) for w, e in zip(weights, errors, strict=True)]
    found = holm(chances, ALARM)
    causes = [
        Cause(
            name,
            pairs=int((column != 0).sum()),
            chosen=int((column > 0).sum()),
            weight=float(weight),
            low=float(weight - Z95 * error),
            high=float(weight + Z95 * error),
            p=chance,
            found=stands_out,
        )
        for name, column, weight, error, chance, stands_out in zip(
            used, columns.T, weights, errors, chances, found, strict=True
        )
    ]
    return sorted(causes, key=lambda cause: cause.p)


def _pair(vote: Vote) -> tuple[str, str, float] | None:
    """The preferred and the other answer, and 1 where the preferred one stood left, -1 right.

    0 where the sides are not known; None for a vote that prefers neither, or has more answers.
    """
    if vote.verdict.verdict != RANKED or len(vote.completions) != 2:
        return None
    best = vote.verdict.ranking[0][0]
    side = 0.0 if vote.imported else (1.0 if vote.shown[0] == best else -1.0)
    return vote.completions[best], vote.completions[1 - best], side


def logit(columns: Array) -> tuple[Array, Array]:
    """Weights (C,) of the causes and their standard errors, from differences (N, C).

    A row is the preferred answer minus the other one. The errors are those of the Laplace
    approximation under a prior with a deviation of `WIDEST`.
    """
    scale = np.full(columns.shape[1], WIDEST)
    weights = scale * solve_primal(columns, scale)
    _, curvature = slopes(columns @ weights)
    precision = curved_gram(columns, curvature) + np.diag(1 / scale**2)
    return weights, np.sqrt(np.diag(np.linalg.inv(precision)))


def holm(chances: Sequence[float], level: float) -> list[bool]:
    """Which of several tests stand out, so that one or more do so by luck at most at this level."""
    found = [False] * len(chances)
    order = sorted(range(len(chances)), key=lambda place: chances[place])
    for rank, place in enumerate(order):
        if chances[place] > level / (len(chances) - rank):
            break
        found[place] = True
    return found


def _two_sided(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2))
