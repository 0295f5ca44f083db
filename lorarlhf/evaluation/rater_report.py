"""What the votes of each rater, and of all, look like: sides, length, form, speed, circles.

Every share comes with an interval. Nothing here knows a model.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from lorarlhf.evaluation.agreement import (
    Agreement,
    Disagreement,
    agreement_of,
    cycles_of_three,
    disagreements,
    verdict_on,
)
from lorarlhf.evaluation.vote_causes import (
    LEFT,
    Cause,
    Difference,
    differences,
    vote_causes,
    words_in,
)
from lorarlhf.evaluation.win_rate import binomial_test, wilson_interval
from lorarlhf.preferences.records import RANKED, SKIP, Vote
from lorarlhf.preferences.statistics import FEWEST_OVERLAPS

WORDS_A_SECOND = 12.0
"""Nobody reads faster: three times the usual 240 words a minute."""

MOST_RATERS = 10
HURRIED, STEADY = 0.05, 0.75
"""The share of votes faster than reading above which the report says so, and the share of verdicts
repeated below which it does."""


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
        ties: of the comparisons that were not skipped; skips: of all votes.
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
    """The report on these votes; the raters with most votes come first."""
    by_rater: dict[str, list[Vote]] = {}
    for vote in votes:
        by_rater.setdefault(vote.rater, []).append(vote)
    known = differences(votes)  # once, because texts are searched for them
    ordered = sorted(by_rater.items(), key=lambda entry: -len(entry[1]))
    raters = [rater_report(some, name, known) for name, some in ordered]
    found = disagreements(votes)
    return RatersReport(rater_report(votes, None, known), raters, agreement_of(votes), found)


def rater_report(
    votes: Sequence[Vote], rater: str | None, known: dict[int, Difference] | None = None
) -> RaterReport:
    """The report on votes that are taken as one rater's.

    Args:
        known: the `differences` of these and other votes, if they were computed before.
    """
    cast = [vote for vote in votes if vote.verdict.verdict != SKIP]
    compared = [vote for vote in cast if len(vote.completions) > 1]  # a thumb on one is no tie
    left = _left(votes)
    # A skip may be quick, and whoever is asked again has read the answers before.
    timed = [v for v in cast if v.milliseconds is not None and not v.imported and v.repeats is None]
    seconds = [vote.milliseconds / 1000 for vote in timed if vote.milliseconds is not None]
    return RaterReport(
        rater,
        len(votes),
        ties=Share(sum(vote.verdict.verdict != RANKED for vote in compared), len(compared)),
        skips=Share(len(votes) - len(cast), len(votes)),
        left=left,
        left_p=binomial_test(left.count, left.of),
        causes=vote_causes(votes, known),
        same_again=same_again(votes),
        circles=Share(*cycles_of_three(votes)),
        seconds=median(seconds) if seconds else None,
        too_fast=Share(sum(map(faster_than_reading, timed)), len(timed)),
    )


def faster_than_reading(vote: Vote) -> bool:
    """Whether a vote took less time than reading all answers at `WORDS_A_SECOND`."""
    words = sum(map(words_in, vote.completions))
    return vote.milliseconds is not None and vote.milliseconds / 1000 < words / WORDS_A_SECOND


def _left(votes: Iterable[Vote]) -> Share:
    sides = [
        vote.shown[0] == vote.verdict.ranking[0][0]
        for vote in votes
        if not vote.imported and vote.verdict.verdict == RANKED and len(vote.completions) == 2
    ]
    return Share(sum(sides), len(sides))


def same_again(votes: Sequence[Vote]) -> Share:
    """Of the pairs that were asked again, those with the same verdict."""

    def said(vote: Vote) -> tuple[str, int | None]:
        return vote.verdict.verdict, verdict_on(vote)

    first = {vote.presentation_id: vote for vote in votes if verdict_on(vote) is not None}
    again = [vote for vote in votes if vote.repeats in first and verdict_on(vote) is not None]
    pairs = [(first[vote.repeats], vote) for vote in again if vote.repeats is not None]
    return Share(sum(said(a) == said(b) for a, b in pairs), len(pairs))


def same_winner_again(votes: Sequence[Vote]) -> Share:
    """Of the pairs that were preferred one way both times they were asked, those the same way.

    Unlike `same_again` this knows no ties, just as the votes that a reward model learns from.
    """
    return same_again([vote for vote in votes if vote.verdict.verdict == RANKED])


# ---- in words


def in_words(report: RatersReport) -> list[str]:
    """The report as sentences, on at most `MOST_RATERS` raters apart."""
    shown, more = report.raters[:MOST_RATERS], report.raters[MOST_RATERS:]
    lines = []
    for one in [report.together, *shown] if len(report.raters) > 1 else shown:
        lines += [f"{one.rater or 'All raters'}: {_count(one.votes, 'vote')}", *_about(one), ""]
    if more:
        votes = _count(sum(one.votes for one in more), "vote")
        lines += [f"{_count(len(more), 'more rater')} with {votes}; --json has all of them", ""]
    return lines + _agreement(report) if len(report.raters) > 1 else lines


def _agreement(report: RatersReport) -> list[str]:
    found = report.agreement
    if found.raw is None:
        few = f"Agreement: {FEWEST_OVERLAPS} pairs rated by two or more raters are needed to"
        return [f"{few} measure it; there are {found.items or 'none'}."]
    line = (
        f"Agreement on {_count(found.items, 'pair')}: {found.raw:.0%} of the verdicts are the same"
    )
    if found.alpha is None:
        lines = [f"{line}. All say the same, so Krippendorff's alpha has no value."]
    else:
        between = f"{found.low:.2f} to {found.high:.2f}; 0 is chance, 1 is full agreement"
        lines = [f"{line}; Krippendorff's alpha is {found.alpha:.2f} ({between})."]
    if report.disagreements:
        pairs = _count(len(report.disagreements), "pair")
        lines.append(f"Raters prefer different answers in {pairs}. Talk about these:")
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
        doubt = ": many votes without reading" if one.hurried else ""
        unit = "second" if round(one.seconds) == 1 else "seconds"
        lines.append(f"  {one.seconds:.0f} {unit} a vote{fast}{doubt}")
    return lines


def _said(cause: Cause) -> str:
    odds, *ends = (math.exp(abs(weight)) for weight in (cause.weight, cause.low, cause.high))
    between = f"{min(ends):.1f} to {max(ends):.1f}"
    more = "prefers" if cause.weight > 0 else "avoids"
    forms = {"longer": "answers of twice the length", LEFT: "the answer on the left"}
    what = forms.get(cause.name, f"answers with {cause.name}")
    pairs = _count(cause.pairs, "pair")
    return f"{more} {what}: odds of {odds:.1f} to 1 ({between}), all else being equal ({pairs})"


def _share(share: Share) -> str:
    low, high = share.interval
    return f"{share.count} of {share.of} ({share.value:.0%}, {low:.0%} to {high:.0%})"


def _percent(share: Share) -> str:
    return f"{share.value:.0%}" if share.of else "no"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
