"""Values of a row that is imported: each is checked, and an error names its field."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lorarlhf.data.file_formats import MESSAGES_AS_TEXT, quoted, shown
from lorarlhf.data.shapes import as_message
from lorarlhf.data.validation import ROLES
from lorarlhf.preferences.records import Candidates, ImportedVote

Row = dict[str, Any]
Message = dict[str, Any]
Numbered = list[tuple[int, Row]]
UNNAMED = "imported"
"""The rater or the source of a vote whose file does not name one."""


class RowFault(Exception):
    """What is wrong with a row; the reader puts the file and the line before it."""


@dataclass(frozen=True)
class Left:
    """Something in a row that is no vote.

    Attributes:
        reason: why, in the plural, to be counted.
        place: the number that names it, where that is not the row's: of a turn in a conversation.
    """

    reason: str
    place: int | None = None


Parsed = Iterator[ImportedVote | Candidates | Left | str]
"""What a row gives: votes, answers to be rated, and reasons why something in it is neither."""
Parser = Callable[[Row], Parsed]
FileParser = Callable[[Numbered], Iterator[tuple[int, ImportedVote | Candidates | Left | RowFault]]]
"""Parses rows that belong together. Each thing that it finds has the number of its row."""


def each_row(parse: Parser) -> FileParser:
    """The parser of a file whose rows stand alone; a row with a fault gives nothing else."""

    def parse_all(rows: Numbered) -> Iterator[tuple[int, Any]]:
        for number, row in rows:
            try:
                found = list(parse(row))
            except RowFault as fault:
                yield number, fault
                continue
            for one in found:
                yield number, Left(one) if isinstance(one, str) else one

    return parse_all


def expected(field: str, what: str, found: Any) -> RowFault:
    """The fault of a field that holds something else than `what`."""
    return RowFault(f'field "{field}": expected {what}, found {shown(found)}')


def need(row: Row, *names: str) -> None:
    """Raise `RowFault` unless the row has these columns."""
    for name in names:
        if name not in row:
            raise RowFault(f'field "{name}" is missing')


def object_of(value: Any, field: str) -> Row:
    """An object. Raises `RowFault`."""
    if not isinstance(value, dict):
        raise expected(field, "an object", value)
    return value


def list_of(value: Any, field: str) -> list[Any]:
    """A list; an empty one for null. Raises `RowFault`."""
    if value is not None and not isinstance(value, list):
        raise expected(field, "a list", value)
    return value or []


def text_of(value: Any, field: str) -> str:
    """A text. Raises `RowFault`."""
    if not isinstance(value, str):
        raise expected(field, "a text", value)
    return value


def name_of(value: Any, field: str, otherwise: str = UNNAMED) -> str:
    """A name, a number or several names as one text; `otherwise` if the field is empty.

    Raises:
        RowFault: anything else.
    """
    if value is None or value == "" or value == []:
        return otherwise
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return " ".join(value)  # such as a judge and its prompt: ["gpt-4", "pair-v2"]
    return text_of(value, field)


def messages_of(value: Any, field: str, any_role: bool = False) -> list[Message]:
    """Messages with `role` and `content`, also from ShareGPT's turns and from parts of text.

    Raises:
        RowFault: no list of messages, an unknown role, or content that is no text.
    """
    if not isinstance(value, list) or not value:
        raise expected(field, "a list of messages", value)
    turns = [as_message(turn) for turn in value]
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise RowFault(
                f'field "{field}", message {number}: expected messages with role and content, '
                f"found {shown(turn)}"
            )
        if not any_role and turn["role"] not in ROLES:
            raise RowFault(
                f'field "{field}", message {number}: expected a role of {quoted(ROLES)}, found '
                f"{shown(turn['role'])}"
            )
        turns[number - 1] = turn | {"content": _content(turn.get("content"), field, number)}
    return turns


def _content(content: Any, field: str, number: int) -> str:
    texts = []
    for part in content if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, dict) else part
        image = isinstance(part, dict) and part.get("image") is not None
        if image or not isinstance(text, str):
            found = "an image" if image else shown(content)
            raise RowFault(
                f'field "{field}", message {number}: expected text as content, found {found}'
            )
        texts.append(text)
    if not texts:
        raise RowFault(f'field "{field}", message {number}: expected text as content, found none')
    return "\n".join(texts)


def answer_of(value: Any, field: str) -> str:
    """An answer: a text, or one message of the assistant.

    Raises:
        RowFault: anything else.
    """
    turn = as_message(value)
    if isinstance(turn, dict) and "content" in turn:
        turn = [turn]
    if not isinstance(turn, list):
        return text_of(turn, field)
    turns = messages_of(turn, field)
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        roles = ", ".join(turn["role"] for turn in turns)
        raise RowFault(f'field "{field}": expected one answer of the assistant, found {roles}')
    return turns[0]["content"]


def prompt_of(value: Any, field: str) -> str | list[Message]:
    """A prompt: a text, or messages. Raises `RowFault`."""
    if isinstance(value, list):
        return messages_of(value, field)
    return text_of(value, field)


def refuse_encoded(row: Row, *names: str) -> None:
    """Raise `RowFault` for a field with messages that were written as one text."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and MESSAGES_AS_TEXT.match(value):
            with contextlib.suppress(ValueError, RecursionError):
                if isinstance(json.loads(value), list):
                    found = "found messages written as text; write them as a JSON list"
                    raise RowFault(f'field "{name}": {found}')


def time_of(value: Any, field: str) -> int | None:
    """Milliseconds since 1970, of seconds since 1970, a date, or a date as text (UTC if it names
    no zone); None if there is none.

    Raises:
        RowFault: anything else.
    """
    if value is None or value == "":
        return None
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            zone = value.tzinfo or UTC
            return round(value.replace(tzinfo=zone).timestamp() * 1000)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return round(value * 1000)
    except (ValueError, OverflowError):
        pass
    raise expected(field, "seconds since 1970 or a date", value)


def whole_of(value: Any, field: str) -> int:
    """A whole number, as text as well. Raises `RowFault`."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 16:
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise expected(field, "a whole number", value)
    return value
