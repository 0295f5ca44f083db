"""What the votes of each rater, and of all, look like: sides, length, form, speed, circles.

Every share comes with an interval. Nothing here knows a model.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from lorarlhf.evaluation.agreement import (
    FEWEST_OVERLAPS,
    Agreement,
    Disagreement,
    agreement_of,
    cycles_of_three,
    disagreements,
    verdict_on,
)
from lorarlhf.evaluation.vote_causes import LEFT, Cause, vote_causes
from lorarlhf.evaluation.win_rate import wilson_interval
from lorarlhf.preferences.records import RANKED, SKIP, Vote

WORDS_A_SECOND = 12.0
"""Nobody reads faster: three times the usual 240 words a minute."""

HURRIED, STEADY = 0.05, 0.75
"""Shares of votes: faster than reading, and the same when asked again, that are worth a word."""


@dataclass(frozen=True)
class Share:
    """`count` of `of`, with the 95% interval of the share (Wilson 1927)."""

    count: int
    of: int

    @property
    def value(self) -> float:
        """From 0 to 1; NaN where there is nothing."""
        return self.count / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """From 0 to 1 where there is nothing."""
        return wilson_interval(self.value, self.of) if self.of else (0.0, 1.0)


@dataclass(frozen=True)
class RaterReport:
    """The votes of one rater, or of all.

    Attributes:
        rater: None for all.
        votes: their number.
        ties, skips: shares of all votes.
        left: of the preferences between two answers whose sides are known, those for the left one.
        left_p: the chance of a share as far from one half, or farther, of a rater who does not look
            at the side (exact binomial test).
        causes: what the preferences can be explained by.
        same_again: of the pairs that were asked again, those with the same verdict.
        circles: of the triples of answers to one prompt, those ordered in a circle.
        seconds: the median time of a vote; None if no time is known.
        too_fast: of the votes with a known time, those faster than anybody can read the answers.
    """

    rater: str | None
    votes: int
    ties: Share
    skips: Share
    left: Share
    left_p: float
    causes: list[Cause]
    same_again: Share
    circles: Share
    seconds: float | None
    too_fast: Share

    @property
    def hurried(self) -> bool:
        """Whether more than one vote in twenty, surely, was faster than reading."""
        return self.too_fast.of > 0 and self.too_fast.interval[0] > HURRIED

    @property
    def contradictory(self) -> bool:
        """Whether, asked again, the rater surely repeats less than three verdicts in four."""
        return self.same_again.of > 0 and self.same_again.interval[1] < STEADY


@dataclass(frozen=True)
class RatersReport:
    """All raters: together, apart, and how far they agree."""

    together: RaterReport
    raters: list[RaterReport]
    agreement: Agreement
    disagreements: list[Disagreement]


def raters_report(votes: Sequence[Vote]) -> RatersReport:
    """The report on these votes."""
    names = [name for name, _ in Counter(vote.rater for vote in votes).most_common()]
    by_rater = {name: [vote for vote in votes if vote.rater == name] for name in names}
    raters = [rater_report(some, name) for name, some in by_rater.items()]
    found = disagreements(votes)
    return RatersReport(rater_report(votes, None), raters, agreement_of(votes), found)


def rater_report(votes: Sequence[Vote], rater: str | None) -> RaterReport:
    """The report on votes that are taken as one rater's."""
    cast = [vote for vote in votes if vote.verdict.verdict != SKIP]
    left = _left(votes)
    timed = [vote for vote in votes if vote.milliseconds is not None and not vote.imported]
    seconds = [vote.milliseconds / 1000 for vote in timed if vote.milliseconds is not None]
    return RaterReport(
        rater,
        len(votes),
        ties=Share(sum(vote.verdict.verdict != RANKED for vote in cast), len(cast)),
        skips=Share(len(votes) - len(cast), len(votes)),
        left=left,
        left_p=binomial_test(left.count, left.of),
        causes=[cause for cause in vote_causes(votes) if cause.name != LEFT or left.of],
        same_again=_same_again(votes),
        circles=Share(*cycles_of_three(votes)),
        seconds=median(seconds) if seconds else None,
        too_fast=Share(sum(map(faster_than_reading, timed)), len(timed)),
    )


