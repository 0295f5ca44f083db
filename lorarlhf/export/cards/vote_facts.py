"""What a project's votes are, in counts: raters by number and kind, verdicts, agreement.

Nothing here has a rater's name, unless it is asked for.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lorarlhf.evaluation.agreement import Agreement, agreement_of
from lorarlhf.evaluation.rater_report import Share, rater_report
from lorarlhf.export.cards.markdown import many
from lorarlhf.preferences.records import Vote
from lorarlhf.preferences.statistics import FEWEST_OVERLAPS


@dataclass(frozen=True)
class VoteFacts:
    """Counts of votes.

    Attributes:
        votes: all of them; on_pages: those cast on the rating pages, and not imported or
            sent by another program; singles: those on one answer alone.
        prompts: different ones.
        verdicts: votes by verdict.
        raters: the number of votes of each rater by name, the most first.
        page_raters: how many of them voted on the pages.
        strengths, notes, edited: votes that say how much better, have a note, have an answer that
            the rater wrote.
        agreement: between raters; again: of pairs that were asked again, those with the same
            verdict; left: of preferences on the pages, those for the left answer.
    """

    votes: int
    on_pages: int
    prompts: int
    verdicts: Counter[str]
    raters: dict[str, int]
    page_raters: int
    strengths: int
    notes: int
    edited: int
    agreement: Agreement
    again: Share
    left: Share
    singles: int


def vote_facts(votes: Sequence[Vote]) -> VoteFacts:
    """The counts of these votes."""
    report = rater_report(votes, None)
    pages = [vote for vote in votes if not vote.imported]
    return VoteFacts(
        len(votes),
        len(pages),
        len({str(vote.prompt) for vote in votes}),
        Counter(vote.verdict.verdict for vote in votes),
        dict(Counter(vote.rater for vote in votes).most_common()),
        len({vote.rater for vote in pages}),
        sum(vote.verdict.strength is not None for vote in votes),
        sum(bool((vote.verdict.note or "").strip()) for vote in votes),
        sum(bool((vote.verdict.edited or "").strip()) for vote in votes),
        agreement_of(votes),
        report.same_again,
        report.left,
        sum(len(vote.completions) == 1 for vote in votes),
    )


def raters_in_words(facts: VoteFacts) -> str:
    """How many raters of which kind, and how the votes are spread over them; without names."""
    imported = facts.votes - facts.on_pages
    pages = f"{many(facts.page_raters, 'rater')} on the rating pages" if facts.page_raters else ""
    files = f"{many(imported, 'vote')} from files and other programs" if imported else ""
    words = " and ".join(filter(None, (pages, files)))
    if len(facts.raters) > 1:
        counts = ", ".join(f"{count:,}" for count in facts.raters.values())
        words += f"; votes of each: {counts}"
    return words


def agreement_in_words(facts: VoteFacts) -> list[str]:
    """How far raters agree with one another and with themselves, as sentences."""
    found, lines = facts.agreement, list[str]()
    if len(facts.raters) < 2:
        lines.append("Agreement between raters is not known: one rater voted.")
    elif found.raw is None:
        lines.append(
            f"Agreement between raters is not known: {many(found.items, 'pair')} of answers "
            f"{'was' if found.items == 1 else 'were'} rated by two or more of them, and "
            f"{FEWEST_OVERLAPS} are needed to measure it."
        )
    else:
        words = f"On {many(found.items, 'pair')} that two or more raters judged, {found.raw:.0%}"
        lines.append(f"{words} of the verdicts are the same{_alpha(found)}.")
    if facts.again.of:
        lines.append(f"Asked again, the same verdict was given in {_share(facts.again)}.")
    if facts.left.of:
        lines.append(f"The answer on the left was preferred in {_share(facts.left)}.")
    return lines


def _alpha(found: Agreement) -> str:
    if found.alpha is None or math.isnan(found.alpha):
        return ""
    ends = f"{found.low:.2f} to {found.high:.2f}"
    return f"; Krippendorff's alpha is {found.alpha:.2f} ({ends}; 0 is chance, 1 full agreement)"


def _share(share: Share) -> str:
    low, high = share.interval
    rate = f"{share.value:.0%}, {100 * low:.0f} to {high:.0%}"
    return f"{share.count:,} of {share.of:,} ({rate})"
