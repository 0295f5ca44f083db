"""Files of votes with values of odd kinds end in votes, or in an error that names the line."""

import contextlib
import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.data.readers import (
    read_demonstrations,
    read_labelled,
    read_preferences,
    read_prompts,
)
from lorarlhf.preferences.imports import read_votes
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_jsonl

TALK = [{"role": "user", "content": "Hi"}]
A, B = ({"role": "assistant", "content": text} for text in ("Yes.", "No."))
SHAREGPT = {"from": "human", "value": "Hi"}
FORMS: dict[str, dict[str, Any]] = {
    "own": {
        "prompt": TALK,
        "completions": [{"text": "Yes.", "source": "base", "sampling": {}}] * 2,
        "verdict": "ranked",
        "ranking": [[0], [1]],
        "strength": None,
        "note": None,
        "edited": None,
        "rater": "ann",
        "item": 1,
        "shown": [0, 1],
        "milliseconds": 5,
        "created_at": 6,
        "purpose": "train",
        "origin": {},
        "presentation": 1,
        "repeats": None,
    },
    "arena": {
        "question_id": "q",
        "model_a": "one",
        "model_b": "two",
        "winner": "model_a",
        "judge": "ann",
        "conversation_a": [*TALK, A],
        "conversation_b": [*TALK, B],
        "tstamp": 1.5,
    },
    "argilla": {
        "id": "1",
        "fields": {"prompt": "Hi", "response-1": "Yes.", "response-2": "No."},
        "metadata": {"sources": ["one", "two"]},
        "responses": {
            "ranking": [
                {
                    "value": [
                        {"value": "response-1", "rank": 1},
                        {"value": "response-2", "rank": 2},
                    ],
                    "user_id": "ann",
                }
            ]
        },
    },
    "sharegpt": {
        "conversations": [SHAREGPT],
        "chosen": {"from": "gpt", "value": "Yes."},
        "rejected": {"from": "gpt", "value": "No."},
        "system": "Be brief.",
    },
    "kto": {"prompt": TALK, "completion": [A], "label": True},
    "trl": {"prompt": TALK, "chosen": [A], "rejected": [B], "margin": 1.0},
    "implicit": {"chosen": [*TALK, A], "rejected": [*TALK, B]},
    "hh": {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Yes.",
        "rejected": "\n\nHuman: Hi\n\nAssistant: No.",
    },
    "llmfao": {
        "id": 1,
        "winner": "left",
        "worker": 3,
        "left": "one",
        "right": "two",
        "model_x": "one",
    },
}
IMPORTS = Path(__file__).parent / "data/imports"


def first_of(name: str, place: int = 0) -> dict[str, Any]:
    """A row of a small file in another program's shape."""
    text = (IMPORTS / name).read_text(encoding="utf-8")
    value = json.loads(text) if name.endswith(".json") else json.loads(text.split("\n")[place])
    return value[place] if isinstance(value, list) else value


FORMS |= {
    "open-webui": first_of("open_webui.json", 8),
    "open-webui-arena": first_of("open_webui.json", 5),
    "label-studio": first_of("label_studio.json"),
    "trees": first_of("openassistant_trees.jsonl"),
    "ultrafeedback": first_of("ultrafeedback.jsonl"),
    "distilabel": first_of("distilabel_ratings.jsonl"),
    "arena-140k": first_of("arena_140k.jsonl", 2),
    "arena-table": {
        **{"id": 1, "model_a": "one", "model_b": "two", "prompt": '["Hi"]', "winner_tie": 0},
        **{"response_a": '["Yes."]', "response_b": '["No."]'},
        **{"winner_model_a": 1, "winner_model_b": 0},
    },
    "text-generation": first_of("text_generation_webui.json"),
}
TOGETHER = {  # forms whose rows are one conversation
    "chat log": "sillytavern.jsonl",
    "messages": "openassistant_messages.jsonl",
}
ANSWERS = {"id": 1, "text": "Hi", "result_x": "Yes.", "result_y": "No.", "slug": "s"}
ODD: list[Any] = [None, True, 3, -1.5, 1e308, "", "odd", [], {}, [None], [[]], ["x"], [{}]]
ODD += [{"a": 1}, {"value": None}, [{"role": 1, "content": None}], [{"value": "x"}], "\ud83d"]
RAW = re.compile(
    "object (has|is|of|does)|indices must|zip|sequence item|subscriptable|unhashable|instance|"
    "argument|operand|iterable|invalid literal|codec|index out of|unpack|Error|concatenate|NaN"
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of a value and of everything in it."""
    yield path
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*path, key))


def changed(row: dict[str, Any], path: tuple[Any, ...], odd: Any) -> dict[str, Any]:
    made = copy.deepcopy(row)
    inside = made
    for key in path[:-1]:
        inside = inside[key]
    if odd is ...:
        del inside[path[-1]]
    else:
        inside[path[-1]] = odd
    return made


@pytest.mark.parametrize("form", FORMS)
def test_odd_values_are_votes_or_named_with_their_line(form: str, tmp_path: Path) -> None:
    row, file, refused = FORMS[form], tmp_path / "votes.jsonl", 0
    write_jsonl(tmp_path / "pairs-crowd.jsonl", [ANSWERS])
    write_jsonl(file, [row, row])
    whole = read_votes(file)
    assert whole.votes or whole.candidates
    for path in list(places(row))[1:]:
        for odd in (..., *ODD):
            text = [json.dumps(row), json.dumps(changed(row, path, odd))]
            file.write_text("\n".join(text), encoding="utf-8")
            try:
                read_votes(file)
            except UserError as error:
                refused += 1
                said = str(error)
                assert said.startswith(f"{file}, line 2"), (path, odd, said)
                quoted = re.sub(r"an (empty )?object", "", said.removeprefix(f"{file}, line 2"))
                assert not RAW.search(re.sub('"[^"]*"', "", quoted)), (path, odd, said)
    assert refused > 5


@pytest.mark.parametrize("form", TOGETHER)
def test_odd_values_in_one_row_of_a_conversation_are_named(form: str, tmp_path: Path) -> None:
    text = (IMPORTS / TOGETHER[form]).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    file, refused = tmp_path / "chat.jsonl", 0
    for number, row in enumerate(rows, start=1):
        if number > 4:  # the others are of the same kinds
            break
        for path in list(places(row))[1:]:
            for odd in (..., *ODD):
                lines = [*rows[: number - 1], changed(row, path, odd), *rows[number:]]
                file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
                try:
                    read_votes(file)
                except UserError as error:
                    refused += 1
                    assert re.match(rf"{re.escape(str(file))}, line \d+, field", str(error))
                    assert not RAW.search(re.sub('"[^"]*"|an (empty )?object', "", str(error)))
    assert refused > 5


READERS: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "demonstrations": (
        read_demonstrations,
        [{"prompt": TALK, "completion": [A]}, {"messages": [*TALK, A], "tools": "[]"}]
        + [{"conversations": [SHAREGPT, {"from": "gpt", "value": "Yes."}], "system": "Be brief."}],
    ),
    "preferences": (
        read_preferences,
        [FORMS["trl"], FORMS["implicit"], FORMS["hh"], FORMS["sharegpt"]]
        + [{"prompt": "Hi", "chosen": [*TALK, A], "rejected": [*TALK, B], "system": "Be brief."}],
    ),
    "labelled": (read_labelled, [FORMS["kto"], FORMS["trl"]]),
    "prompts": (read_prompts, [{"prompt": TALK}, {"prompt": "Hi", "chat_template_kwargs": {}}]),
}


@pytest.mark.parametrize("name", READERS)
def test_the_readers_of_rows_name_the_line_of_odd_values(name: str, tmp_path: Path) -> None:
    read, rows = READERS[name]
    file = tmp_path / "rows.jsonl"
    for row in rows:
        for path in list(places(row))[1:]:
            for odd in (..., *ODD):
                text = [json.dumps(row), json.dumps(changed(row, path, odd))]
                file.write_text("\n".join(text), encoding="utf-8")
                with contextlib.suppress(UserError):
                    read(file)


@pytest.mark.parametrize("form", FORMS)
def test_an_odd_first_row_names_its_line_or_the_columns(form: str, tmp_path: Path) -> None:
    row, file = FORMS[form], tmp_path / "votes.jsonl"
    write_jsonl(tmp_path / "pairs-crowd.jsonl", [ANSWERS])
    for name in row:
        for odd in (None, [], {}, 3, [None]):
            write_jsonl(file, [row | {name: odd}])
            try:
                read_votes(file)
            except UserError as error:
                assert re.search("line 1, |match no known form", str(error)), (name, odd, error)
