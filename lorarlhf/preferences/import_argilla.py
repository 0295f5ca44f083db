"""Argilla's records as votes: nested and flat exports of its version 2, and those of version 1.

A record has fields (the prompt, the responses, and others) and answers of raters to questions. A
vote is an answer that names the better response or ranks the responses.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorarlhf.data.file_formats import shown
from lorarlhf.preferences.argilla_fields import find_prompt, plain, response_names
from lorarlhf.preferences.fields import (
    UNNAMED,
    Parsed,
    Row,
    RowFault,
    answer_of,
    expected,
    name_of,
    need,
)
from lorarlhf.preferences.records import (
    BOTH_BAD,
    BOTH_GOOD,
    RANKED,
    STRENGTHS,
    TIE,
    ImportedVote,
    Verdict,
)

UNANSWERED = "records that nobody answered"
OTHER_QUESTION = "records whose answers rank none of the responses"
NOT_SUBMITTED = "answers that were not submitted, or discarded"
BESIDE = {"id", "_server_id", "external_id", "metadata", "vectors", "status", "suggestions"}
"""Columns of a flat export that are no fields."""
SAID = {name: Verdict(TIE) for name in ("tie", "equal", "same", "draw")}
SAID |= {"bothgood": Verdict(BOTH_GOOD), "bothbad": Verdict(BOTH_BAD)}
"""Labels that name no response, and what they say."""
OURS = ("strength", "note", "better-answer")
"""Questions of our own export beside the ranking and the verdict."""


@dataclass(frozen=True)
class Answer:
    """A rater's answer to one question of a record."""

    question: str
    user: str
    value: Any
    entry: Row


def argilla(row: Row) -> Parsed:
    """A record with `fields` and `responses`: by question (version 2), or by rater (version 1)."""
    need(row, "fields", "responses")
    fields = _object(row["fields"], "fields")
    names = response_names(fields)
    prompt, unused = find_prompt(fields)
    found, dropped = _answers(row["responses"])
    metadata = _metadata(row.get("metadata"))
    sources = _sources(metadata.get("sources"), len(names))
    item = name_of(metadata.get("item") or row.get("id") or row.get("external_id"), "id", "record")
    yield from [NOT_SUBMITTED] * dropped
    compared = False
    for answer in found:
        verdict = _verdict(answer.value, names)
        if verdict is None or answer.question in (*OURS, "verdict"):
            continue
        compared = True
        yield ImportedVote(
            prompt=prompt,
            completions=tuple(
                (answer_of(fields[name], f"fields.{name}"), source)
                for name, source in zip(names, sources, strict=True)
            ),
            verdict=_with_ours(verdict, answer, found),
            rater=answer.user,
            item=item,
            origin={"fields": unused} if unused else {},
        )
    if not compared:
        yield OTHER_QUESTION if found else UNANSWERED


# ---- flat exports, a column for each field and question


def is_flat_argilla(row: Row) -> bool:
    """Whether a row is a record of a flat export: `to_list(flatten=True)`, or a data set."""
    return any(
        name.endswith(".responses.users") or _is_answers(value) for name, value in row.items()
    )


def flat_argilla(row: Row) -> Parsed:
    """A record with a column for each field and each question."""
    responses: dict[str, Any] = {}
    for name, value in row.items():
        if name.endswith(".responses"):
            responses[name.removesuffix(".responses")] = _zipped(row, name)
        elif _is_answers(value):
            responses[name] = value
    fields = {
        name: value
        for name, value in row.items()
        if name not in BESIDE | responses.keys()
        and not re.search(r"[.-](responses|suggestion)\b", name)
        and (isinstance(value, str) or _is_chat(value))
    }
    about = {name: row.get(name) for name in ("id", "external_id", "metadata")}
    yield from argilla(about | {"fields": fields, "responses": responses})


def _is_answers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(entry, dict) and {"user_id", "value"} <= entry.keys() for entry in value)
    )


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value)
    )


def _zipped(row: Row, name: str) -> list[Row]:
    """The answers to a question from its three columns: values, raters, and status."""
    values = row[name] or []
    count = len(values) if isinstance(values, list) else 0
    users, status = (row.get(f"{name}.{part}") or [None] * count for part in ("users", "status"))
    columns = (values, users, status)
    if not all(isinstance(column, list) and len(column) == count for column in columns):
        raise RowFault(f'field "{name}": expected as many answers as raters and status')
    return [
        {"value": value, "user_id": user, "status": state}
        for value, user, state in zip(values, users, status, strict=True)
    ]


# ---- answers


