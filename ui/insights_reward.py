"""Two sections of the Insights page as safe HTML: would more votes help, and is the fit good?

Texts of models and raters are never trusted; see `insights_html.py`.
"""

import html
import math
from collections.abc import Sequence

from lorarlhf.evaluation.calibration import Bin
from lorarlhf.evaluation.rater_report import Share
from lorarlhf.evaluation.reward_report import FEWEST_SHORTER, Rate, RewardReport, most_reachable
from lorarlhf.evaluation.reward_words import FEW, verdict
from lorarlhf.rewards.learning_curve import Forecast, advice, headline
from lorarlhf_ui.insights_html import finding, pair_html
from lorarlhf_ui.markdown import excerpt
from lorarlhf_ui.taste_fit import Example

MISTAKES = 5
"""Votes that went against a sure prediction and are shown."""
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 340, 170, 44, 26, 10
LOWEST, HIGHEST = 0.4, 1.0  # of the shares in the picture


def forecast_html(found: Forecast | None) -> str:
    """Whether more votes are worth it: a sentence, a picture and a table."""
    first = headline(found)
    rest = advice(found).removeprefix(first).strip()
    out = f'<p class="summary">{html.escape(first)}</p><p class="faint">{html.escape(rest)}</p>'
    if found is None:
        return out
    rows = [
        (f"{point.votes:,}", f"{point.accuracy:.0%}", f"{point.low:.0%} to {point.high:.0%}")
        for point in (*found.points, found.doubled)
    ]
    numbers = _table(("Votes", "Predicted right", "95% range"), rows)
    return (
        f'{out}<div class="curve">{picture(found)}</div>'
        f"<details><summary>The numbers as a table</summary>{numbers}<p>The last row is a "
        "forecast. The others are fits to that many votes, which predict votes on other prompts."
        "</p></details>"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of numbers."""
    top = "".join(f'<th scope="col">{head}</th>' for head in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def picture(found: Forecast) -> str:
    """The learning curve with its intervals as inline SVG; the forecast is hollow."""
    points = [*found.points, found.doubled]
    low, high = math.log(points[0].votes), math.log(points[-1].votes)

    def x(votes: int) -> float:
        return LEFT + 12 + (WIDTH - LEFT - 34) * (math.log(votes) - low) / max(high - low, 1e-9)

    def y(share: float) -> float:
        part = (min(max(share, LOWEST), HIGHEST) - LOWEST) / (HIGHEST - LOWEST)
        return HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP)

    marks = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 6}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
        for share in (0.5, 0.75, 1.0)
    ]
    for point in points:
        at, kind = x(point.votes), "later" if point is found.doubled else "now"
        marks.append(
            f'<g class="{kind}"><line x1="{at:.1f}" x2="{at:.1f}" y1="{y(point.low):.1f}" '
            f'y2="{y(point.high):.1f}"/><circle cx="{at:.1f}" cy="{y(point.accuracy):.1f}" r="4"/>'
            f'<text x="{at:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{point.votes:,}</text></g>'
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Votes predicted right by '
        f'number of votes; the table has the numbers">{"".join(marks)}</svg>'
    )


# ---- the report on the reward model


def reward_html(found: RewardReport, texts: Sequence[Example]) -> str:
    """How well votes are predicted by a fit to the votes on other prompts.

    Args:
        texts: of each vote of the fit.
    """
    again, length = found.same_again, found.length
    items = [_rate("predicted right", found.accuracy)]
    if length is not None:
        items.append(_rate("the longer answer was preferred", length.longer))
        if length.shorter_chosen.of:
            what = "predicted right where the shorter was preferred"
            items.append(_rate(what, length.shorter_chosen, FEWEST_SHORTER))
    if again is not None:
        items.append(_again(again))
    shown = [
        f'<details class="disagreement"><summary>{mistake.confidence:.0%} sure, and wrong: '
        f"{html.escape(excerpt(texts[mistake.place].prompt))}</summary>"
        f"{pair_html(texts[mistake.place])}</details>"
        for mistake in found.mistakes[:MISTAKES]
    ]
    mistakes = f"<h3>Where it is surest and wrong</h3>{''.join(shown)}" if shown else ""
    return (
        f'<p class="summary">{html.escape(verdict(found).text)}</p><p class="faint">Each of '
        f"{found.accuracy.of:,} votes is predicted by a fit to the votes on other prompts; "
        "the number says how many of 100 are predicted right. A coin gets 50; the bars are ranges "
        "of 95%.</p>"
        f'<ul class="tastes">{"".join(f"<li>{item}</li>" for item in items)}</ul>'
        f"{_calibration(found.calibration.curve, found.calibration.error)}{mistakes}"
    )


def _rate(what: str, rate: Rate, fewest: int = 0) -> str:
    """A share; below `fewest` votes it is told that they decide nothing."""
    low, high = rate.interval
    votes = f"{rate.of:,} vote{'s' * (rate.of != 1)}"
    few = ", too few to judge" if rate.of < fewest else ""
    return finding(html.escape(what), rate.value, low, high, f"{votes}{few}")


def _again(again: Share) -> str:
    """How often raters prefer the same answer again, and what that lets a model reach."""
    what = "the same answer was preferred when asked again"
    if again.of >= FEW:
        most, low, high = (100 * most_reachable(value) for value in (again.value, *again.interval))
        what += f", so a model can predict {most:.0f} ({low:.0f} to {high:.0f}) at most"
    return _rate(what, Rate(again.value, again.of), FEW)


def _calibration(curve: Sequence[Bin], error: float) -> str:
    rows = []
    for part in curve:
        low, high = part.interval
        sure, right = f"{part.low:.0%} to {part.high:.0%}", f"{part.observed:.0%}"
        rows.append((sure, right, f"{low:.0%} to {high:.0%}", f"{part.count:,}"))
    numbers = _table(("How sure", "Right", "95% range", "Votes"), rows)
    return (
        f"<details><summary>How sure it is, and how often it is right then</summary>{numbers}<p>"
        f"The two differ by {error:.0%} on average (expected calibration error).</p></details>"
    )
