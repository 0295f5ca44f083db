"""Checks of rows of demonstrations, prompts or preferences, with a message for each problem."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lorarlhf.data.file_formats import (
    MESSAGES_AS_TEXT,
    TYPE_COLUMNS,
    FileRow,
    Numbered,
    Row,
    excerpt,
    quoted,
    raise_first,
    shown,
    unit_of,
)
from lorarlhf.data.shapes import shared_start
from lorarlhf.runtime.errors import UserError

TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
"""Columns that TRL hands to the chat template beside the messages."""
Inspected = tuple[Row, tuple[str, ...], list[str]]  # the row, its required fields, its problems
ROLES = ("system", "user", "assistant", "tool")
DEMONSTRATION_SHAPES = (("prompt", "completion"), ("messages",), ("text",))
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
LABELS = dict.fromkeys(("true", "yes", "1", "1.0"), True)
LABELS |= dict.fromkeys(("false", "no", "0", "0.0"), False)
FILL_IN = "fill it in or leave the row out"


def checked(
    file: Path,
    numbered: Numbered,
    inspect: Callable[[Row], Inspected],
    used: Sequence[str] = (),
) -> list[Row]:
    """The rows as `inspect` returns them, all with the same columns.

    Args:
        used: the columns that count. Other ones are left out if their values are of several kinds,
            which no table can hold and which is no fault of a row. With none, all columns count.

    Raises:
        UserError: bad rows, each with its line and field.
    """
    unit = unit_of(file)
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
    if used:
        mixed = _mixed_and_unused([row for _, row in rows], {*used, *TEMPLATE_COLUMNS})
        rows = [(place, {n: row[n] for n in row if n not in mixed}) for place, row in rows]
    raise_first(file, list(_mixed_columns(rows)))
    columns = dict.fromkeys(name for _, row in rows for name in row)
    return [
        FileRow({name: row.get(name) for name in columns}, f"{file}, {place}")
        for place, row in rows
    ]


def unused_columns(rows: Iterable[Row], used: Iterable[str]) -> list[str]:
    """The columns that hold something and that a stage does not use."""
    filled = dict.fromkeys(name for row in rows for name in row if row[name] is not None)
    return [name for name in filled if name not in {*used, *TEMPLATE_COLUMNS}]


def _template_problems(row: Row) -> list[str]:
    """The problems of the columns in `TEMPLATE_COLUMNS`."""
    problems = []
    tools, more = row.get("tools"), row.get("chat_template_kwargs")
    if tools is not None:
        try:
            known = isinstance(tools, str) and isinstance(json.loads(tools), list)
        except ValueError:
            known = False
        if not known:
            problems.append(
                f'field "tools": expected a list of tools, found {shown(tools)}; write the tools\' '
                "schemas as a JSON list"
            )
    if more is not None and not isinstance(more, dict):
        problems.append(
            f'field "chat_template_kwargs": expected an object, found {shown(more)}; write the '
            "template's arguments as an object"
        )
    return problems


def inspect_prompt(row: Row) -> Inspected:
    """A row with `prompt`."""
    problems = _field_problems(row, ("prompt",)) + _template_problems(row)
    return row, ("prompt",), problems


def inspect_demonstration(row: Row) -> Inspected:
    """A row with `prompt` and `completion`, or `messages`, or `text`."""
    present = {name for name, value in row.items() if value is not None}
    # The first complete shape, or else the one with the most columns present.
    fields = max(DEMONSTRATION_SHAPES, key=lambda f: (present >= set(f), len(present & set(f))))
    if present & set(fields):
        problems = _field_problems(row, fields) + _template_problems(row)
        if as_label(row.get("label")) is False:
            problems.append(
                'field "label": expected good answers only, found false; it would be learned as a '
                "good one, so use the command kto, or leave bad answers out"
            )
        return _without_rivals(row, fields), fields, problems
    expected = 'expected "prompt" and "completion", or "messages", or "text"'
    found = f"found {quoted(row) or 'no columns'}; rename the columns or fill them in"
    return row, fields, [f"{expected}, {found}"]


def inspect_edit(row: Row) -> Inspected:
    """A row with `prompt`, `completion`, and in `worse` answers that are not as good."""
    fields, worse = ("prompt", "completion"), row.get("worse")
    problems = _field_problems(row, fields) + _template_problems(row)
    if worse is not None and not (
        isinstance(worse, list) and all(isinstance(answer, str) for answer in worse)
    ):
        problems.append(
            f'field "worse": expected a list of texts, found {shown(worse)}; write the answers '
            "that the completion is better than, or leave the column out"
        )
    return _without_rivals(row, fields), fields, problems


def as_label(value: Any) -> bool | None:
    """Whether an answer is called good: true, 1 or yes, as text as well; None if it is no label."""
    return LABELS.get(str(value).strip().lower()) if isinstance(value, str | int | float) else None


def inspect_labelled(row: Row) -> Inspected:
    """A row with `prompt`, `completion` and a `label` (see `as_label`)."""
    fields = ("prompt", "completion")
    problems = _field_problems(row, fields)
    label = row.get("label")
    meaning = as_label(label)
    if meaning is not None:
        row = {**row, "label": meaning}
    else:
        found = shown(label) if "label" in row else "no such column"
        advice = "write whether the answer is a good one"
        problems.append(f'field "label": expected true or false, found {found}; {advice}')
    problems += _template_problems(row)
    return _without_rivals(row, (*fields, "label")), fields, problems


def inspect_preference(row: Row) -> Inspected:
    """A row with `prompt`, `chosen`, `rejected`; the prompt may be the common start of both."""
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
    problems = problems + _template_problems(row)
    row = _without_rivals(row, ("prompt", *fields))
    margin = row.pop("margin", None)
    if margin is not None:
        fields = (*fields, "margin")
        # Larger numbers overflow a float, and NaN fails every comparison.
        if type(margin) in (int, float) and abs(margin) < 1e300:
            row["margin"] = float(margin)
        else:
            advice = "write how much better chosen is as a number, or leave the column out"
            problems.append(f'field "margin": expected a number, found {shown(margin)}; {advice}')
    return row, fields, problems


def _with_prompt(row: Row, chosen: list[Any], rejected: list[Any]) -> tuple[Row, list[str]]:
    """The row with the common first messages moved to the prompt, and its problems."""
    shared = shared_start(chosen, rejected)
    if shared == 0:
        expected = 'expected a prompt, or "chosen" and "rejected" that begin with the same messages'
        return row, [f'field "prompt": {expected}, found neither; add the prompt']
    answers = {"chosen": chosen[shared:], "rejected": rejected[shared:]}
    faults = {name: _messages_fault(answers[name], name, shared) for name in answers}
    # A problem with the prompt is in both, and the file has it under these names only.
    faults["chosen"] = _messages_fault(chosen[:shared], "prompt") or faults["chosen"]
    row = {**row, **answers, "prompt": chosen[:shared]}
    return row, [f'field "{name}"{fault}' for name, fault in faults.items() if fault]


def _without_rivals(row: Row, fields: Sequence[str]) -> Row:
    rivals = set(TYPE_COLUMNS) - set(fields)
    return {name: value for name, value in row.items() if name not in rivals}


def _field_problems(row: Row, fields: Sequence[str]) -> list[str]:
    """The problems of a row's required fields, at most one for each field."""
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
    """The problem with a field, as text to put after its name."""
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
    """The problem with a conversation, as text to put after the name of its field.

    `skipped` is the number of messages before these in the file: the implicit prompt.
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
    # A system prompt and the output of a tool may be empty; other messages may not.
    if role in ("user", "assistant") and not content.strip():
        return f"expected text as content, found blank text; {FILL_IN}"
    if role != "assistant" and name in ("completion", "chosen", "rejected"):
        advice = "leave only the answer here, the rest belongs in the prompt"
        return f'expected role "assistant", found "{role}"; {advice}'
    return None


def _mixed_columns(rows: Iterable[tuple[str, Row]]) -> Iterator[str]:
    """Problems with values that a column of a table cannot hold, or not together."""
    first: dict[str, tuple[str, str]] = {}
    for place, row in rows:
        for field, kind in (pair for name in row for pair in _kinds(row[name], name)):
            expected, where = first.setdefault(field, (kind, place))
            if kind in (BROKEN_TEXT, HUGE_NUMBER):
                yield f', {place}, field "{field}": found {kind}; correct the value'
            elif kind != expected:
                found = f"found {kind}; give the column one kind of value"
                yield f', {place}, field "{field}": expected {expected} as on {where}, {found}'


def _mixed_and_unused(rows: Iterable[Row], used: set[str]) -> set[str]:
    """The columns that are not used and hold values of several kinds."""
    first: dict[str, str] = {}
    mixed = set()
    for row in rows:
        for name in row.keys() - used:
            for field, kind in _kinds(row[name], name):
                known = first.setdefault(field, kind)
                if known != kind and not {known, kind} & {BROKEN_TEXT, HUGE_NUMBER}:
                    mixed.add(name)
    return mixed


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
    """(field, kind) of a value and of everything inside it; null fits every kind."""
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
