"""Reading rows from JSONL, JSON, CSV and parquet files, each with its line number.

This module parses a file and names the place where it is broken; `lorarlhf.data.validation` checks
the contents of the rows. No torch is imported.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lorarlhf.runtime.errors import UserError

Row = dict[str, Any]
Numbered = list[tuple[int, Row]]
Parsed = tuple[Numbered, list[str]]  # the rows and what is wrong, each ready to follow the file

DEEPEST = 100
"""How many levels of lists and objects a value may have."""
# TRL detects the type of a row from these columns, so a column of another type misleads it.
TYPE_COLUMNS = ("prompt", "completion", "chosen", "rejected", "messages", "text", "label")
MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]""")


class FileRow(dict[str, Any]):
    """A row that knows where it stands, for messages: `rows.jsonl, line 3`."""

    def __init__(self, values: Row, place: str) -> None:
        super().__init__(values)
        self.place = place


def place_of(row: Row, number: int) -> str:
    """Where a row stands: in its file, or else `row 3`."""
    return row.place if isinstance(row, FileRow) else f"row {number}"


def read_rows(path: str | os.PathLike[str]) -> Numbered:
    """(number, row) for each row of a JSONL, JSON, CSV or parquet file, without checks of columns.

    The number is the line where the row starts; for JSON and parquet it is the row, from 1. Raises
    `UserError` for a file that is missing, empty, not UTF-8 or broken.
    """
    file = Path(path).expanduser()
    rows, problems = parse_rows(file)
    raise_first(file, problems)
    return rows


def parse_rows(file: Path) -> Parsed:
    """The rows that can be read, and a problem for each one that can't, ready to follow the file.

    Raises:
        UserError: no row can be read, or the file breaks off at a place where rows may be missing.
    """
    raw = read_bytes(file)
    ending = file.suffix.lower()
    if ending == ".parquet":
        rows, problems = _parse_parquet(raw)
    elif ending in PARSERS:
        rows, problems = PARSERS[ending](decode(file, raw))
    else:
        why = "holds prompts only" if ending == ".txt" else "is not a kind that can be read"
        raise UserError(
            f"{file}: expected a file ending in .jsonl, .json, .csv or .parquet, found "
            f'"{file.suffix}", which {why}; save the rows as one of those'
        )
    unit = unit_of(file)
    checked = [(number, row, _odd_value(row)) for number, row in rows]
    problems += [f", {unit} {number}, {fault}" for number, _, fault in checked if fault]
    whole = [(number, row) for number, row, fault in checked if not fault]
    if not whole:
        raise_first(file, problems)
        raise UserError(f"{file}: expected at least one row, found none; add rows to the file")
    return whole, problems


def unit_of(file: Path) -> str:
    """What the number of a row counts in this file: lines, or rows."""
    return "row" if file.suffix.lower() in (".json", ".parquet") else "line"


def _odd_value(row: Row) -> str:
    """What no reader can take: NaN, an infinity, or lists in lists in lists; "" if there is none.

    Python reads NaN and infinities and JSON does not have them. They come from other programs'
    missing values, or from numbers such as 1e999.
    """
    for name, field in row.items():
        values = [(field, 0)]
        while values:
            value, depth = values.pop()
            if isinstance(value, float) and not math.isfinite(value):
                found = f"found the number {value}; correct it, or write null"
                return f'field "{name}": expected a finite number, {found}'
            if isinstance(value, dict | list):
                if depth == DEEPEST:
                    return f'field "{name}": expected at most {DEEPEST} levels, found more'
                inside = value.values() if isinstance(value, dict) else value
                values += [(entry, depth + 1) for entry in inside]
    return ""


def raise_first(file: Path, problems: Sequence[str]) -> None:
    """Raise a `UserError` with the first three problems and the number of the others."""
    raise_problems([f"{file}{problem}" for problem in problems])


def raise_problems(problems: Sequence[str]) -> None:
    """The same for problems that name their file."""
    if problems:
        more = f"\n... and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError("\n".join(map(printable, problems[:3])) + more)


def read_bytes(file: Path) -> bytes:
    """The bytes of a file. Raises `UserError` if it is missing, a folder, unreadable or empty."""
    try:
        if file.is_dir():
            raise UserError(f"{file}: expected a file, found a folder; name a file in it")
        raw = file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; {_near_names(file)}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    if not raw.removeprefix(b"\xef\xbb\xbf").strip():
        raise UserError(f"{file}: expected rows, found an empty file; add rows to it")
    return raw


def _near_names(file: Path) -> str:
    try:
        names = {name.lower(): name for name in os.listdir(file.parent)}
    except OSError:
        return f"the folder {file.parent} is not there either, check the path"
    near = difflib.get_close_matches(file.name.lower(), sorted(names))
    if not near:
        return f"no file in {file.parent} has a name like it, check the path"
    return f"did you mean {' or '.join(names[name] for name in near)}?"


def decode(file: Path, raw: bytes) -> str:
    """Bytes as text, without a byte order mark. Raises `UserError` if they are not UTF-8."""
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{file}, line {line}: expected UTF-8, found 0x{raw[error.start]:02x} at byte offset "
            f"{error.start} of the file; save the file as UTF-8"
        ) from None


