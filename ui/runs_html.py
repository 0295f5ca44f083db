"""The parts of the Runs page as safe HTML: the table, the tree, one run's details, the curves.

Titles, paths and figures come from files, so every text is escaped.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from lorarlhf.evaluation.run_wins import Wins
from lorarlhf.project.run_deletion import in_one_line
from lorarlhf.project.run_list import NOT_STARTED, RunInfo, Source, kind_of
from lorarlhf.project.run_words import duration, results_in_words, size, source_in_words
from lorarlhf_ui.runs_curves import MOST_RUNS, Curves, Series

NO_RUNS = "There are no runs yet. Rate some answers, then train a reward model on the Train page."
HEADS = ("Show", "Run", "Open", "State", "Result", "Started from", "Started", "Took", "Size")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 280, 64, 12, 10, 40
TABLE_ROWS = 12
MARKED = 40
"""Up to so many points of a curve get a mark."""


@dataclass(frozen=True)
class Shown:
    """A run with what the table shows beside it."""

    run: RunInfo
    wins: Wins | None
    bytes: int


# ---- the table


def table_html(runs: Sequence[Shown]) -> str:
    """A row for each run, the newest first."""
    if not runs:
        return f"<p>{NO_RUNS}</p>"
    heads = "".join(f'<th scope="col">{head}</th>' for head in HEADS)
    return (
        f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(map(_row, runs))}</tbody></table>"
    )


def _row(shown: Shown) -> str:
    run, name, label = shown.run, html.escape(shown.run.name), html.escape(shown.run.label)
    won = [] if shown.wins is None else [shown.wins.in_words()]
    state = html.escape(run.state)
    dropped = ' <span class="badge">dropped</span>' if run.dropped else ""
    cells = (
        f'<input type="checkbox" data-do="tick" data-run="{name}" '
        f'aria-label="Show the curves of {label}">',
        f'<button type="button" class="name" data-do="open" data-run="{name}" '
        f'aria-expanded="false"><bdi>{label}</bdi></button> <span class="faint">{name}</span>'
        f"{dropped}",
        _links(run),
        f'<span class="state" data-state="{state}">{state}</span>',
        html.escape("; ".join([*won, *results_in_words(run)])),
        _sources(run.sources),
        _day_and_time(run.started),
        duration(run.seconds),
        size(shown.bytes),
    )
    kind = ' class="dropped"' if run.dropped else ""
    return f'<tr{kind} data-row="{name}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _day_and_time(started: str) -> str:
    """Each of both on one line."""
    day, _, time = html.escape(started[:16]).partition("T")
    return f'<span class="whole">{day}</span> <span class="whole">{time}</span>'


def _sources(sources: Sequence[Source]) -> str:
    return "<br>".join(
        f"<bdi{' class=whole' if one.run else ''}>{html.escape(source_in_words(one))}</bdi>"
        for one in sources
    )


def _links(run: RunInfo) -> str:
    """One click to the pages with this run, by relative addresses: a proxy may add a path."""
    label, links = html.escape(run.label), []
    if "policy" in run.roles and not run.dropped:
        query = html.escape(urlencode({"model": run.name}))
        links += [
            f'<a href="{page}?{query}" aria-label="{name} with {label}">{name}</a>'
            for page, name in (("chat", "Chat"), ("compare", "Compare"))
        ]
    if run.state == NOT_STARTED:
        return ""
    query = html.escape(urlencode({"run": run.name}))
    report = f'<a href="files/report?{query}" target="_blank" rel="noopener" aria-label="Report on '
    return " ".join([*links, f'{report}{label}">Report</a>'])


# ---- one run


def details_html(run: RunInfo, needed: Sequence[str]) -> str:
    """What the table has no room for, and the buttons that change the run.

    Args:
        needed: what depends on it, in words.
    """
    algorithm = f"{kind_of(run.stage)}, run {run.number} of the project"
    facts = [
        ("What it is", algorithm),
        ("Folder", str(run.folder)),
        ("Base", run.base),
        ("Adapters", ", ".join(run.roles) or "none"),
        ("Alarms at its end", ", ".join(run.alarms)),
        ("Needed by", in_one_line(needed)),
    ]
    listed = "".join(
        f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in facts if value
    )
    keep = "Keep" if run.dropped else "Drop"
    name = html.escape(run.name)
    does = [("rename", "Rename"), (keep.lower(), keep)]
    does += [("export", "Export")] if "policy" in run.roles else []
    does += [("delete", "Delete")]
    buttons = "".join(
        f'<button type="button" data-do="{do}" data-run="{name}">{text}</button>'
        for do, text in does
    )
    return f'<div class="inside"><dl>{listed}</dl><div class="line">{buttons}</div></div>'


def goes_html(run: RunInfo, count: int, files: Sequence[str]) -> str:
    """What a deletion removes, before somebody agrees to it."""
    parts = [f"the folder <code>{html.escape(str(run.folder))}</code>"]
    if run.roles:
        parts.append(f"its adapters ({html.escape(', '.join(run.roles))})")
    parts.append("its checkpoints, log, samples and report")
    if files:
        parts.append(f"the votes that it was trained on, as a file ({html.escape(files[0])})")
    items = "".join(f"<li>{part}</li>" for part in parts)
    return (
        f"<p>This removes <b><bdi>{html.escape(run.label)}</bdi></b> for good ({size(count)}):</p>"
        f"<ul>{items}</ul><p>The votes in the project stay, with the name {html.escape(run.name)}, "
        "which no later run gets.</p>"
    )


# ---- the tree


def tree_html(tree: Sequence[tuple[int, RunInfo]]) -> str:
    """Nested lists, below each base the runs that started from it.

    Args:
        tree: as `lineage` gives it.
    """
    out, depth, base = list[str](), -1, None
    for level, run in tree:
        if level == 0 and run.base_name != base:
            out.append(_closed(depth))
            base, depth = run.base_name, -1
            out.append(f"<h3><bdi>{html.escape(base or 'an unknown base')}</bdi></h3>")
        out.append("<ul>" if level > depth else f"</li>{'</ul></li>' * (depth - level)}")
        out.append(f"<li>{_leaf(run, level)}")
        depth = level
    return "".join(out) + _closed(depth)


def _closed(depth: int) -> str:
    """The end of all lists that are open at a depth; -1 for none."""
    return "</li></ul>" * (depth + 1)


def _leaf(run: RunInfo, level: int) -> str:
    above = next((source for source in run.sources if source.run), None) if level else None
    rest = [source_in_words(one) for one in run.sources if one is not above]
    if above is not None and above.option == "reward":
        rest.insert(0, "trained against the reward role above")
    others = f' <span class="faint">({html.escape("; ".join(rest))})</span>' if rest else ""
    dropped = ' <span class="badge">dropped</span>' if run.dropped else ""
    name = f' <span class="faint">{html.escape(run.name)}</span>'
    return f"<bdi>{html.escape(run.label)}</bdi>{name}{dropped}{others}"


# ---- curves


def curves_html(found: Curves, runs: Sequence[RunInfo]) -> str:
    """The picture, its legend, and the numbers as a table."""
    if not runs:
        return f"<p>Tick up to {MOST_RUNS} runs in the table to see their curves.</p>"
    if not found.metric:
        return "<p>These runs have logged no figures yet.</p>"
    entries = []
    for place, (run, series) in enumerate(zip(runs, found.series, strict=True)):
        line = (
            f'<svg viewBox="0 0 40 10" aria-hidden="true">{_line([(2, 5), (38, 5)], place)}</svg>'
        )
        last = f"at last {_figure(list(series.values())[-1])}" if series else "does not have it"
        label = f"<bdi>{html.escape(run.label)}</bdi>"
        about = f'<span class="faint">{html.escape(run.name)}: {last}</span>'
        entries.append(f"<li>{line} {label} {about}</li>")
    return (
        f'<ul class="legend">{"".join(entries)}</ul><div class="curve">'
        f"{picture(found, [run.label for run in runs])}</div>"
        f"<details><summary>The numbers as a table</summary>{_numbers(found, runs)}</details>"
    )


def picture(found: Curves, labels: Sequence[str]) -> str:
    """The curves as inline SVG. Each has a colour, a kind of line and a kind of mark."""
    points = [point for series in found.series for point in series.items()]
    across = ticks(min(x for x, _ in points), max(x for x, _ in points))
    up = ticks(min(y for _, y in points), max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * (x - across[0]) / (across[-1] - across[0]),
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - up[0]) / (up[-1] - up[0]),
        )

    out = []
    for y in up:
        at = place(across[0], y)[1]
        out.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_figure(y)}</text>'
        )
    for x in across:
        at = place(x, up[0])[0]
        text = f'<text x="{at:.1f}" y="{HEIGHT - 22}" text-anchor="middle">{_figure(x)}</text>'
        out.append(text)
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{found.along}</text>')
    for number, series in enumerate(found.series):
        out.append(_line([place(x, y) for x, y in series.items()], number))
    said = "; ".join(
        f"{label} from {_figure(values[0])} to {_figure(values[-1])}"
        for label, series in zip(labels, found.series, strict=True)
        if (values := list(series.values()))
    )
    words = html.escape(f"{found.metrics[found.metric]} by {found.along}: {said}")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">{"".join(out)}</svg>'
    )


def _line(points: Sequence[tuple[float, float]], number: int) -> str:
    """A curve in the look of the run at this place of the legend."""
    if not points:
        return ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    marked = points if len(points) <= MARKED else [points[0], points[-1]]
    marks = "".join(_mark(x, y, number) for x, y in marked)
    return f'<g class="run{number % MOST_RUNS}"><polyline points="{path}"/>{marks}</g>'


def _mark(x: float, y: float, number: int) -> str:
    """A circle, a square or a diamond."""
    if number % 3 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if number % 3 == 2 else ""
    return f'<rect x="{x - 2.7:.1f}" y="{y - 2.7:.1f}" width="5.4" height="5.4"{turn}/>'


def _numbers(found: Curves, runs: Sequence[RunInfo]) -> str:
    """The values at up to `TABLE_ROWS` steps: of each run the last one until then."""
    steps = sorted({step for series in found.series for step in series})
    picked = steps
    if len(steps) > TABLE_ROWS:
        spots = (round(n * (len(steps) - 1) / (TABLE_ROWS - 1)) for n in range(TABLE_ROWS))
        picked = [steps[spot] for spot in spots]
    heads = "".join(f'<th scope="col"><bdi>{html.escape(run.label)}</bdi></th>' for run in runs)
    rows = "".join(
        f'<tr><th scope="row">{_figure(step)}</th>'
        f"{''.join(f'<td>{_value_at(series, step)}</td>' for series in found.series)}</tr>"
        for step in picked
    )
    caption = html.escape(found.metrics[found.metric])
    return (
        f'<div class="scroll"><table><caption>{caption}</caption><thead><tr><th scope="col">'
        f"{found.along}</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _value_at(series: Series, step: float) -> str:
    before = [value for at, value in series.items() if at <= step]
    over = not series or step > max(series)
    return "" if over or not before else _figure(before[-1])


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that span a range, in about so many steps of 1, 2 or 5 times a power of 10."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a flat curve
        spread = abs(low) * 0.1 or 1.0
        low, high = low - spread, low + spread
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * size for size in (1, 2, 5, 10) if power * size >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def _figure(value: float) -> str:
    """A number in a few signs."""
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e6 else f"{value:.4g}"