def _object(value: Any, field: str) -> Row:
    if not isinstance(value, dict):
        raise expected(field, "an object", value)
    return value


def _metadata(value: Any) -> Row:
    """A record's metadata; as text in the data sets of version 1."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    return value if isinstance(value, dict) else {}


def _sources(value: Any, count: int) -> list[str]:
    """Who wrote each response; our own export says it."""
    known = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return value if known and len(value) == count else [UNNAMED] * count


def _answers(responses: Any) -> tuple[list[Answer], int]:
    """The answers that were submitted, and the number of others."""
    entries = list(_entries(responses))
    for _, entry in entries:
        _object(entry, "responses")
    submitted = [pair for pair in entries if pair[1].get("status") in (None, "submitted")]
    answers = [
        Answer(question, name_of(entry.get("user_id"), "user_id"), entry.get("value"), entry)
        for question, entry in submitted
    ]
    return answers, len(entries) - len(submitted)


def _entries(responses: Any) -> Iterator[tuple[str, Any]]:
    """(question, answer): an answer has `value`, `user_id` and perhaps `status`."""
    if isinstance(responses, dict) and "values" not in responses:
        for question, answers in responses.items():
            if not isinstance(answers, list | None):
                raise expected(f"responses.{question}", "a list of answers", answers)
            yield from ((question, answer) for answer in answers or ())
        return
    raters = [responses] if isinstance(responses, dict) else responses or []
    if not isinstance(raters, list):
        raise expected("responses", "answers by question, or by rater", responses)
    for rater in raters:
        values = _object(rater, "responses").get("values") or {}
        for question, value in _object(values, "responses.values").items():
            inner = value.get("value") if isinstance(value, dict) else value
            yield question, {**rater, "value": inner}


def _verdict(value: Any, names: Sequence[str]) -> Verdict | None:
    """What an answer says of the responses; None if it is the answer to another question."""
    if isinstance(value, str) and plain(value) in SAID:
        return SAID[plain(value)]
    if isinstance(value, str):
        best = _position(value, names)
        others = [place for place in range(len(names)) if place != best]
        return None if best is None else Verdict(RANKED, [[best], others])
    ranked = _ranked(value)
    placed = [(rank, _position(name, names)) for name, rank in ranked]
    if not placed or any(place is None for _, place in placed):
        return None
    tiers = [
        [place for at, place in placed if at == rank and place is not None]
        for rank in sorted({rank for rank, _ in placed})
    ]
    everyone = len(tiers) == 1 and len(tiers[0]) == len(names)
    return Verdict(TIE) if everyone else Verdict(RANKED, tiers)


def _ranked(value: Any) -> list[tuple[Any, float]]:
    """(response, rank) of a ranking in any of Argilla's forms; responses without a rank are left
    out."""
    if isinstance(value, dict) and all(isinstance(value.get(n), list) for n in ("value", "rank")):
        value = [
            {"value": v, "rank": r} for v, r in zip(value["value"], value["rank"], strict=False)
        ]
    if not isinstance(value, list):
        return []
    ranks = []
    for place, entry in enumerate(value, start=1):
        name, rank = (
            (entry.get("value"), entry.get("rank")) if isinstance(entry, dict) else (entry, place)
        )
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int | float)):
            raise RowFault(f'field "rank": expected a number, found {shown(rank)}')
        if rank is not None:
            ranks.append((name, rank))
    return ranks


def _position(value: Any, names: Sequence[str]) -> int | None:
    """Which response is meant, by the field's name, its title ("Response 1"), or its number."""
    if not isinstance(value, str):
        return None
    said, known = plain(value), [plain(name) for name in names]
    numbers = [re.sub(r".*?(\d+|[a-h])$", r"\1", name) for name in known]
    for spelling in (known, numbers):
        if said in spelling:
            return spelling.index(said)
    return next((n for n, name in enumerate(known) if said.endswith(name)), None)


def _with_ours(verdict: Verdict, answer: Answer, found: Sequence[Answer]) -> Verdict:
    """The verdict with what our own export adds to a ranking, in questions beside it."""
    mine = {other.question: other.value for other in found if other.user == answer.user}
    said = mine.get("verdict", answer.entry.get("verdict"))
    if verdict.verdict == TIE and said in (BOTH_GOOD, BOTH_BAD):
        verdict = Verdict(said)
    strength, note, edited = (mine.get(question) for question in OURS)
    return replace(
        verdict,
        strength=strength if strength in STRENGTHS else None,
        note=note if isinstance(note, str) else None,
        edited=edited if isinstance(edited, str) else None,
    )
