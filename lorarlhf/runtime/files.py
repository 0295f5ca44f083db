"""Write JSON, JSON lines and bytes atomically: after a crash a file is complete or unchanged."""

import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lorarlhf.runtime.errors import UserError

Row = dict[str, Any]
WINDOWS = sys.platform == "win32"
DEVICES = frozenset({"con", "prn", "aux", "nul"})
DEVICES |= {f"{port}{number}" for port in ("com", "lpt") for number in "0123456789\xb9\xb2\xb3"}
"""Names that mean a device on Windows, in every folder and with every ending."""
MOVE_ATTEMPTS = 20
MOVE_SECONDS = 0.05
"""Between two attempts."""

# JSON allows these inside of texts; many programs, `str.splitlines` among them, end a line there.
LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


def check_name(path: str | os.PathLike[str]) -> None:
    """Check that a new folder can have this name here.

    Raises:
        UserError: this is Windows, and a part of the path is the name of a device there.
    """
    for part in Path(path).parts if WINDOWS else ():
        if part.partition(".")[0].rstrip(" ").lower() in DEVICES:
            raise UserError(
                f"{path} can't be made: {part} is the name of a device on Windows. Name another "
                "folder."
            )


def move(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Rename a file or a folder at once; a file that is there already is replaced.

    Windows refuses it while another program reads one of them, if only to look for viruses. There
    it is tried again for a second.

    Raises:
        OSError: it can't be renamed.
    """
    for attempt in range(MOVE_ATTEMPTS):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if not WINDOWS or attempt == MOVE_ATTEMPTS - 1:
                raise
            time.sleep(MOVE_SECONDS)


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Row]) -> None:
    """Write one object a line, atomically. Missing folders are made.

    Raises:
        UserError: the file can't be written.
    """
    file = Path(path).expanduser()
    lines = [json_line(row) for row in rows]
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(draft, "xb") as stream:
                stream.writelines(lines)
                stream.flush()
                os.fsync(stream.fileno())
            move(draft, file)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(file, error) from error


def append_jsonl(path: str | os.PathLike[str], row: Row) -> None:
    """Append one object as a line. Missing folders are made.

    Raises:
        UserError: the file can't be written.
    """
    file = Path(path).expanduser()
    line = json_line(row)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "ab+") as stream:
            if stream.seek(0, os.SEEK_END) > 0:
                stream.seek(-1, os.SEEK_END)
                # The last line may lack its newline, after a crash or an edit by hand.
                line = line if stream.read(1) == b"\n" else b"\n" + line
            stream.write(line)
    except OSError as error:
        raise _refused(file, error) from error


def json_line(row: Row) -> bytes:
    """An object as a line of JSON, with null for numbers that JSON does not have.

    The line has no line separator of Unicode within it.
    """
    numbers = replace_nonfinite(row)  # null for NaN and infinities, which JSON does not have
    text = json.dumps(numbers, ensure_ascii=False, default=_iso_date, allow_nan=False)
    # A lone surrogate has no UTF-8, but its \udXXX escape is valid JSON.
    return text.translate(LINE_ENDS).encode("utf-8", "backslashreplace") + b"\n"


def readable_rows(file: Path) -> Iterator[Row]:
    """The objects in a JSONL file that a run wrote; damaged lines are left out.

    A killed run can leave half a line.
    """
    # Not splitlines(): a text may contain U+2028 and other line separators.
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def _iso_date(value: Any) -> str:
    """Dates and times, which parquet columns can contain and JSON can't, as text."""
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} can't be written as JSON: {value!r}")


def _refused(file: Path, error: OSError) -> UserError:
    advice = "check the folder, its rights and the space on the disk"
    return UserError(f"{file}: cannot be written ({error.strerror}); {advice}")


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; numbers that JSON does not have become null."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(
        json.dumps(replace_nonfinite(content), indent=2, default=str) + "\n", encoding="utf-8"
    )
    move(scratch, path)


def replace_nonfinite(data: Any) -> Any:
    """A copy of nested data with None for NaN and infinities, which JSON does not have."""
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return None
    if isinstance(data, dict):
        return {key: replace_nonfinite(value) for key, value in data.items()}
    return [replace_nonfinite(value) for value in data] if isinstance(data, (list, tuple)) else data


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one if the file is missing or invalid."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file atomically; returns its path."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        move(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def write_shared(path: Path, content: Any) -> None:
    """Write JSON that other processes read at any time; whole even after a power cut."""
    write_bytes(path, json.dumps(content, indent=2).encode())


def absolute_names(named: Any) -> Any:
    """The absolute path of a file, a folder, a `FILE.py:NAME` or a `FOLDER#LABEL`; or of a list.

    Names of models, and everything else that does not exist on this disk, stay as they are.
    """
    if isinstance(named, list | tuple):
        return [absolute_names(one) for one in named]
    if not isinstance(named, str) or not named:
        return named
    for sign in ("", ":", "#"):
        path, _, rest = named.rpartition(sign) if sign else (named, "", "")
        if path and os.path.exists(file := os.path.expanduser(path)):
            return f"{os.path.abspath(file)}{sign}{rest}"
    return named
