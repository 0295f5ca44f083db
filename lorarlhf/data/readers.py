"""Reading demonstrations, prompts and preferences from files, with a check of every row.

Column names are TRL's. A text field holds plain text or a conversation: a list of messages
`{"role": "system" | "user" | "assistant" | "tool", "content": text}`. The readers return rows for
`datasets.Dataset.from_list`: all rows have the same columns, and a column holds one kind of value.
A mistake in a file raises `UserError` with the file, line and field.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from lorarlhf.data.file_formats import (
    FileRow,
    Numbered,
    Row,
    decode,
    place_of,
    quoted,
    read_bytes,
    read_rows,
)
from lorarlhf.data.shapes import in_standard_shape
from lorarlhf.data.twins import notices
from lorarlhf.data.validation import (
    Inspected,
    checked,
    inspect_demonstration,
    inspect_edit,
    inspect_labelled,
    inspect_preference,
    inspect_prompt,
    unused_columns,
)
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.terminal import log_to_stderr

Message = dict[str, Any]
PREFERENCE = ("prompt", "chosen", "rejected", "margin")


def read_prompts(path: str | os.PathLike[str]) -> list[Row]:
    """Rows with `prompt` (text or messages); other columns are kept for reward functions.

    A file that ends in `.txt` holds a prompt on each line. Raises `UserError`.
    """
    file = Path(path).expanduser()
    if file.suffix.lower() == ".txt":
        lines = enumerate(decode(file, read_bytes(file)).split("\n"), start=1)
        numbered = [(number, {"prompt": line.strip()}) for number, line in lines if line.strip()]
    else:
        numbered = read_rows(file)
    return _read(file, numbered, inspect_prompt)


def read_demonstrations(path: str | os.PathLike[str]) -> list[Row]:
    """Rows with `prompt` and `completion`, or `messages`, or `text`. Raises `UserError`."""
    file = Path(path).expanduser()
    used = ("prompt", "completion", "messages", "text")
    return _read(file, read_rows(file), inspect_demonstration, used)


def read_edits(path: str | os.PathLike[str]) -> list[Row]:
    """Rows with `prompt` and `completion`, and, where it is known, `worse`: a list of texts.

    Raises `UserError`.
    """
    file = Path(path).expanduser()
    return _read(file, read_rows(file), inspect_edit, ("prompt", "completion", "worse"))


def read_preferences(path: str | os.PathLike[str]) -> list[Row]:
    """Rows with `prompt`, `chosen`, `rejected` and, in every row or in none, `margin` (a float).

    Conversations may leave out `prompt`, which is then the messages that chosen and rejected both
    begin with. Raises `UserError`, also for a tie (chosen equal to rejected).
    """
    file = Path(path).expanduser()
    return _read(file, read_rows(file), inspect_preference, PREFERENCE)


def read_labelled(path: str | os.PathLike[str]) -> list[Row]:
    """Rows with `prompt`, `completion` and `label` (true: a good answer), for KTO.

    A file of preference pairs gives two rows a pair. Raises `UserError`.
    """
    file = Path(path).expanduser()
    numbered = read_rows(file)
    if any("chosen" in row for _, row in numbered):
        return unpair(_read(file, numbered, inspect_preference, PREFERENCE))
    return _read(file, numbered, inspect_labelled, ("prompt", "completion", "label"))


def _read(
    file: Path,
    numbered: Numbered,
    inspect: Callable[[Row], Inspected],
    used: Sequence[str] = (),
) -> list[Row]:
    """The checked rows, in TRL's columns.

    Args:
        used: the columns that count; the others are said once. None are said if it is empty.
    """
    shaped = [(number, in_standard_shape(row)) for number, row in numbered]
    rows = checked(file, shaped, inspect, used)
    unused = unused_columns((row for _, row in shaped), used) if used else []
    if unused:
        log_to_stderr(f"{file}: not used: {quoted(unused)}.")
    for notice in notices(rows) if used else ():
        log_to_stderr(f"{file}: {notice}")
    return rows


def unpair(rows: Sequence[Row]) -> list[Row]:
    """Preference pairs as two labelled rows each; labelled rows as they are."""
    labelled: list[Row] = []
    for number, row in enumerate(rows, start=1):
        if "chosen" not in row:
            labelled.append(row)
            continue
        for name, label in (("chosen", True), ("rejected", False)):
            values = {"prompt": row["prompt"], "completion": row[name], "label": label}
            labelled.append(FileRow(values, place_of(row, number)))
    return labelled


def as_conversation(prompt: str | list[Message]) -> list[Message]:
    """A prompt as messages: text becomes a user message, messages are copied."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [dict(message) for message in prompt]


def as_text(completion: str | list[Message]) -> str:
    """A completion as text: the contents of its messages, joined by line breaks."""
    if isinstance(completion, str):
        return completion
    return "\n".join(message["content"] for message in completion)


def last_message(prompt: str | list[Message]) -> str:
    """What a prompt asks: the text itself, or the content of a conversation's last message."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def split_by_prompt(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(train, heldout), with `fraction` of the prompts held out; rows of a prompt stay together.

    Both parts keep the order of the rows, and with two or more prompts neither is empty. Prompts
    are ranked by a hash of seed and prompt, so a new row leaves nearly all others on their side.
    Raises `UserError` for a fraction that is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise UserError(
            f"the held-out fraction must lie between 0 and 1, found {fraction}; "
            "0.2 holds out every fifth prompt"
        )
    keys = [_prompt_key(row) for row in rows]
    ranked = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    count = max(int(fraction * len(ranked) + 0.5), 1)
    held = set(ranked[: max(min(count, len(ranked) - 1), 0)])
    train = [row for row, key in zip(rows, keys, strict=True) if key not in held]
    return train, [row for row, key in zip(rows, keys, strict=True) if key in held]


def _prompt_key(row: Row) -> str:
    if "prompt" in row:
        return json.dumps(row["prompt"], sort_keys=True)
    if "messages" in row:
        asked = itertools.takewhile(lambda message: message["role"] != "assistant", row["messages"])
        return json.dumps(list(asked), sort_keys=True)
    return json.dumps(row["text"])


def bundled(name: str) -> Path:
    """The path of a data file that comes with the package: `prompts` or `prompts.jsonl`.

    Raises `UserError` if there is no file with this name.
    """
    wanted = name if Path(name).suffix else f"{name}.jsonl"
    folders: list[Any] = [Path(__file__).parents[2] / "recipes" / "data"]
    # A checkout that is not installed does not have this package, but it has the data.
    with contextlib.suppress(ImportError):
        folders.insert(0, resources.files("lorarlhf._data"))
    for folder in folders:
        if folder.joinpath(wanted).is_file():
            return Path(str(folder.joinpath(wanted)))
    known = {entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir()}
    names = quoted(sorted(entry for entry in known if entry.endswith(".jsonl")))
    there = f"there are {names}" if names else "its data are missing, install it again"
    raise UserError(f'no data file "{wanted}" comes with lorarlhf; {there}')