def _load_json(text: str, line: int = 0) -> tuple[Any, str]:
    """(value, "") or (None, what is broken and where); `line` if the text is a single line."""
    try:
        return json.loads(text), ""
    except json.JSONDecodeError as error:
        rest = error.doc[error.pos :].split("\n")[0].strip()
        found = excerpt(rest) if rest else "the end of the line"
        place = f", line {line or error.lineno}, column {error.colno}"
        return None, f"{place}: broken JSON, {error.msg}, found {found}"
    except (RecursionError, ValueError):  # lists in lists in lists; a number of 5,000 digits
        place = f", line {line}" if line else ""
        return None, f"{place}: broken JSON, nested too deeply or a number too long"


def _parse_jsonl(text: str) -> Parsed:
    rows: Numbered = []
    problems = []
    # Not splitlines(): JSON texts may contain U+2028 and other line separators.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row, broken = _load_json(line, number)
        if isinstance(row, dict):
            rows.append((number, row))
        elif broken:
            problems.append(f"{broken}; each line must hold one whole JSON object")
        else:
            advice = "each line must hold one row (a list of rows belongs in a .json file)"
            problems.append(f", line {number}: expected an object, found {shown(row)}; {advice}")
    if problems and text.lstrip().startswith("["):
        whole, broken = _load_json(text)
        if not broken:  # a list that was written over several lines
            found = f"one list of {len(whole)} rows over all lines"
            return [], [f": expected one object a line, found {found}; name the file .json"]
    return rows, problems


def _parse_json(text: str) -> Parsed:
    advice = 'a .json file holds one list of objects, or {"data": [...]}'
    value, broken = _load_json(text)
    if broken:
        return [], [f"{broken}; {advice}; one object a line belongs in a .jsonl file"]
    if isinstance(value, dict) and value.keys() >= {"internal", "visible"}:
        value = [value]  # a chat of text-generation-webui is one object
    if isinstance(value, dict) and "data" in value:
        value = value["data"]
    if not isinstance(value, list):
        return [], [f": expected a list of objects, found {shown(value)}; {advice}"]
    numbered = list(enumerate(value, start=1))
    return [(number, row) for number, row in numbered if isinstance(row, dict)], [
        f", row {number}: expected an object, found {shown(row)}; {advice}"
        for number, row in numbered
        if not isinstance(row, dict)
    ]


def _parse_csv(text: str) -> Parsed:
    rows: Numbered = []
    problems: list[str] = []
    header: list[str] = []
    end = 0  # the last line of the previous row
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for cells in reader:
            line, end = end + 1, reader.line_num
            if not cells:
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                problems = [f", line {line}{fault}" for fault in _header_faults(header)]
                if problems:
                    break
            elif len(cells) == len(header):
                named = zip(header, cells, strict=True)
                rows.append((line, {name: _cell(name, cell) for name, cell in named}))
            else:
                problems.append(
                    f", line {line}: expected {len(header)} cells ({quoted(header)}), found "
                    f"{len(cells)}; put quotes around a cell that holds commas or line breaks"
                )
    except csv.Error as error:
        advice = 'put quotes around the whole cell and write a quote inside it as ""'
        # The rows after this place can't be told apart, so none of the file is taken.
        rows, problems = [], [*problems, f", line {end + 1}: broken CSV ({error}); {advice}"]
    finally:
        csv.field_size_limit(limit)
    return rows, problems


def _header_faults(header: list[str]) -> list[str]:
    if twice := sorted({name for name in header if header.count(name) > 1}):
        return [f": the column {quoted(twice)} occurs twice; give each column its own name"]
    if len(header) == 1 and re.search("[;\t]", header[0]):
        found = f"found {excerpt(header[0])}"
        return [f": expected commas between the columns, {found}; save the file with commas"]
    return []


def _cell(name: str, cell: str) -> Any:
    """The value of a CSV cell: a conversation, a margin, or its text."""
    if name == "margin":
        try:
            return float(cell)
        except ValueError:
            return cell if cell.strip() else None
    if name in TYPE_COLUMNS and MESSAGES_AS_TEXT.match(cell):
        # A broken conversation stays text, and the check of the row reports it.
        value, broken = _load_json(cell)
        return cell if broken else value
    return cell


def _parse_parquet(raw: bytes) -> Parsed:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(raw)).read()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        return [], [f": expected a parquet file, found broken content ({reason}); write it again"]
    if faults := _header_faults(table.column_names):
        return [], faults
    return list(enumerate(table.to_pylist(), start=1)), []


PARSERS: dict[str, Callable[[str], Parsed]] = {
    ".jsonl": _parse_jsonl,
    ".json": _parse_json,
    ".csv": _parse_csv,
}


# Text for messages


def shown(value: Any) -> str:
    """A short description of a value, in the terms of JSON."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return f"the text {excerpt(value)}"
    if isinstance(value, dict):
        return f"an object with the keys {quoted(value)}" if value else "an empty object"
    if isinstance(value, (int, float)):
        return f"the number {str(value)[:40]}"
    return f"a {type(value).__name__}"


def printable(text: str) -> str:
    """The text with escapes for halves of characters, which no terminal and no page takes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def excerpt(text: str) -> str:
    """The first 40 characters of a text, in quotes."""
    return json.dumps(text if len(text) <= 40 else text[:40] + "…", ensure_ascii=False)


def quoted(names: Iterable[str]) -> str:
    """Names in quotes, separated by commas."""
    return ", ".join(f'"{name}"' for name in names)
