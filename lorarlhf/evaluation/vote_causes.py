"""What votes can be explained by without any model: length, form, and the side of the screen.

A vote is a coin whose odds depend on what the two answers differ in. All causes are in one logit
(McFadden 1974), so that a taste for lists is not mistaken for one for length.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from lorarlhf.evaluation.win_rate import Z95
from lorarlhf.preferences.records import RANKED, Vote
from lorarlhf.rewards.bradley_terry import curved_gram, slopes, solve_primal

Array = NDArray[np.float64]

WIDEST = 3.0
"""The deviation of each weight under the prior. It keeps weights finite where every vote goes one
way, and changes others by little: odds of one to twenty are a weight of 3."""
ALARM = 0.03
"""The chance that votes without any of these causes show one (a little higher with a few hundred
votes; see benchmarks/planted_biases.py)."""

_FENCED = re.compile(r"^```.*?(?:^```|\Z)", re.MULTILINE | re.DOTALL)
_LIST = re.compile(r"^[ \t]*(?:[-*+•‣◦]|\d{1,3}[.)])[ \t]+(?![-*\s])\S", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t]+\S", re.MULTILINE)
_BOLD = re.compile(r"\*\*(?=\S)[^*\n]+(?<=\S)\*\*|__(?=\S)[^_\n]+(?<=\S)__")
_CODE = re.compile(r"```|`[^`\n]+`")
_SIGNS = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
HEDGES = (
    *("i think", "i believe", "i guess", "i'm not sure", "i am not sure", "perhaps", "maybe"),
    *("it depends", "it seems", "possibly", "as an ai"),
)
_HEDGES = re.compile(rf"\b(?:{'|'.join(HEDGES)})\b")
OPENING = 100
"""Characters in which a hedge counts as an opening."""


def words_in(text: str) -> int:
    """The number of words; Chinese and Japanese signs and Korean syllables count as half a word."""
    if text.isascii():
        return len(text.split())
    signs = len(_SIGNS.findall(text))
    return len(_SIGNS.sub(" ", text).split()) + (signs + 1) // 2


def doublings(text: str) -> float:
    """The length in doublings: the binary logarithm of the number of words, and one."""
    return math.log2(1 + words_in(text))


def _hedged(opening: str) -> bool:
    small = opening.lower()
    # Most texts have none of them, and the regular expression alone takes longer to find that out.
    return any(hedge in small for hedge in HEDGES) and _HEDGES.search(small) is not None


def _unfenced(text: str) -> str:
    """A text without its blocks of code."""
    return _FENCED.sub("", text) if "```" in text else text


CAUSES: dict[str, Callable[[str], float]] = {
    "longer": doublings,
    "a list": lambda text: float(len(_LIST.findall(_unfenced(text))) >= 2),
    "a heading": lambda text: float("#" in text and _HEADING.search(_unfenced(text)) is not None),
    "bold": lambda text: float(
        ("**" in text or "__" in text) and _BOLD.search(_unfenced(text)) is not None
    ),
    "code": lambda text: float("`" in text and _CODE.search(text) is not None),
    "an exclamation mark": lambda text: float("!" in text or "\uff01" in text),
    "a hedging opening": lambda text: float(_hedged(text[:OPENING])),
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
        p: the chance that votes speak as much for it, or more, without reason (likelihood ratio).
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


Difference = tuple[float, ...]
"""What the preferred answer has more of: the side (1 for left, 0 unknown), then `CAUSES`."""


def differences(votes: Sequence[Vote]) -> dict[int, Difference]:
    """By number of the vote; only for votes that prefer one of two answers."""
    causes = cache(_causes)  # several raters vote on the same texts
    return {vote.id: found for vote in votes if (found := _difference(vote, causes)) is not None}


def vote_causes(votes: Sequence[Vote], known: dict[int, Difference] | None = None) -> list[Cause]:
    """The causes in which at least one pair differs, the surest first.

    Only votes that prefer one of two answers count, and of several votes on one pair only the
    first: what else speaks for an answer is the same for all of them.

    Args:
        known: the `differences` of these and other votes, if they were computed before.
    """
    known = differences(votes) if known is None else known
    first = {vote.item_id: vote.id for vote in reversed(votes) if vote.id in known}
    if not first:
        return []
    values = np.array([known[number] for number in first.values()])
    differ = (values != 0).any(axis=0)
    used = [name for name, wanted in zip((LEFT, *CAUSES), differ, strict=True) if wanted]
    columns = values[:, differ]
    weights, errors = logit(columns)
    chances = likelihood_ratios(columns, weights)
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


def _causes(text: str) -> Difference:
    return tuple(cause(text) for cause in CAUSES.values())


def _difference(vote: Vote, causes: Callable[[str], Difference]) -> Difference | None:
    if vote.verdict.verdict != RANKED or len(vote.completions) != 2 or vote.repeats is not None:
        return None
    best = vote.verdict.ranking[0][0]
    side = 0.0 if vote.imported else (1.0 if vote.shown[0] == best else -1.0)
    preferred, other = causes(vote.completions[best]), causes(vote.completions[1 - best])
    return side, *(a - b for a, b in zip(preferred, other, strict=True))


def logit(columns: Array) -> tuple[Array, Array]:
    """Weights (C,) of the causes and their standard errors, from differences (N, C).

    A row is the preferred answer minus the other one. The errors are those of the Laplace
    approximation under a prior with a deviation of `WIDEST`.
    """
    scale = np.full(columns.shape[1], WIDEST)
    if not len(scale):
        return scale, scale
    weights = scale * solve_primal(columns, scale)
    _, curvature = slopes(columns @ weights)
    precision = curved_gram(columns, curvature) + np.diag(1 / scale**2)
    return weights, np.sqrt(np.diag(np.linalg.inv(precision)))


def likelihood_ratios(columns: Array, weights: Array) -> list[float]:
    """The chance, for each cause, that the votes speak so much for it without reason.

    Twice the loss in log-likelihood without the cause has a chi-squared distribution with one
    degree of freedom (Wilks 1938). Wald's test, which divides the weight by its error, would
    overlook the strongest causes: where every vote goes one way, the error grows with the weight.
    """
    whole = _log_likelihood(columns, weights)
    chances = []
    for place in range(columns.shape[1]):
        rest = np.delete(columns, place, axis=1)
        lost = whole - _log_likelihood(rest, logit(rest)[0])
        chances.append(math.erfc(math.sqrt(max(lost, 0.0))))
    return chances


def _log_likelihood(columns: Array, weights: Array) -> float:
    return -float(np.logaddexp(0, -(columns @ weights)).sum())


def holm(chances: Sequence[float], level: float) -> list[bool]:
    """Which of several tests stand out, so that one or more do so by luck at most at this level."""
    found = [False] * len(chances)
    order = sorted(range(len(chances)), key=lambda place: chances[place])
    for rank, place in enumerate(order):
        if chances[place] > level / (len(chances) - rank):
            break
        found[place] = True
    return found
