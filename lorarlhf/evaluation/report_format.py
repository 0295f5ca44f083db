"""Formatting for the report: numbers, escaped texts, tables."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

Row = Mapping[str, Any]
MAX_CHARACTERS = 4000  # of a sample text


def part(summary: Row, name: str) -> Row:
    """The mapping under a name; an empty one if there is none."""
    found = summary.get(name)
    return found if isinstance(found, Mapping) else {}


def of_stage(summary: Row, name: str) -> Row:
    """The figures of a stage: a part of the demo's summary, the top level of a single run's."""
    return part(summary, name) or summary


def number(value: Any) -> float | None:
    """A finite number, or None for any other JSON value."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e300 else None  # false for NaN too


def show(value: Any, unit: str = "", digits: int = 2) -> str:
    """A figure for a table: a dash for a missing one, counts without decimals."""
    if number(value) is None:
        return "–"
    return f"{value:,.{0 if isinstance(value, int) else digits}f} {unit}".rstrip()


def share(value: Any) -> str:
    """`83%` from 0.83; a dash for a missing figure."""
    finite = number(value)
    return "–" if finite is None else f"{100 * finite:.0f}%"


def interval(ci95: Any) -> str:
    """`71–84%` from [0.71, 0.84]; empty for anything else than two numbers."""
    if not isinstance(ci95, Sequence) or len(ci95) != 2 or None in map(number, ci95):
        return ""
    return f"{100 * ci95[0]:.0f}–{100 * ci95[1]:.0f}%"


def duration(seconds: Any) -> str:
    """`12.7 s`, `5 min 12 s` or `2 h 3 min`; a dash for a missing figure."""
    finite = number(seconds)
    if finite is None or finite < 59.95:
        return show(finite, "s", 1)
    minutes, rest = divmod(round(finite), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def text(value: Any) -> str:
    """A JSON value as escaped text; a conversation (a list of messages) as one line for each turn.

    See `printable` for what is replaced.
    """
    if isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value):
        value = "\n".join(f"{turn.get('role', '?')}: {turn.get('content', '')}" for turn in value)
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, default=str)
    if len(value) > MAX_CHARACTERS:
        value = value[:MAX_CHARACTERS] + " […]"
    return escape(printable(value))


def printable(value: str) -> str:
    """A text with U+FFFD for control characters and lone surrogates, which UTF-8 can't encode."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", value)


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of plain texts whose first column holds the row headers; empty without rows."""
    body = "\n".join(
        f'<tr><th scope="row">{text(first)}</th>'
        + "".join(f"<td>{text(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    titles = "".join(f'<th scope="col">{text(title)}</th>' for title in head)
    return body and (
        f"<table>\n<caption>{text(caption)}</caption>\n<thead><tr>{titles}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>"
    )
