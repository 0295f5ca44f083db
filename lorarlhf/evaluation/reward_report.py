"""How good the reward model's fit to the votes is, measured on votes that it has not seen.

Every figure has an interval. It stands beside what a coin and "the longer one wins" get on the same
votes, and beside the most that any model can reach, given how often raters agree with themselves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorarlhf.evaluation.calibration import Bin, calibration_curve, expected_calibration_error
from lorarlhf.evaluation.rater_report import Share
from lorarlhf.evaluation.vote_causes import words_in
from lorarlhf.evaluation.win_rate import wilson_interval
from lorarlhf.rewards.held_out import HeldOut, predict_held_out, shares_right
from lorarlhf.rewards.learning_curve import Forecast, forecast
from lorarlhf.rewards.vote_fit import VoteFit

Array = NDArray[np.float64]

RESAMPLES = 2000
FEWEST_SHORTER = 10
"""Votes for the shorter (or the longer) answer below which their accuracy decides nothing."""
GOOD = 0.6
"""The accuracy from which PPO has something to climb: below, two votes in five are predicted wrong,
and most of what raises the score is noise of the fit."""


@dataclass(frozen=True)
class Text:
    """The texts of a vote; the prompt is its last message."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Rate:
    """A share `value` of `of` votes, ties counted half, with Wilson's 95% interval."""

    value: float
    of: int

    @property
    def interval(self) -> tuple[float, float]:
        """From 0 to 1 where there is no vote."""
        return wilson_interval(self.value, self.of) if self.of else (0.0, 1.0)

    @classmethod
    def mean(cls, points: Array) -> "Rate":
        """Of points from 0 to 1; NaN of none."""
        return cls(float(points.mean()) if len(points) else float("nan"), len(points))


@dataclass(frozen=True)
class Calibration:
    """How far to trust the chance of the predicted winner: see `evaluation.calibration`."""

    curve: list[Bin]
    error: float

    @classmethod
    def of(cls, confidence: Array, right: Array) -> "Calibration":
        """From chances (M,) of 0.5 to 1 and what came true (M,)."""
        error = expected_calibration_error(confidence, right)
        return cls(calibration_curve(confidence, right), error)


@dataclass(frozen=True)
class Mistake:
    """A vote that went against the prediction.

    Attributes:
        place: which of the votes, from 0.
        confidence: the chance that the fit gave to the answer that lost.
    """

    place: int
    confidence: float


@dataclass(frozen=True)
class LengthReport:
    """What has to do with length; the longer answer is the one with more words.

    Attributes:
        longer: how often the longer answer was chosen.
        shorter_chosen, longer_chosen: the accuracy where the shorter, the longer one was.
        correlation: of an answer's score with its length, by ranks (Spearman 1904).
        low, high: its 95% interval, by a bootstrap over the prompts.
    """

    longer: Rate
    shorter_chosen: Rate
    longer_chosen: Rate
    correlation: float
    low: float
    high: float


@dataclass(frozen=True)
class RewardReport:
    """The fit, measured.

    Attributes:
        votes, prompts: that there are; the figures are of `accuracy.of` of these votes.
        calibration, without_doubt: of the chances with and without the doubt about the weights.
        mistakes: the surest first.
        length: None if the texts are not known.
        same_again: how often raters preferred the same answer again; None without repeats.
        curve: None with too few votes.
    """

    votes: int
    prompts: int
    accuracy: Rate
    calibration: Calibration
    without_doubt: Calibration
    mistakes: list[Mistake]
    length: LengthReport | None
    same_again: Share | None
    curve: Forecast | None


def reward_report(
    votes: VoteFit,
    texts: Sequence[Text] | None = None,
    same_again: Share | None = None,
    of: int | None = None,
) -> RewardReport:
    """Predict the votes by cross-validation over their prompts, and measure the predictions.

    Args:
        texts: of each vote, if they are known.
        same_again: from the votes that were asked again (`rater_report.same_winner_again`).
        of: how many votes there are, if `votes` are only the newest ones.

    Raises:
        UserError: votes of fewer than two prompts.
        ValueError: the number of texts is not that of the votes.
    """
    if texts is not None and len(texts) != len(votes):
        raise ValueError(f"{len(votes)} votes have {len(texts)} texts")
    found = predict_held_out(votes)
    confidence = found.confidence()
    wrong = np.flatnonzero(found.right == 0)
    surest = wrong[np.argsort(-confidence[wrong], kind="stable")]
    return RewardReport(
        len(votes),
        len(set(votes.groups)),
        Rate.mean(found.right),
        Calibration.of(confidence, found.right),
        Calibration.of(found.confidence(doubt=False), found.right),
        [Mistake(int(found.places[n]), float(confidence[n])) for n in surest],
        None if texts is None else length_report(found, texts, votes.groups),
        same_again if same_again is not None and same_again.of else None,
        forecast(votes, of=of),
    )


def length_report(found: HeldOut, texts: Sequence[Text], groups: Sequence[str]) -> LengthReport:
    """From predictions of some votes, and the texts and the prompts of all."""
    words = np.array(
        [[words_in(texts[n].chosen), words_in(texts[n].rejected)] for n in found.places]
    )
    longer = shares_right((words[:, 0] - words[:, 1]).astype(np.float64))
    prompts = [groups[place] for place in found.places]
    scores = np.concatenate([found.chosen, found.rejected])
    correlation, low, high = rank_correlation(scores, words.T.ravel(), prompts * 2)
    rare = (Rate.mean(found.right[longer == side]) for side in (0, 1))
    return LengthReport(Rate.mean(longer), *rare, correlation, low, high)


def most_reachable(self_agreement: float) -> float:
    """The largest accuracy that any model can have on votes of raters with this self-agreement.

    If a vote goes one way with chance p, asking again gives the same verdict with chance
    p^2 + (1 - p)^2 = 1/2 + 2 d^2 for d = |p - 1/2|, and the best prediction is right with chance
    1/2 + d. Over votes with different p, E[d] <= sqrt(E[d^2]) (Jensen). Equal where all p are.

    Args:
        self_agreement: the share of votes that went the same way again; 0.5 or less is a coin.
    """
    return (1 + math.sqrt(max(0.0, 2 * self_agreement - 1))) / 2


def rank_correlation(
    first: Array, second: Array, groups: Sequence[str], seed: int = 0
) -> tuple[float, float, float]:
    """Spearman's rank correlation of N pairs of numbers, and its 95% interval.

    The interval is that of a bootstrap over the groups, with the ranks of all pairs. It is 0, from
    -1 to 1, where one of the two never varies.
    """
    a, b = (_ranks(np.asarray(values)) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    if not (a.any() and b.any()):
        return 0.0, -1.0, 1.0
    _, numbers = np.unique(np.array(groups), return_inverse=True)
    count = int(numbers.max()) + 1
    terms = np.stack([np.ones_like(a), a, b, a * a, b * b, a * b])
    sums = np.stack([np.bincount(numbers, term, count) for term in terms], axis=1)  # (G, 6)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) @ sums
    n, ma, mb, aa, bb, ab = np.concatenate([sums.sum(axis=0)[None], drawn]).T
    spread = np.sqrt(np.maximum(aa - ma**2 / n, 0) * np.maximum(bb - mb**2 / n, 0))
    values = np.divide(ab - ma * mb / n, spread, out=np.zeros_like(ab), where=spread > 0)
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return float(values[0]), float(low), float(high)


def _ranks(values: NDArray[np.generic]) -> Array:
    """Ranks from 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[places], dtype=np.float64)
