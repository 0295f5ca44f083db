"""Rows of data that are wrong: each message names file, line and field."""

import pytest
from datasets import Dataset

from lorarlhf.data import readers as data
from tests.data_steps import (
    ASK,
    BAD,
    CHAT,
    GOOD,
    IMPLICIT,
    PLAIN,
    TEXT_OR_MESSAGES,
    complaint,
    jsonl,
    written,
)


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"chosen": None}, '"chosen"', f"{TEXT_OR_MESSAGES}, found null; fill it in or leave"),
        ({"chosen": " \n"}, '"chosen"', "found blank text; fill it in or leave the row out"),
        ({"prompt": 3}, '"prompt"', f"{TEXT_OR_MESSAGES}, found the number 3; write it as text or"),
        ({"prompt": True}, '"prompt"', "found true; "),
        ({"rejected": {"a": 1}}, '"rejected"', 'found an object with the keys "a"; '),
        ({"chosen": GOOD}, '"chosen"', 'expected text as in "prompt", found messages; use one'),
        ({"chosen": str(GOOD)}, '"chosen"', "found messages written as text, \"[{'role': 'ass"),
        ({"chosen": "Dunno."}, '"rejected"', "ties can't be trained on, leave them out"),
        ({"chosen": GOOD, "rejected": GOOD}, '"rejected"', "ties can't be trained on"),
        ({"margin": "big"}, '"margin"', 'expected a number, found the text "big"; write how'),
        ({"margin": True}, '"margin"', "found true"),
        ({"margin": float("nan")}, '"margin"', "found the number nan"),
        ({"margin": float("inf")}, '"margin"', "found the number inf"),
        ({"margin": 10**400}, '"margin"', f"found the number 1{'0' * 39}; "),
        ({"note": "\ud83d"}, '"note"', "found text with half a character"),
        ({"note": {"n": [2**63]}}, '"note.n[]"', "found a whole number beyond 64 bits"),
    ],
)
def test_preferences_that_are_wrong(tmp_path, change, field, words):
    text = complaint(data.read_preferences, jsonl(tmp_path, PLAIN, "", {**PLAIN, **change}))
    assert text.startswith(f"{tmp_path}/rows.jsonl, line 3, field {field}: ")
    assert words in text
    assert "\n" not in text


def test_64_bit_numbers_are_the_largest_that_are_stored(tmp_path):
    rows = data.read_prompts(jsonl(tmp_path, {"prompt": "a", "n": 2**63 - 1, "m": -(2**63)}))
    assert Dataset.from_list(rows).to_list() == rows
    text = complaint(data.read_prompts, jsonl(tmp_path, {"prompt": "a", "n": -(2**63) - 1}))
    assert 'field "n": found a whole number beyond 64 bits' in text


@pytest.mark.parametrize(
    ("chosen", "place", "words"),
    [
        ([], "", ": expected one message or more, found none; "),
        (["hi"], ", message 1", 'expected {"role": ..., "content": ...}, found the text "hi"'),
        ([*GOOD, {"from": "gpt"}], ", message 2", 'found an object with the keys "from"'),
        ([{"role": "assistant"}], ", message 1", 'found an object with the keys "role"'),
        ([*GOOD, {"role": "bot", "content": "x"}], ", message 2", 'found the text "bot"; rename'),
        ([{"role": "assistant", "content": None}], ", message 1", "text as content, found null"),
        ([{"role": "assistant", "content": [1]}], ", message 1", "text as content, found a list"),
        ([{"role": "assistant", "content": " "}], ", message 1", "as content, found blank text"),
        (GOOD + ASK, ", message 2", 'expected role "assistant", found "user"; leave only the'),
    ],
)
def test_conversations_that_are_wrong(tmp_path, chosen, place, words):
    text = complaint(data.read_preferences, jsonl(tmp_path, CHAT, {**CHAT, "chosen": chosen}))
    assert text.startswith(f'{tmp_path}/rows.jsonl, line 2, field "chosen"{place}: ')
    assert words in text
    reader = data.read_demonstrations
    text = complaint(reader, jsonl(tmp_path, {"prompt": ASK, "completion": chosen}))
    assert text.startswith(f'{tmp_path}/rows.jsonl, line 1, field "completion"{place}: ')


NO_PROMPT = f'field "prompt": {TEXT_OR_MESSAGES}, found no such column'


@pytest.mark.parametrize(
    ("reader", "row", "words"),
    [
        (data.read_prompts, {"Prompt": "Why?", "kind": "q"}, NO_PROMPT),
        (data.read_prompts, {"Prompt": "Why?", "kind": "q"}, '(there is "Prompt", "kind"); rename'),
        (data.read_prompts, {}, "(there is none)"),
        (
            data.read_prompts,
            {"prompt": ASK + GOOD},
            'field "prompt", message 2: expected role "user" at the end, found role "assis',
        ),
        (
            data.read_prompts,
            {"prompt": [{"role": "user", "content": ""}]},
            'field "prompt", message 1: expected text as content',
        ),
        (
            data.read_demonstrations,
            {"question": "Why?", "text": None},
            'line 1, expected "prompt" and "completion", or "messages", or "text", found',
        ),
        (
            data.read_demonstrations,
            {"question": "Why?", "text": None},
            '"question", "text"; rename the columns',
        ),
        (data.read_demonstrations, {}, "found no columns"),
        (
            data.read_demonstrations,
            {"prompt": "Why?", "answer": "x"},
            f'field "completion": {TEXT_OR_MESSAGES}, found no such',
        ),
        (data.read_demonstrations, {"completion": "x"}, 'field "prompt": '),
        (
            data.read_demonstrations,
            {"messages": "hi"},
            'field "messages": expected a list of messages, found the text "hi"',
        ),
        (
            data.read_demonstrations,
            {"messages": ASK},
            'field "messages": expected an assistant message to learn from, found none',
        ),
        (
            data.read_demonstrations,
            {"text": GOOD},
            'field "text": expected text, found a list; write it as text',
        ),
        (data.read_preferences, {"chosen": "a", "rejected": "b", "completion": "c"}, NO_PROMPT),
        (
            data.read_preferences,
            {"chosen": "a", "rejected": "b", "completion": "c"},
            '(there is "chosen", "rejected", "completion")',
        ),
    ],
)
def test_columns_and_fields_that_are_wrong(tmp_path, reader, row, words):
    assert words in complaint(reader, jsonl(tmp_path, row))


