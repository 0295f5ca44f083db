"""Draws the pictures of docs/health.md from real PPO runs on a tiny model that cause each alarm.

    .venv/bin/python benchmarks/health_pictures.py            # all of them, two minutes
    .venv/bin/python benchmarks/health_pictures.py kl_runaway

Writes docs/images/health/NAME.svg: the metric by update, with a line where the alarm started.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from lorarlhf.ppo.health import diagnose

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "images" / "health"


def first_alarm(rows: list[dict[str, Any]], name: str) -> int | None:
    """The update after which the alarm started, or None."""
    for count in range(1, len(rows) + 1):
        if any(finding.alarm.name == name for finding in diagnose(rows[:count])):
            return rows[count - 1]["step"]
    return None


def draw(name: str, figure: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Write one small plot as SVG."""
    found = [(row["step"], row[figure]) for row in rows if figure in row]
    plot = Figure(figsize=(4.2, 2.0), layout="constrained")
    axes = plot.subplots()
    axes.plot(*zip(*found, strict=True), color="#3b6ea5", linewidth=1.8)
    axes.axvline(first_alarm(rows, name), color="#b3261e", linestyle=":", linewidth=1.4)
    axes.set_xlabel("update", fontsize=8)
    axes.set_ylabel(figure, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    with path.open("w", encoding="utf-8") as stream:
        FigureCanvasSVG(plot).print_svg(stream, metadata={"Date": None})


def main() -> None:
    """Draw the named alarms, or all of them."""
    sys.path.insert(0, str(ROOT))
    import matplotlib

    from tests.provocations import PROVOCATIONS, provoke
    from tests.tiny import write_base

    matplotlib.rcParams["svg.hashsalt"] = "lorarlhf"  # makes the output reproducible
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
        draw(name, PROVOCATIONS[name].figure, rows, OUT / f"{name}.svg")
        print(f"{name}: update {first_alarm(rows, name)}", flush=True)


if __name__ == "__main__":
    main()
