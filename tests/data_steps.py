"""What the tests of lorarlhf.data share: rows of each form, and files that hold them."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lorarlhf.data import readers as data
from lorarlhf.runtime.errors import UserError

ASK = [{"role": "user", "content": "Why?"}]
GOOD = [{"role": "assistant", "content": "Because."}]
BAD = [{"role": "assistant", "content": "Dunno."}]
PLAIN = {"prompt": "Why?", "chosen": "Because.", "rejected": "Dunno."}
CHAT = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}
IMPLICIT = {"chosen": ASK + GOOD, "rejected": ASK + BAD}
TEXT_OR_MESSAGES = "expected text or a list of messages"


def jsonl(folder: Path, *rows, name: str = "rows.jsonl") -> Path:
    """A file with one row a line; a string is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return text_file(folder, name, "".join(line + "\n" for line in lines))


def text_file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def written(folder: Path, ending: str, rows: list[dict]) -> Path:
    """The rows as a file of that kind, in the way other programs write it."""
    path = folder / f"rows{ending}"
    if ending == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif ending == ".csv":
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for row in rows:
            cells = {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}
            writer.writerow(cells)
        path.write_bytes(stream.getvalue().encode())
    elif ending == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        return jsonl(folder, *rows)
    return path


def complaint(reader, path) -> str:
    with pytest.raises(UserError) as caught:
        reader(path)
    return str(caught.value)


def run_python(code: str, **environment: str) -> str:
    root = str(Path(data.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout
