"""Demonstrations, prompts and preferences from files: read, check every row, name the bad one.

Column names are TRL's. A text field holds plain text or a conversation: a list of messages
`{"role": "system" | "user" | "assistant" | "tool", "content": text}`. The readers return rows that
`datasets.Dataset.from_list` takes as they are: every row has the same columns, and a column holds
one kind of value. Anything wrong in a file raises `UserError` with file, line and field.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from lorarlhf.data_files import (
    MESSAGES_AS_TEXT,
    TYPE_COLUMNS,
    Numbered,
    Row,
    decode,
    excerpt,
    quoted,
    raise_first,
    read_bytes,
    read_rows,
    shown,
)
from lorarlhf.errors import UserError

__all__ = [
    "append_jsonl",
    "as_conversation",
    "as_text",
    "bundled",
    "read_demonstrations",
    "read_preferences",
    "read_prompts",
    "read_rows",
    "split_by_prompt",
    "write_jsonl",
]

Message = dict[str, Any]
Inspected = tuple[Row, tuple[str, ...], list[str]]  # the row, its required fields, its problems

ROLES = ("system", "user", "assistant", "tool")
DEMONSTRATION_SHAPES = (("prompt", "completion"), ("messages",), ("text",))
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
FILL_IN = "fill it in or leave the row out"


def read_prompts(path: str | os.PathLike[str]) -> list[Row]:
    """Rows with `prompt` (text or messages); other columns are kept for reward functions.

    A file that ends in `.txt` holds one prompt a line. Raises `UserError`.
    """
    file = Path(path).expanduser()
    if file.suffix.lower() == ".txt":
        lines = enumerate(decode(file, read_bytes(file)).split("\n"), start=1)
        numbered = [(number, {"prompt": line.strip()}) for number, line in lines if line.strip()]
    else:
        numbered = read_rows(file)
    return _checked(file, numbered, _inspect_prompt)


def read_demonstrations(path: str | os.PathLike[str]) -> list[Row]:
    """Rows with `prompt` and `completion`, or `messages`, or `text`. Raises `UserError`."""
    file = Path(path).expanduser()
    return _checked(file, read_rows(file), _inspect_demonstration)


def read_preferences(path: str | os.PathLike[str]) -> list[Row]:
    """Rows with `prompt`, `chosen`, `rejected` and, in every row or in none, `margin` (a float).

    Conversations may leave `prompt` out: it is then the messages that chosen and rejected both
    begin with. Raises `UserError`, also for a tie (chosen equal to rejected).
    """
    file = Path(path).expanduser()
    return _checked(file, read_rows(file), _inspect_preference)


def as_conversation(prompt: str | list[Message]) -> list[Message]:
    """A prompt as messages: plain text becomes one user message, messages are copied."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [dict(message) for message in prompt]


def as_text(completion: str | list[Message]) -> str:
    """A completion as text: the contents of its messages, one below the other."""
    if isinstance(completion, str):
        return completion
    return "\n".join(message["content"] for message in completion)


def split_by_prompt(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(train, heldout): `fraction` of the prompts held out, rows of one prompt kept together.

    Both parts keep the rows' order and, from two prompts on, neither is empty. Prompts are ranked
    by a hash of seed and prompt, so that a new row leaves nearly all others on their side.
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


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Row]) -> None:
    """Write one object a line, all or nothing: a crash leaves the file as it was before.

    Missing folders are made. Raises `UserError` where the disk refuses.
    """
    file = Path(path).expanduser()
    lines = [_json_line(row) for row in rows]
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(draft, "xb") as stream:
                stream.writelines(lines)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(draft, file)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(file, error) from error


def append_jsonl(path: str | os.PathLike[str], row: Row) -> None:
    """Add one object as the last line; missing folders are made. Raises `UserError`."""
    file = Path(path).expanduser()
    line = _json_line(row)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "ab+") as stream:
            if stream.seek(0, os.SEEK_END) > 0:
                stream.seek(-1, os.SEEK_END)
                # A line that a crash cut off, or a person left open, must not swallow this one.
                line = line if stream.read(1) == b"\n" else b"\n" + line
            stream.write(line)
    except OSError as error:
        raise _refused(file, error) from error


def _json_line(row: Row) -> bytes:
    text = json.dumps(row, ensure_ascii=False, default=_iso_date)
    # Half a character (a lone surrogate) has no UTF-8, but its \udXXX escape is valid JSON.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _iso_date(value: Any) -> str:
    """Dates and times, which parquet columns may hold, as JSON has none."""
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no place in JSON: {value!r}")


def _refused(file: Path, error: OSError) -> UserError:
    advice = "check the folder, its rights and the space on the disk"
    return UserError(f"{file}: cannot be written ({error.strerror}); {advice}")


