"""The sections of the Insights page as safe HTML: sentences, numbers and bars with intervals.

Texts of models and raters are never trusted: they are escaped, or drawn by `markdown.render`. A bar
repeats the numbers beside it, so a screen reader leaves it out.
"""

import html
import math
from collections.abc import Sequence

from lorarlhf.evaluation.rater_report import RaterReport
from lorarlhf.evaluation.vote_causes import LEFT, Cause
from lorarlhf.rewards.tastes import Taste
from lorarlhf_ui.markdown import prompt_html, render
from lorarlhf_ui.taste_fit import Example, KnownPairs, left_out

LONGEST_SIDE = 160


def note_html(text: str) -> str:
    """A sentence instead of a section."""
    return f'<p class="faint">{html.escape(text)}</p>'


# ---- tastes


def tastes_html(
    tastes: Sequence[tuple[Taste, Example | None]], known: KnownPairs, no_model: str = ""
) -> str:
    """What the votes prefer along the style axes: the sure ones, and those that are not clear yet.

    Args:
        tastes: the surest first, each with the vote that shows it best.
        known: the votes that they come from, and those that could not be read.
        no_model: why no model will read more; "" if there is one.
    """
    sure = [one for one in tastes if one[0].sure]
    open_ones = [one for one in tastes if not one[0].sure]
    named = "; ".join(f"{taste.preferred} over {taste.other}" for taste, _ in sure)
    summary = (
        f"These votes prefer {named}." if sure else "Nothing is sure yet: more votes will tell."
    )
    out = [
        f'<p class="summary">{html.escape(summary)}</p>',
        f'<p class="faint">From the newest {len(known.pairs):,} votes that prefer an '
        f"answer{left_out(known.too_long)}.{html.escape(_unread(known, no_model))} Of two answers "
        "that differ in one of these styles and in nothing else, the number says how many of 100 "
        "votes go to the preferred one; the bar is the range in which the true number lies with a "
        "chance of 90%. A taste is sure if this range lies above 50.</p>",
        _list(sure),
    ]
    if open_ones:
        out.append(
            f"<details><summary>Not clear yet ({len(open_ones)})</summary>"
            f"{_list(open_ones)}</details>"
        )
    return "".join(out)


def _unread(known: KnownPairs, no_model: str) -> str:
    missing = len(known.missing)
    if not missing:
        return ""
    if no_model:
        return f" No model has read the answers of {missing:,} more. {no_model}"
    return f" The model has yet to read the answers of {missing:,} more."


def _list(tastes: Sequence[tuple[Taste, Example | None]]) -> str:
    items = "".join(f"<li>{taste_html(*one)}</li>" for one in tastes)
    return f'<ul class="tastes">{items}</ul>' if items else ""


def taste_html(taste: Taste, example: Example | None) -> str:
    """One taste: its chance, its interval as a bar, whether it is sure, and a vote as example."""
    what = f"<b>{_side(taste.preferred)}</b> over {_side(taste.other)}"
    shown = ""
    if example is not None:
        summary = "<summary>The two answers that show it best</summary>"
        shown = f"<details>{summary}{pair_html(example)}</details>"
    verdict = "sure" if taste.sure else "not clear yet"
    return finding(what, taste.chance, *taste.interval, verdict, shown)


def _side(text: str) -> str:
    short = text if len(text) <= LONGEST_SIDE else f"{text[: LONGEST_SIDE - 1]}…"
    return f'<span dir="auto">{html.escape(short)}</span>'


def pair_html(example: Example) -> str:
    """A prompt with the preferred answer and the other one."""
    return (
        f'<div class="asked">{prompt_html(example.prompt)}</div><div class="answers">'
        f"{answer_html('Preferred', example.chosen)}"
        f"{answer_html('Not preferred', example.rejected)}</div>"
    )


def answer_html(label: str, text: str) -> str:
    """An answer under a label."""
    label = html.escape(label)
    return f'<article class="answer"><p class="label">{label}</p>{render(text)}</article>'


# ---- bars


def finding(what: str, share: float, low: float, high: float, verdict: str, more: str = "") -> str:
    """A share with its interval (0 to 1) in words and as a bar.

    Args:
        what: HTML that says of what.
        verdict: a few words: whether it is sure, or how many votes it is of.
        more: HTML below the bar.
    """
    kind = "sure" if verdict in ("sure", "stands out") else "open"
    return (
        f'<div class="finding"><p class="what">{what}</p><p class="numbers"><b>{_of_100(share)} of '
        f"100</b> ({_of_100(low)} to {_of_100(high)}) "
        f'<span class="badge {kind}">{verdict}</span></p>{bar(share, low, high)}{more}</div>'
    )


def _of_100(share: float) -> str:
    return f"{100 * share:.0f}"


def bar(value: float, low: float, high: float) -> str:
    """A number from 0 to 1 with its interval, on a line with a mark at one half."""
    low, value, high = (min(1.0, max(0.0, number)) for number in (low, value, high))
    left, width, point = (f"{100 * number:.1f}%" for number in (low, high - low, value))
    return (
        '<div class="bar" aria-hidden="true"><span class="half"></span>'
        f'<span class="range" style="left:{left};width:{width}"></span>'
        f'<span class="point" style="left:{point}"></span></div>'
    )


# ---- causes


def causes_html(together: RaterReport) -> str:
    """What the votes can be explained by without any model: length, form, and the side."""
    if not together.causes:
        return note_html("No two answers differ in length, form or side yet.")
    found = [cause for cause in together.causes if cause.found]
    named = "; ".join(" over ".join(cause_sides(cause)) for cause in found)
    summary = (
        f"These stand out: {named}."
        if found
        else "Nothing stands out: neither length, nor form, nor the side of the screen explains "
        "these votes."
    )
    items = "".join(f"<li>{_cause(cause)}</li>" for cause in together.causes)
    return (
        f'<p class="summary">{html.escape(summary)}</p><p class="faint">A reward model learns such '
        "habits, too, whether you mean them or not. Of two answers that differ in one of these and "
        "in nothing else, the number says how many of 100 votes go to the preferred one; the bar "
        "is the range of 95%. A habit stands out if luck would hardly show one, even among all "
        "that were looked at.</p>"
        f'<ul class="tastes">{items}</ul>'
    )


def cause_sides(cause: Cause) -> tuple[str, str]:
    """What the votes prefer by a cause, and over what."""
    more, less = {
        "longer": ("longer answers", "answers of half the length"),
        LEFT: ("the answer on the left", "the one on the right"),
    }.get(cause.name, (f"answers with {cause.name}", f"answers without {cause.name}"))
    return (more, less) if cause.weight >= 0 else (less, more)


def cause_numbers(cause: Cause) -> tuple[float, float, float]:
    """The share of the votes that go to the preferred side, and its interval, from 0 to 1."""
    sign = 1 if cause.weight >= 0 else -1
    low, high = sorted((sign * cause.low, sign * cause.high))
    return _sigmoid(sign * cause.weight), _sigmoid(low), _sigmoid(high)


def _cause(cause: Cause) -> str:
    chance, low, high = cause_numbers(cause)
    preferred, other = (html.escape(side) for side in cause_sides(cause))
    pairs = f"{cause.pairs:,} pair{'s' * (cause.pairs != 1)}"
    verdict = "stands out" if cause.found else "could be luck"
    what = f'<b>{preferred}</b> over {other} <span class="faint">({pairs})</span>'
    return finding(what, chance, low, high, verdict)


def _sigmoid(number: float) -> float:
    return 0.5 * (1 + math.tanh(number / 2))
