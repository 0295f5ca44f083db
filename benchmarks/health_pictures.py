"""Draw the pictures of docs/health.md: each alarm in a real run of PPO on a tiny model.

    .venv/bin/python benchmarks/health_pictures.py            # all, two minutes
    .venv/bin/python benchmarks/health_pictures.py kl_runaway

Writes docs/images/health/NAME.svg: the figure by update, and where the alarm starts.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.ticker import MaxNLocator

from lorarlhf.ppo.health import diagnose

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "images" / "health"
LEFT, RIGHT, TOP, BOTTOM = 50, 390, 20, 150  # of the axes
HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 400 185" width="400" height="185">
<style>
text { font: 11px sans-serif; fill: #333; text-anchor: middle }
.end { text-anchor: end } .start { text-anchor: start }
polyline { fill: none; stroke: #3b6ea5; stroke-width: 2 }
.axis { fill: none; stroke: #333 }
.alarm { stroke: #b3261e; stroke-width: 1.5; stroke-dasharray: 2 3 }
</style>
<rect width="400" height="185" fill="#fff"/>"""


def first_alarm(rows: list[dict[str, Any]], name: str) -> int | None:
    """The update after which the alarm starts; None if it does not."""
    for count in range(1, len(rows) + 1):
        if any(finding.alarm.name == name for finding in diagnose(rows[:count])):
            return rows[count - 1]["step"]
    return None


def draw(name: str, figure: str, rows: list[dict[str, Any]]) -> str:
    """One small plot as SVG: the figure by update, and a dotted line where the alarm starts."""
    found = [(row["step"], row[figure]) for row in rows if figure in row]
    points = [(x, y) for x, y in found if math.isfinite(y)]
    steps, values = [x for x, _ in found], [y for _, y in points]
    low, high = min(values), max(values)
    if high - low < 1e-6 * abs(high):  # a constant, up to rounding
        low, high = low - 0.1, high + 0.1
    room = 0.05 * (high - low or 1)
    x_of = scale(min(steps), max(steps), LEFT, RIGHT)
    y_of = scale(low - room, high + room, BOTTOM, TOP)
    lines = [f'<path d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}" class="axis"/>']
    for step in ticks(min(steps), max(steps), whole=True):
        lines.append(f'<text x="{x_of(step)}" y="{BOTTOM + 13}">{step:g}</text>')
    for value in ticks(low, high):
        lines.append(f'<text x="{LEFT - 5}" y="{y_of(value)}" dy="3" class="end">{value:g}</text>')
    line = " ".join(f"{x_of(x)},{y_of(y)}" for x, y in points)
    lines.append(f'<polyline points="{line}"/>')
    start = first_alarm(rows, name)
    if start is not None:
        lines.append(f'<path d="M{x_of(start)} {TOP}V{BOTTOM}" class="alarm"/>')
    middle = (LEFT + RIGHT) / 2
    lines.append(f'<text x="{middle}" y="{BOTTOM + 28}">update</text>')
    lines.append(f'<text x="{LEFT}" y="11" class="start">{figure}</text>')
    return "\n".join([HEAD, *lines, "</svg>", ""])


def scale(low: float, high: float, first: float, last: float) -> Callable[[float], str]:
    """A linear map from `low` ... `high` to coordinates `first` ... `last`, with two decimals."""
    return lambda x: f"{first + (x - low) / (high - low or 1) * (last - first):.2f}"


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`."""
    found = MaxNLocator(nbins=5, integer=whole).tick_values(low, high)
    return [float(tick) for tick in found if low <= tick <= high]


def main() -> None:
    """Provoke the named alarms, or all, and draw them."""
    sys.path.insert(0, str(ROOT))
    from tests.provocations import PROVOCATIONS, provoke
    from tests.tiny import write_base

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("alarms", nargs="*", default=list(PROVOCATIONS))
    OUT.mkdir(parents=True, exist_ok=True)
    for name in parser.parse_args().alarms:
        with TemporaryDirectory() as folder:
            base = write_base(Path(folder) / "base")
            for seed in range(4):
                case = PROVOCATIONS[name]
                case = replace(case, settings=case.settings | {"seed": seed})
                rows = provoke(case, base, Path(folder) / str(seed))
                if first_alarm(rows, name) is not None:
                    break
        picture = draw(name, PROVOCATIONS[name].figure, rows)
        (OUT / f"{name}.svg").write_text(picture, encoding="utf-8")
        print(f"{name}: update {first_alarm(rows, name)}", flush=True)


if __name__ == "__main__":
    main()