def bundled(name: str) -> Path:
    """The path of a data file that comes with the package: `prompts` or `prompts.jsonl`.

    Raises `UserError` where there is none of that name.
    """
    wanted = name if Path(name).suffix else f"{name}.jsonl"
    folders: list[Any] = [Path(__file__).parents[1] / "recipes" / "data"]
    # A checkout that was not installed has no such package: the data are at their place in it.
    with contextlib.suppress(ImportError):
        folders.insert(0, resources.files("lorarlhf._data"))
    for folder in folders:
        if folder.joinpath(wanted).is_file():
            return Path(str(folder.joinpath(wanted)))
    known = {entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir()}
    names = quoted(sorted(entry for entry in known if entry.endswith(".jsonl")))
    there = f"there are {names}" if names else "its data are missing, install it again"
    raise UserError(f'no data file "{wanted}" comes with lorarlhf; {there}')


# Checking rows


def _checked(file: Path, numbered: Numbered, inspect: Callable[[Row], Inspected]) -> list[Row]:
    """The rows as `inspect` returns them, all with the same columns; `UserError` for bad ones."""
    unit = "row" if file.suffix.lower() in (".json", ".parquet") else "line"
    seen = [(f"{unit} {number}", *inspect(row)) for number, row in numbered]
    raise_first(file, [f", {place}, {text}" for place, _, _, texts in seen for text in texts])
    shapes = [f"{quoted(fields)} as {_form(row[fields[0]])}" for _, row, fields, _ in seen]
    for (place, *_), shape in zip(seen, shapes, strict=True):
        if shape != shapes[0]:
            raise UserError(
                f"{file}, {place}: expected {shapes[0]} as on {seen[0][0]}, found {shape}; "
                "give all rows of a file the same columns and the same form"
            )
    rows = [(place, row) for place, row, _, _ in seen]
    raise_first(file, list(_mixed_columns(rows)))
    columns = dict.fromkeys(name for _, row in rows for name in row)
    return [{name: row.get(name) for name in columns} for _, row in rows]


def _inspect_prompt(row: Row) -> Inspected:
    return row, ("prompt",), _field_problems(row, ("prompt",))


def _inspect_demonstration(row: Row) -> Inspected:
    present = {name for name, value in row.items() if value is not None}
    # The first shape that is whole, else the one with most of its columns there.
    fields = max(DEMONSTRATION_SHAPES, key=lambda f: (present >= set(f), len(present & set(f))))
    if present & set(fields):
        return _without_rivals(row, fields), fields, _field_problems(row, fields)
    expected = 'expected "prompt" and "completion", or "messages", or "text"'
    found = f"found {quoted(row) or 'no columns'}; rename the columns or fill them in"
    return row, fields, [f"{expected}, {found}"]


def _inspect_preference(row: Row) -> Inspected:
    fields: tuple[str, ...] = ("prompt", "chosen", "rejected")
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if chosen is not None and chosen == rejected:
        found = "the same; ties can't be trained on, leave them out"
        return row, fields, [f'field "rejected": expected other than "chosen", found {found}']
    if row.get("prompt") is None and isinstance(chosen, list) and isinstance(rejected, list):
        row, problems = _with_prompt(row, chosen, rejected)
        fields = fields[1:]
    else:
        problems = _field_problems(row, fields)
    row = _without_rivals(row, ("prompt", *fields))
    margin = row.pop("margin", None)
    if margin is not None:
        fields = (*fields, "margin")
        # Above this a float overflows; not-a-number fails every comparison.
        if type(margin) in (int, float) and abs(margin) < 1e300:
            row["margin"] = float(margin)
        else:
            advice = "write how much better chosen is as a number, or leave the column out"
            problems.append(f'field "margin": expected a number, found {shown(margin)}; {advice}')
    return row, fields, problems


def _with_prompt(row: Row, chosen: list[Any], rejected: list[Any]) -> tuple[Row, list[str]]:
    """The row with the messages that both answers begin with moved to the prompt; its problems."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    shared = next((n for n, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
    if shared == 0:
        expected = 'expected a prompt, or "chosen" and "rejected" that begin with the same messages'
        return row, [f'field "prompt": {expected}, found neither; add the prompt']
    answers = {"chosen": chosen[shared:], "rejected": rejected[shared:]}
    faults = {name: _messages_fault(answers[name], name, shared) for name in answers}
    # What is wrong with the prompt stands in both; the file has it under these names only.
    faults["chosen"] = _messages_fault(chosen[:shared], "prompt") or faults["chosen"]
    row = {**row, **answers, "prompt": chosen[:shared]}
    return row, [f'field "{name}"{fault}' for name, fault in faults.items() if fault]


def _without_rivals(row: Row, fields: Sequence[str]) -> Row:
    rivals = set(TYPE_COLUMNS) - set(fields)
    return {name: value for name, value in row.items() if name not in rivals}


def _field_problems(row: Row, fields: Sequence[str]) -> list[str]:
    """What is wrong with a row's required fields, at most one problem for each."""
    faults = [(name, _field_fault(row, name)) for name in fields]
    if not any(fault for _, fault in faults):
        first = fields[0]
        forms = {name: _form(row[name]) for name in fields}
        faults = [
            (name, f': expected {forms[first]} as in "{first}", found {form}; use one form in both')
            for name, form in forms.items()
            if form != forms[first]
        ]
    return [f'field "{name}"{fault}' for name, fault in faults if fault]


