"""A command's result, and its table for the terminal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """A command's result: `data` for --json, `text` for people, and the exit status."""

    data: Any
    text: str = ""
    status: int = 0


def table(rows: Sequence[tuple[str, Any]]) -> str:
    """Names and values, one a line."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:{width}}  {_figure(value)}" for name, value in rows)


def excerpt(text: str, length: int) -> str:
    """The text on one line, cut to so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."


def _figure(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "not enough to tell"
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)
