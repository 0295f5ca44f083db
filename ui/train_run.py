"""What a run's files say while it runs: how far it is, its figures, alarms and samples.

The files grow while they are read. They are read again only when they have changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorarlhf.runtime.files import readable_rows
from lorarlhf.runtime.terminal import BAR

Row = Mapping[str, Any]
LOG_END = 20_000
"""Bytes of a log that are looked at: the last bars and messages."""
SHOWN_LINES = 12
MOST_SAMPLES = 4


@dataclass(frozen=True)
class Progress:
    """The newest progress bar of a command.

    Attributes:
        title: what it counts.
        left: seconds that are left of it; None if that is not known yet.
    """

    title: str
    done: int
    total: int
    left: int | None


@dataclass(frozen=True)
class Sample:
    """The answers to one prompt: the first one of the run, and the newest."""

    prompt: Any
    first: Row
    last: Row


def log_lines(log: Path) -> list[str]:
    """The last lines of a log; of a bar that is drawn over and over each state is a line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_END))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.replace("\r", "\n").split("\n") if line.strip()]


def progress(lines: Sequence[str]) -> Progress | None:
    """The newest progress bar; None if nothing has been counted since the command started."""
    for line in reversed(lines):
        if found := BAR.match(line):
            left = _seconds(found["left"])
            return Progress(found["title"].strip(), int(found["done"]), int(found["total"]), left)
        if line.startswith("$ lorarlhf"):
            return None
    return None


def _seconds(text: str) -> int | None:
    """`1:02:03` or `02:03` in seconds; None for `?`."""
    if "?" in text:
        return None
    seconds = 0
    for part in text.split(":"):
        seconds = 60 * seconds + int(part or 0)
    return seconds


def messages(lines: Sequence[str]) -> list[str]:
    """The last lines that are no bars, as a person would read them in the terminal."""
    return [line for line in lines if not BAR.match(line)][-SHOWN_LINES:]


class Rows:
    """The rows of a JSONL file that a run writes; kept until the file changes."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int], list[Row]]] = {}

    def of(self, file: Path) -> list[Row]:
        """The rows of a file; none if it does not exist."""
        try:
            about = file.stat()
        except OSError:
            return []
        version = about.st_size, about.st_mtime_ns
        known = self._known.get(file)
        if known is None or known[0] != version:
            known = version, list(readable_rows(file))
            self._known[file] = known
        return known[1]


def alarms(rows: Sequence[Row]) -> list[Row]:
    """The health alarms, each once with the last time that it went off; the newest first."""
    newest = {str(row["alarm"]): row for row in rows if "alarm" in row and "words" in row}
    return sorted(newest.values(), key=lambda row: -int(row.get("step") or 0))


def samples(rows: Sequence[Row]) -> list[Sample]:
    """For some prompts the first and the newest answer."""
    found: dict[str, Sample] = {}
    for row in rows:
        if "completion" not in row or "prompt" not in row:
            continue
        key = str(row["prompt"])
        first = found[key].first if key in found else row
        found[key] = Sample(row["prompt"], first, row)
    return list(found.values())[:MOST_SAMPLES]
