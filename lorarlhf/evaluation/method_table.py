"""The table of `compare-methods`: one row a method, as Markdown; and its picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from lorarlhf.evaluation.eval_plot import win_rate_over_kl
from lorarlhf.evaluation.eval_results import kl_text, rate_text

Row = dict[str, Any]
GB = 1e3  # megabytes
SIZE = (6.4, 4.4)
"""Inches of the picture: larger than that of `eval`, for the names of up to nine methods."""


def method_rows(methods: Mapping[str, Row], found: Mapping[str, Any]) -> list[Row]:
    """What is known of each method: its training and what `eval` has found.

    Args:
        methods: by name: `candidate` (its name in `found`; None if there is none), `minutes`,
            `peak_mb`, `votes`, `failed`.
        found: the data of `eval`.
    """
    candidates = {one["name"]: one for one in found.get("candidates", [])}
    skills = {one["candidate"]: one for one in found.get("skills", []) if one["kind"] == "all"}
    rows = []
    for name, about in methods.items():
        place = about.get("candidate")
        judges = {
            judge["judge"]: result
            for judge in found.get("judges", [])
            for result in judge["results"]
            if result["candidate"] == place
        }
        row = {"method": name, **about, "judges": judges, "skills": skills.get(place)}
        rows.append(row | {"answers": candidates.get(place)})
    return rows


def as_markdown(rows: Sequence[Row], judges: Sequence[Mapping[str, Any]]) -> str:
    """The table, with two columns for each judge."""
    head = ["method"]
    for judge in judges:
        doubt = "" if judge["independent"] else " (not independent)"
        head += [f"win rate, {judge['judge']}{doubt}", "at equal length"]
    head += ["KL, nats", "tokens", "tasks", "minutes", "peak, GB", "votes used"]
    lines = [_line(head), "|" + "---|" * len(head)]
    return "\n".join([*lines, *(_line(_cells(row, judges)) for row in rows)])


def _cells(row: Row, judges: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [row["method"]]
    for judge in judges:
        result = row["judges"].get(judge["judge"])
        controlled = result and result["length_controlled"]
        cells += [rate_text(result) if result else "-"]
        cells += [rate_text(controlled) if controlled else "-"]
    answers, skills, votes = row["answers"], row["skills"], row.get("votes")
    minutes, peak = row.get("minutes"), row.get("peak_mb")
    return [
        *cells,
        kl_text(answers) if answers else "-",
        f"{answers['length']:.1f}" if answers else "-",
        _change(skills) if skills else "-",
        "-" if minutes is None else f"{minutes:.1f}",
        "-" if peak is None else f"{peak / GB:.1f}",
        f"{votes['used']} of {votes['votes']}" if votes else "-",
    ]


def _change(skills: Row) -> str:
    """The change of the share of done tasks in points, with its interval."""
    change, low, high = (100 * skills[name] for name in ("change", "low", "high"))
    return f"{change:+.0f} ({low:+.0f} to {high:+.0f})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def picture(number: int, judge: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Win rate over KL by one judge as an SVG file, with the methods' names; "" without points."""
    names = {row["candidate"]: row["method"] for row in rows if row.get("candidate")}
    shown = [
        result | {"candidate": names[result["candidate"]]}
        for result in judge["results"]
        if result["candidate"] in names
    ]
    candidates = [row["answers"] | {"name": row["method"]} for row in rows if row["answers"]]
    drawn = {**judge, "results": shown}
    svg = win_rate_over_kl(f"methods{number}", drawn, candidates, size=SIZE)
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
