"""Another section of the Insights page as safe HTML: each rater's votes, and how far raters agree.

Names and texts are never trusted; see `insights_html.py`.
"""

import html

from lorarlhf.evaluation.agreement import Agreement, Disagreement
from lorarlhf.evaluation.rater_report import RaterReport, RatersReport, Share
from lorarlhf.preferences.statistics import FEWEST_OVERLAPS
from lorarlhf_ui.insights_html import answer_html, cause_numbers, cause_sides, note_html
from lorarlhf_ui.markdown import excerpt, prompt_html

MOST_RATERS = 10
MOST_DISAGREEMENTS = 10
ALL_OF_THEM = "`lorarlhf report raters --json` has all"


def raters_html(report: RatersReport) -> str:
    """Each rater's votes, all together, how far they agree, and what they should talk about."""
    several = len(report.raters) > 1
    shown, more = report.raters[:MOST_RATERS], report.raters[MOST_RATERS:]
    out = [_rater(one) for one in ([report.together, *shown] if several else shown)]
    if more:
        votes = _count(sum(one.votes for one in more), "vote")
        out.append(note_html(f"{_count(len(more), 'more rater')} with {votes}; {ALL_OF_THEM}."))
    if several:
        out.append(f'<p class="what">{html.escape(agreement(report.agreement))}</p>')
    if report.disagreements:
        pairs = _count(len(report.disagreements), "pair")
        out.append(
            f'<p class="what">Raters prefer different answers in {pairs}. Talk about these:</p>'
        )
        out += [_disagreement(one) for one in report.disagreements[:MOST_DISAGREEMENTS]]
    if hidden := len(report.disagreements) - MOST_DISAGREEMENTS:
        out += [note_html(f"And {hidden:,} more; {ALL_OF_THEM}.")] if hidden > 0 else []
    return "".join(out)


def _rater(one: RaterReport) -> str:
    name = html.escape(f"{one.rater or 'All raters'}: {_count(one.votes, 'vote')}")
    items = "".join(f"<li>{html.escape(line)}</li>" for line in about(one))
    return f'<p class="what">{name}</p><ul>{items}</ul>'


def about(one: RaterReport) -> list[str]:
    """What one rater's votes, or those of all, look like, in sentences."""
    who = "These raters contradict" if one.rater is None else "The rater contradicts"
    lines = [
        f"{share.value:.0%} of the votes are {what}"
        for share, what in ((one.ties, "ties"), (one.skips, "skips"))
        if share.of
    ]
    if one.left.of:
        lines.append(f"The left answer was preferred in {_share(one.left)}")
    for cause in one.causes:
        if cause.found:
            chance, low, high = (f"{100 * number:.0f}" for number in cause_numbers(cause))
            preferred, other = cause_sides(cause)
            lines.append(
                f"Prefers {preferred} over {other}: {chance} of 100 votes ({low} to {high}), all "
                "else being equal"
            )
    if one.same_again.of:
        doubt = f". {who} themselves" if one.contradictory else ""
        lines.append(f"The same verdict when asked again in {_share(one.same_again)}{doubt}")
    if one.circles.of:
        circle = "A over B, B over C, and C over A"
        lines.append(f"Three answers preferred in a circle ({circle}) in {_share(one.circles)}")
    if one.seconds is not None:
        lines.append(_speed(one, one.seconds))
    return lines


def _speed(one: RaterReport, seconds: float) -> str:
    number = f"{seconds:.0f}"
    line = f"{number} second{'s' * (number != '1')} a vote"
    if one.too_fast.count:
        line += f"; {_share(one.too_fast)} were faster than reading"
    return f"{line}. Many votes were cast without reading" if one.hurried else line


def agreement(found: Agreement) -> str:
    """How far raters agree, in a sentence."""
    if found.raw is None:
        return (
            f"Agreement is measured on {FEWEST_OVERLAPS} or more pairs that several raters rated; "
            f"there {'is' if found.items == 1 else 'are'} {found.items or 'none'}."
        )
    same = (
        f"Agreement on {_count(found.items, 'pair')}: {found.raw:.0%} of the verdicts are the same"
    )
    if found.alpha is None:
        return f"{same}. All say the same, so Krippendorff's alpha has no value."
    between = f"{found.low:.2f} to {found.high:.2f}; 0 is chance, 1 is full agreement"
    return f"{same}; Krippendorff's alpha is {found.alpha:.2f} ({between})."


def _disagreement(one: Disagreement) -> str:
    first = one.votes[0]
    answers = []
    for place, text in enumerate(first.completions):
        names = [vote.rater for vote in one.votes if vote.verdict.ranking[0][0] == place]
        answers.append(answer_html(f"Preferred by {', '.join(names) or 'nobody'}", text))
    return (
        f'<details class="disagreement"><summary>{html.escape(excerpt(first.prompt))}</summary>'
        f'<div class="asked">{prompt_html(first.prompt)}</div>'
        f'<div class="answers">{"".join(answers)}</div></details>'
    )


def _share(share: Share) -> str:
    low, high = share.interval
    return f"{share.count:,} of {share.of:,} ({share.value:.0%}, {low:.0%} to {high:.0%})"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