def _form(value: Any) -> str:
    return "messages" if isinstance(value, list) else "text"


def _field_fault(row: Row, name: str) -> str | None:
    """What is wrong with one field, to follow its name."""
    kinds = {"messages": "a list of messages", "text": "text"}
    wanted = kinds.get(name, "text or a list of messages")
    value = row.get(name)
    if isinstance(value, list) and name != "text":
        return _messages_fault(value, name)
    if name not in row:
        found = f"no such column (there is {quoted(row) or 'none'}); rename a column or add it"
    elif value is None:
        found = f"null; {FILL_IN}"
    elif isinstance(value, str) and not value.strip():
        found = f"blank text; {FILL_IN}"
    elif isinstance(value, str) and MESSAGES_AS_TEXT.match(value):
        found = f"messages written as text, {excerpt(value)}; write them as a JSON list"
    elif isinstance(value, str) and name != "messages":
        return None
    else:
        found = f"{shown(value)}; write it as {wanted}"
    return f": expected {wanted}, found {found}"


def _messages_fault(messages: list[Any], name: str, skipped: int = 0) -> str | None:
    """What is wrong with a conversation, to follow the name of its field.

    `skipped` messages stand before these in the file: the implicit prompt.
    """
    if not messages:
        after = " after those that both answers begin with" if skipped else ""
        return f": expected one message or more{after}, found none; {FILL_IN}"
    for number, message in enumerate(messages, start=skipped + 1):
        if fault := _message_fault(message, name):
            return f", message {number}: {fault}"
    last = messages[-1]["role"]
    if name == "prompt" and last == "assistant":
        found = 'role "assistant"; move the answer out of the prompt'
        return f', message {len(messages)}: expected role "user" at the end, found {found}'
    if name == "messages" and all(message["role"] != "assistant" for message in messages):
        return f": expected an assistant message to learn from, found none; {FILL_IN}"
    return None


def _message_fault(message: Any, name: str) -> str | None:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        return f'expected {{"role": ..., "content": ...}}, found {shown(message)}; rewrite it'
    role, content = message["role"], message["content"]
    if role not in ROLES:
        return f"expected a role of {quoted(ROLES)}, found {shown(role)}; rename the role"
    if not isinstance(content, str):
        return f"expected text as content, found {shown(content)}; write it as text"
    # A system prompt and what a tool gives back may be empty; a person and a model say something.
    if role in ("user", "assistant") and not content.strip():
        return f"expected text as content, found blank text; {FILL_IN}"
    if role != "assistant" and name in ("completion", "chosen", "rejected"):
        advice = "leave only the answer here, the rest belongs in the prompt"
        return f'expected role "assistant", found "{role}"; {advice}'
    return None


def _mixed_columns(rows: Iterable[tuple[str, Row]]) -> Iterator[str]:
    """Values that a column of a table cannot hold together, or not at all."""
    first: dict[str, tuple[str, str]] = {}
    for place, row in rows:
        for field, kind in (pair for name in row for pair in _kinds(row[name], name)):
            expected, where = first.setdefault(field, (kind, place))
            if kind in (BROKEN_TEXT, HUGE_NUMBER):
                yield f', {place}, field "{field}": found {kind}; correct the value'
            elif kind != expected:
                found = f"found {kind}; give the column one kind of value"
                yield f', {place}, field "{field}": expected {expected} as on {where}, {found}'


BROKEN_TEXT = "text with half a character (one surrogate such as \\ud83d without its partner)"
HUGE_NUMBER = "a whole number beyond 64 bits"
KINDS = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "an object",
}


def _kinds(value: Any, field: str) -> Iterator[tuple[str, str]]:
    """(field, kind) of a value and of all that it holds; null goes with every kind."""
    if isinstance(value, str) and LONE_SURROGATE.search(value):
        yield field, BROKEN_TEXT
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield field, HUGE_NUMBER
    elif value is not None:
        yield field, KINDS.get(type(value), f"a {type(value).__name__}")
    if isinstance(value, dict):
        for name in value:
            yield from _kinds(value[name], f"{field}.{name}")
    elif isinstance(value, list):
        for entry in value:
            yield from _kinds(entry, f"{field}[]")
