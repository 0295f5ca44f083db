"""The curves of a run that is not over yet, as inline SVG.

What they show and how to read it is the report's (`evaluation/report_plots.py`). The report draws
with matplotlib, which takes too long for a page that changes every second.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lorarlhf.evaluation.report_plots import PLOTS, Panel, Plot, series_of, thin

Row = Mapping[str, Any]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 130, 52, 8, 8, 22
MOST_POINTS = 150
Points = list[tuple[float, float]]


def curves(rows: Iterable[Row], stage: str) -> str:
    """The figures of all rows; empty if there is nothing to draw.

    Args:
        stage: of rows that name none.
    """
    stages: dict[str, list[Row]] = {}
    for row in rows:
        stages.setdefault(str(row.get("stage") or stage), []).append(row)
    own = {plot.stage for plot in PLOTS.values() if plot.stage}
    drawn = []
    for plot in PLOTS.values():
        names = [plot.stage] if plot.stage else sorted(set(stages) - own)
        drawn += [figure(plot, stages.get(name, [])) for name in names]
    return "".join(drawn)


def figure(plot: Plot, rows: Sequence[Row]) -> str:
    """A plot with its heading and how to read it; empty if no row has any of its figures."""
    panels = [svg(panel, rows, plot) for panel in plot.panels]
    shown = "".join(panel for panel in panels if panel)
    if not shown:
        return ""
    return (
        f"<figure><h3>{html.escape(plot.title)}</h3>{shown}"
        f"<figcaption>{html.escape(plot.caption)}</figcaption></figure>"
    )


def points(rows: Sequence[Row], key: str, along: str = "step") -> Points:
    """(step, value) in the order of the steps; long ones are averaged over neighbours."""
    series = series_of(rows, key, along)
    values = (thin(part, MOST_POINTS) for part in (series, series.values()))
    return list(zip(*values, strict=True))


def svg(panel: Panel, rows: Sequence[Row], plot: Plot) -> str:
    """The lines of a panel; empty if no row has any of its figures."""
    lines = [(name, points(rows, key, plot.x)) for key, name in panel.lines]
    lines = [(name, line) for name, line in lines if line]
    if not lines:
        return ""
    xs = [x for _, line in lines for x, _ in line]
    ys = [y for _, line in lines for _, y in line]
    if panel.guide is not None:
        ys.append(panel.guide)
    low, high = (0.0, 1.0) if panel.percent else _around(min(ys), max(ys))
    if panel.floor is not None:
        low = max(low, panel.floor)
    span = max(xs) - min(xs) or 1.0

    def at(x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - RIGHT) * (x - min(xs)) / span
        part = (min(max(y, low), high) - low) / (high - low)
        return f"{across:.1f},{HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP):.1f}"

    marks = [_scale(low, high, panel.percent), _steps(min(xs), max(xs), plot.xlabel)]
    if panel.guide is not None:
        ends = f"{at(min(xs), panel.guide)} {at(min(xs) + span, panel.guide)}"
        marks.append(f'<polyline class="guide" points="{ends}"/>')
    for kind, (_, line) in zip(("one", "two"), lines, strict=False):
        marks.append(f'<polyline class="{kind}" points="{" ".join(at(*p) for p in line)}"/>')
        x, y = at(*line[-1]).split(",")
        marks.append(f'<circle class="{kind}" cx="{x}" cy="{y}" r="3"/>')
    said = "; ".join(_in_words(panel, name, line) for name, line in lines)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(said)}">'
        f"{''.join(marks)}</svg>{_legend(panel, lines)}"
    )


def _around(low: float, high: float) -> tuple[float, float]:
    """A range with some room around its ends."""
    room = 0.08 * (high - low) or max(0.05 * abs(high), 0.5)
    return low - room, high + room


def _scale(low: float, high: float, percent: bool) -> str:
    marks = []
    for part in (0.0, 0.5, 1.0):
        y = HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP)
        shown = _figure(low + part * (high - low), percent)
        marks.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>'
        )
    return "".join(marks)


def _steps(first: float, last: float, label: str) -> str:
    name = f"{html.escape(label)} {last:.0f}"
    start = f'<text x="{LEFT}" y="{HEIGHT - 6}">{first:.0f}</text>' if last > first else ""
    end = f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{name}</text>'
    return start + end


def _figure(value: float, percent: bool) -> str:
    return f"{100 * value:.0f}%" if percent else f"{value:.3g}"


def _in_words(panel: Panel, name: str, line: Points) -> str:
    first, last = (_figure(y, panel.percent) for y in (line[0][1], line[-1][1]))
    return f"{name or panel.ylabel} from {first} to {last}"


def _legend(panel: Panel, lines: Sequence[tuple[str, Points]]) -> str:
    parts = [
        f'<span class="{kind}">{html.escape(name or panel.ylabel)}: '
        f"{_figure(line[-1][1], panel.percent)}</span>"
        for kind, (name, line) in zip(("one", "two"), lines, strict=False)
    ]
    return f'<p class="legend">{"".join(parts)}</p>'
