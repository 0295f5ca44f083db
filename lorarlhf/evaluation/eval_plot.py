"""The picture of `eval`: win rate with its interval over the KL from the base, as inline SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorarlhf.evaluation.report_plots import draw_svg

Row = Mapping[str, Any]
POLICY, SPARE = "#1d5fa6", "#b3480a"
WIDTH, HEIGHT = 4.6, 3.0  # inches
FONT = 8.5
LETTER, LINE = 0.55 * FONT, FONT  # width and height of a label's letters, about
ASIDE, MARK = 6.0, 4.0
"""From a point to its label, and half the width of its marker and interval; in points of type."""
HEIGHTS = (5.0, -12.0, 17.0, -24.0, 29.0, -36.0)
"""How far above a point its label begins: the first that is free."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Point:
    """A candidate: KL in nats per answer, win rate and its interval from 0 to 1.

    `bound`: the KL is the largest possible one.
    """

    name: str
    kl: float
    rate: float
    low: float
    high: float
    bound: bool


def points(judge: Row, candidates: Sequence[Row]) -> list[Point]:
    """The candidates with a verdict and with a known or bounded KL."""
    by_name = {one["name"]: one for one in candidates}
    found = []
    for result in judge["results"]:
        one = by_name.get(result["candidate"])
        kl = None if one is None else one["kl"] if one["kl"] is not None else one["kl_bound"]
        if one is not None and kl is not None:
            low, high = result["ci95"]
            bound = one["kl"] is None
            found.append(Point(one["name"], float(kl), result["rate"], low, high, bound))
    return found


def win_rate_over_kl(
    name: str,
    judge: Row,
    candidates: Sequence[Row],
    size: tuple[float, float] = (WIDTH, HEIGHT),
) -> str:
    """One judge's picture with ids that start with `name`; "" if there is nothing to draw.

    Args:
        size: width and height in inches.
    """
    shown = points(judge, candidates)
    if not shown:
        return ""

    def draw(figure: Any) -> str:
        figure.subplots_adjust(0.14, 0.16, 0.97, 0.96)
        _draw(figure.subplots(), shown)
        return _label(judge, shown)

    return draw_svg(name, size, draw)


def _draw(axes: Any, shown: Sequence[Point]) -> None:
    axes.axhline(0.5, color="#57606a", linestyle=":", linewidth=1)
    axes.plot([0], [0.5], "s", color="#57606a", markersize=5)
    axes.annotate("base", (0, 0.5), xytext=(5, -11), textcoords="offset points", fontsize=FONT)
    for point in shown:
        color = SPARE if point.bound else POLICY
        spread = [[point.rate - point.low], [point.high - point.rate]]
        spread = [[max(0.0, x) for x in side] for side in spread]
        face = "white" if point.bound else color
        axes.errorbar(
            [point.kl], [point.rate], yerr=spread, fmt="o", color=color, markerfacecolor=face,
            capsize=3, linewidth=1.2, markersize=6,
        )  # fmt: skip
    axes.set_xlim(*x_limits(shown))
    axes.set_ylim(-0.02, 1.02)
    _write_names(axes, shown)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    axes.set_xlabel("KL from the base, nats per answer")
    axes.set_ylabel("win rate")


def _write_names(axes: Any, shown: Sequence[Point]) -> None:
    scale = 72 / axes.figure.dpi

    def place(kl: float, rate: float) -> tuple[float, float]:
        x, y = axes.transData.transform((kl, rate))
        return x * scale, y * scale

    at = [place(point.kl, point.rate) for point in shown]
    ends = [(place(0, point.low)[1], place(0, point.high)[1]) for point in shown]
    offsets = label_offsets([point.name for point in shown], at, ends)
    for point, (aside, above) in zip(shown, offsets, strict=True):
        axes.annotate(
            point.name.replace("$", r"\$"),  # no formulas
            (point.kl, point.rate),
            xytext=(aside, above),
            textcoords="offset points",
            ha="left" if aside > 0 else "right",
            fontsize=FONT,
        )


def label_offsets(
    names: Sequence[str], at: Sequence[tuple[float, float]], ends: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Where labels stand beside their points, so that none covers a label, a point or an interval.

    Args:
        at: the points, and `ends` of their intervals from below to above, in points of type.

    Returns:
        an offset for each: to the right of its point, or to the left (below 0), and above it.
        Where no place is free it is the first one.
    """
    taken: list[Box] = [
        (x - MARK, min(low, y - MARK), x + MARK, max(high, y + MARK))
        for (x, y), (low, high) in zip(at, ends, strict=True)
    ]
    found = []
    for name, (x, y) in zip(names, at, strict=True):
        width = LETTER * len(name)
        places = [(side, above) for above in HEIGHTS for side in (ASIDE, -ASIDE)]
        boxes = {place: _box(x, y, width, *place) for place in places}
        free = (place for place in places if not any(_meet(boxes[place], box) for box in taken))
        found.append(next(free, places[0]))
        taken.append(boxes[found[-1]])
    return found


def _box(x: float, y: float, width: float, aside: float, above: float) -> Box:
    left = x + aside if aside > 0 else x + aside - width
    return left, y + above, left + width, y + above + LINE


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def x_limits(shown: Sequence[Point]) -> tuple[float, float]:
    """The ends of the KL axis: with the base at 0, also if all estimates are negative."""
    places = [0.0, *(point.kl for point in shown)]
    return min(places) - 0.03 * max(*places, 0.1), 1.3 * max(places) + 0.1


def _label(judge: Row, shown: Sequence[Point]) -> str:
    parts = [
        f"{one.name} {one.rate:.0%} ({one.low:.0%} to {one.high:.0%}), "
        f"{'at most ' if one.bound else ''}{one.kl:.2g} nats from the base"
        for one in shown
    ]
    return f"Win rate over KL by {judge['judge']}: {'; '.join(parts)}"