ODD = [{"role": "human", "content": "Why?"}]
MORE = "expected one message or more after"


@pytest.mark.parametrize(
    ("chosen", "rejected", "words"),
    [
        (GOOD, BAD, '"prompt": expected a prompt, or "chosen" and "rejected" th'),
        (ASK + GOOD, ASK, f'"rejected": {MORE} those that both answe'),
        (ASK, ASK + GOOD, f'"chosen": {MORE}'),
        (
            ODD + GOOD,
            ODD + BAD,
            '"chosen", message 1: expected a role of "system", "user", "assistant"',
        ),
        (
            ASK + BAD + GOOD,
            ASK + BAD + ASK,
            '"chosen", message 2: expected role "user" at the end',
        ),
        (
            ASK + GOOD,
            ASK + BAD + ASK,
            '"rejected", message 3: expected role "assistant", found "user"',
        ),
    ],
)
def test_implicit_prompts_that_are_wrong(tmp_path, chosen, rejected, words):
    path = jsonl(tmp_path, IMPLICIT, {"chosen": chosen, "rejected": rejected})
    text = complaint(data.read_preferences, path)
    assert text.startswith(f"{path}, line 2, field {words}")
    assert (chosen[0] not in ODD) or 'found the text "human"' in text


def test_three_problems_are_shown_and_the_others_counted(tmp_path):
    wrong = {**PLAIN, "chosen": None}
    lines = complaint(data.read_preferences, jsonl(tmp_path, *[wrong] * 3)).split("\n")
    assert [line.split(", ")[1] for line in lines] == ["line 1", "line 2", "line 3"]
    lines = complaint(data.read_preferences, jsonl(tmp_path, *[wrong] * 15)).split("\n")
    assert len(lines) == 4
    assert lines[3] == "... and 12 more"
    text = complaint(data.read_preferences, jsonl(tmp_path, {**PLAIN, "chosen": 1, "prompt": 2}))
    assert [line.split('"')[1] for line in text.split("\n")] == ["prompt", "chosen"]
    text = complaint(data.read_rows, jsonl(tmp_path, *["x"] * 4))
    assert text.endswith("\n... and 1 more")


@pytest.mark.parametrize("ending", [".json", ".parquet"])
def test_json_and_parquet_count_rows(tmp_path, ending):
    path = written(tmp_path, ending, [{"prompt": "a"}, {"prompt": None}])
    capitals = tmp_path / f"ROWS{ending.upper()}"
    capitals.write_bytes(path.read_bytes())
    for named in (path, capitals):
        text = complaint(data.read_prompts, named)
        assert text.startswith(f'{named}, row 2, field "prompt": ')


@pytest.mark.parametrize(
    ("reader", "one", "other", "expected", "found"),
    [
        (data.read_prompts, {"prompt": "a"}, {"prompt": ASK}, '"prompt" as text', "as messages"),
        (
            data.read_demonstrations,
            {"prompt": "a", "completion": "b"},
            {"text": "c"},
            '"prompt", "completion" as text',
            '"text" as text',
        ),
        (data.read_preferences, PLAIN, CHAT, '"prompt", "chosen", "rejected" as text', "messages"),
        (
            data.read_preferences,
            CHAT,
            IMPLICIT,
            '"prompt", "chosen", "rejected" as messages',
            '"chosen", "rejected" as messages',
        ),
        (
            data.read_preferences,
            {**PLAIN, "margin": 1},
            PLAIN,
            '"prompt", "chosen", "rejected", "margin" as text',
            '"prompt", "chosen", "rejected" as text',
        ),
    ],
)
def test_all_rows_have_one_shape(tmp_path, reader, one, other, expected, found):
    path = jsonl(tmp_path, "", one, one, "", other, one, other)
    text = complaint(reader, path)
    assert text.startswith(f"{path}, line 5: expected {expected} as on line 2, found ")
    assert f"{found}; give all rows of a file the same columns and the same form" in text


@pytest.mark.parametrize(
    ("one", "other", "field", "words"),
    [
        (1, "a7", "x", "expected a number as on line 2, found text; give the column one kind"),
        (1, True, "x", "expected a number as on line 2, found true or false"),
        ({"n": [1]}, {"n": ["a"]}, "x.n[]", "expected a number as on line 2, found text"),
        ([1], {"a": 1}, "x", "expected a list as on line 2, found an object"),
    ],
)
def test_extra_columns_hold_one_kind_of_value(tmp_path, one, other, field, words):
    row = {"prompt": "a"}
    path = jsonl(tmp_path, {**row, "x": None}, {**row, "x": one}, row, {**row, "x": other})
    text = complaint(data.read_prompts, path)
    assert text.startswith(f'{path}, line 4, field "{field}": {words}')