def faster_than_reading(vote: Vote) -> bool:
    """Whether a vote took less time than reading all answers at `WORDS_A_SECOND`."""
    words = sum(len(text.split()) for text in vote.completions)
    return vote.milliseconds is not None and vote.milliseconds / 1000 < words / WORDS_A_SECOND


def _left(votes: Iterable[Vote]) -> Share:
    sides = [
        vote.shown[0] == vote.verdict.ranking[0][0]
        for vote in votes
        if not vote.imported and vote.verdict.verdict == RANKED and len(vote.completions) == 2
    ]
    return Share(sum(sides), len(sides))


def _same_again(votes: Sequence[Vote]) -> Share:
    first = {vote.presentation_id: verdict_on(vote) for vote in votes}
    pairs = [
        (first.get(vote.repeats), verdict_on(vote)) for vote in votes if vote.repeats is not None
    ]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return Share(sum(a == b for a, b in known), len(known))


def binomial_test(count: int, of: int) -> float:
    """The chance that a fair coin lands on one side this often or seldom, two-sided and exact.

    It adds up all outcomes that are not likelier than this one; 1 where there is nothing.
    """
    log_half = -of * math.log(2)

    def chance(k: int) -> float:
        ways = math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1)
        return math.exp(ways + log_half)

    limit = chance(count) * (1 + 1e-7)
    return min(1.0, math.fsum(p for k in range(of + 1) if (p := chance(k)) <= limit))


# ---- in words


def in_words(report: RatersReport) -> list[str]:
    """The report as sentences."""
    lines = []
    for one in [report.together, *report.raters] if len(report.raters) > 1 else report.raters:
        lines += [f"{one.rater or 'All raters'}: {_count(one.votes, 'vote')}", *_about(one), ""]
    agreement = report.agreement
    if len(report.raters) > 1:
        if agreement.alpha is None:
            lines.append(
                f"Agreement: {_count(agreement.items, 'pair')} were rated by two or more raters; "
                f"{FEWEST_OVERLAPS} are needed to measure it."
            )
        else:
            lines.append(
                f"Agreement on {_count(agreement.items, 'pair')}: {agreement.raw:.0%} of the "
                f"verdicts are the same; Krippendorff's alpha is {agreement.alpha:.2f} "
                f"({agreement.low:.2f} to {agreement.high:.2f}; 0 is chance, 1 is full agreement)."
            )
        if report.disagreements:
            pairs = _count(len(report.disagreements), "pair")
            lines.append(f"Raters prefer different answers in {pairs}. Talk these over.")
    return lines


def _about(one: RaterReport) -> list[str]:
    lines = [f"  {_percent(one.ties)} ties, {_percent(one.skips)} skipped"]
    if one.left.of:
        lines.append(f"  the left answer was preferred in {_share(one.left)}")
    for cause in one.causes:
        if cause.found:
            lines.append(f"  {_said(cause)}")
    if one.same_again.of:
        doubt = ": the rater contradicts themselves" if one.contradictory else ""
        lines.append(f"  the same verdict when asked again: {_share(one.same_again)}{doubt}")
    if one.circles.of:
        lines.append(f"  three answers preferred in a circle: {_share(one.circles)}")
    if one.seconds is not None:
        fast = f", {_share(one.too_fast)} faster than reading" if one.too_fast.count else ""
        lines.append(f"  {one.seconds:.0f} seconds a vote{fast}")
    return lines


def _said(cause: Cause) -> str:
    odds = math.exp(abs(cause.weight))
    more = "prefers" if cause.weight > 0 else "avoids"
    forms = {"longer": "answers of twice the length", LEFT: "the answer on the left"}
    what = forms.get(cause.name, f"answers with {cause.name}")
    return f"{more} {what}: odds of {odds:.1f} to 1, other things being equal ({cause.pairs} pairs)"


def _share(share: Share) -> str:
    low, high = share.interval
    return f"{share.count} of {share.of} ({share.value:.0%}, {low:.0%} to {high:.0%})"


def _percent(share: Share) -> str:
    return f"{share.value:.0%}" if share.of else "no"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
