"""Reading demonstrations, prompts and preferences: every form, every format, every complaint."""

import csv
import io
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset

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


# Forms and formats that are read


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize(
    ("reader", "row"),
    [
        (data.read_prompts, {"prompt": 'Wörüber, "quoted"\nand broken?', "kind": "question"}),
        (data.read_prompts, {"prompt": ASK, "kind": "question"}),
        (data.read_demonstrations, {"prompt": "Why?", "completion": "Because.", "kind": "q"}),
        (data.read_demonstrations, {"prompt": ASK, "completion": GOOD}),
        (data.read_demonstrations, {"messages": ASK + GOOD}),
        (data.read_demonstrations, {"text": "Once upon a time."}),
        (data.read_preferences, PLAIN),
        (data.read_preferences, CHAT),
        (data.read_preferences, {**PLAIN, "margin": 0.5}),
    ],
)
def test_every_form_in_every_format(tmp_path, ending, reader, row):
    rows = reader(written(tmp_path, ending, [row, row]))
    assert rows == [row, row]
    assert Dataset.from_list(rows).to_list() == rows


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_implicit_prompt_is_what_both_answers_begin_with(tmp_path, ending):
    before = [{"role": "system", "content": ""}, *ASK, *BAD, *ASK]
    row = {"chosen": before + GOOD, "rejected": before + BAD + GOOD, "kind": "q"}
    rows = data.read_preferences(written(tmp_path, ending, [row]))
    assert rows == [{"prompt": before, "chosen": GOOD, "rejected": BAD + GOOD, "kind": "q"}]


def test_a_null_prompt_counts_as_an_implicit_one(tmp_path):
    assert data.read_preferences(jsonl(tmp_path, {**IMPLICIT, "prompt": None})) == [CHAT]


def test_json_may_wrap_its_rows_in_data(tmp_path):
    path = text_file(tmp_path, "rows.json", json.dumps({"version": 2, "data": [PLAIN]}))
    assert data.read_preferences(path) == [PLAIN]
    assert data.read_rows(path) == [(1, PLAIN)]


def test_endings_may_be_written_in_capitals(tmp_path):
    assert data.read_rows(jsonl(tmp_path, PLAIN, name="ROWS.JSONL")) == [(1, PLAIN)]
    (tmp_path / "ROWS.PARQUET").write_bytes(written(tmp_path, ".parquet", [PLAIN]).read_bytes())
    assert data.read_preferences(tmp_path / "ROWS.PARQUET") == [PLAIN]


def test_text_file_holds_one_prompt_a_line(tmp_path):
    path = text_file(tmp_path, "prompts.TXT", "\ufeff Why?\r\n\r\nHow?")
    assert data.read_prompts(path) == [{"prompt": "Why?"}, {"prompt": "How?"}]
    path = text_file(tmp_path, "prompts.txt", "Why?\n\n" + json.dumps(ASK))
    text = complaint(data.read_prompts, path)
    assert text.startswith(f'{path}, line 3, field "prompt": ')
    assert "found messages written as text" in text


def test_byte_order_mark_blank_lines_and_line_separators_in_jsonl(tmp_path):
    text = '\ufeff{"prompt": "a\u2028b"}\r\n \n\n{"prompt": "c"}'
    path = text_file(tmp_path, "rows.jsonl", text)
    assert data.read_rows(path) == [(1, {"prompt": "a\u2028b"}), (4, {"prompt": "c"})]
    assert data.read_prompts(path)[0] == {"prompt": "a\u2028b"}


def test_csv_line_numbers_count_blank_lines_and_lines_inside_cells(tmp_path):
    text = '\ufeff\n prompt ,kind\r\n"one\ntwo\nthree",a\n\n\nfour,b\n"five ""5"", six",c\n'
    assert data.read_rows(text_file(tmp_path, "rows.csv", text)) == [
        (3, {"prompt": "one\ntwo\nthree", "kind": "a"}),
        (8, {"prompt": "four", "kind": "b"}),
        (9, {"prompt": 'five "5", six', "kind": "c"}),
    ]


def test_csv_cells_longer_than_pythons_limit_are_read_and_the_limit_is_put_back(tmp_path):
    before = csv.field_size_limit()
    path = text_file(tmp_path, "rows.csv", "text\n" + "a" * (before + 1) + "\n")
    assert len(data.read_demonstrations(path)[0]["text"]) == before + 1
    assert csv.field_size_limit() == before


def test_csv_cells_that_hold_other_json_or_stand_in_other_columns_stay_text(tmp_path):
    cell = json.dumps([{"role": "user", "content": "x"}])
    other = '[{"a": 1}]'
    row = {"prompt": other, "note": cell}
    assert data.read_prompts(written(tmp_path, ".csv", [row])) == [row]


def test_csv_cells_with_messages_that_are_not_json_are_named(tmp_path):
    path = written(tmp_path, ".csv", [{"prompt": str(ASK), "note": "x"}])
    text = complaint(data.read_prompts, path)
    assert text.startswith(f'{path}, line 2, field "prompt": expected text or a list of messages, ')
    assert "found messages written as text, \"[{'role': 'user'" in text


def test_csv_margins_become_numbers_and_empty_ones_count_as_absent(tmp_path):
    head = "prompt,chosen,rejected,margin\n"
    rows = data.read_preferences(text_file(tmp_path, "a.csv", head + "q,a,b,2\nq,a,c,-.5\n"))
    assert [row["margin"] for row in rows] == [2.0, -0.5]
    rows = data.read_preferences(text_file(tmp_path, "b.csv", head + "q,a,b, \n"))
    assert rows == [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    text = complaint(data.read_preferences, text_file(tmp_path, "c.csv", head + "q,a,b,big\n"))
    assert 'c.csv, line 2, field "margin": expected a number, found the text "big"' in text


def test_whole_margins_become_floats(tmp_path):
    [row] = data.read_preferences(jsonl(tmp_path, {**PLAIN, "margin": 2}))
    assert isinstance(row["margin"], float)


def test_extra_columns_are_kept_and_filled_up_so_that_all_rows_have_them(tmp_path):
    path = jsonl(tmp_path, {"prompt": "a", "n": 1}, {"prompt": "b", "n": 2.5, "tags": ["x"]})
    rows = data.read_prompts(path)
    assert rows == [
        {"prompt": "a", "n": 1, "tags": None},
        {"prompt": "b", "n": 2.5, "tags": ["x"]},
    ]
    assert Dataset.from_list(rows)["tags"][1] == ["x"]


def test_columns_that_would_mislead_trl_are_left_out_but_reward_functions_get_theirs(tmp_path):
    row = {**CHAT, "messages": ASK + GOOD, "completion": "x", "label": True, "score": 3}
    path = jsonl(tmp_path, row)
    assert data.read_preferences(path) == [{**CHAT, "score": 3}]
    assert data.read_demonstrations(jsonl(tmp_path, {"prompt": "a", "messages": ASK + GOOD})) == [
        {"messages": ASK + GOOD}
    ]
    assert data.read_prompts(jsonl(tmp_path, {"prompt": "a", "completion": "b"})) == [
        {"prompt": "a", "completion": "b"}
    ]


@pytest.mark.parametrize("last", ["user", "system", "tool"])
def test_prompts_end_with_anyone_but_the_assistant(tmp_path, last):
    prompt = [*ASK, *GOOD, {"role": last, "content": "And?"}]
    assert data.read_prompts(jsonl(tmp_path, {"prompt": prompt})) == [{"prompt": prompt}]


def test_keys_of_messages_that_are_not_ours_are_kept(tmp_path):
    prompt = [{"role": "user", "content": "Why?", "name": "Ann"}]
    assert data.read_prompts(jsonl(tmp_path, {"prompt": prompt})) == [{"prompt": prompt}]


# Files that cannot be read


def test_missing_file_names_its_neighbours(tmp_path):
    jsonl(tmp_path, PLAIN, name="Prompts.JSONL")
    text = complaint(data.read_prompts, tmp_path / "PROMTS.jsonl")
    assert text == f"{tmp_path}/PROMTS.jsonl: no such file; did you mean Prompts.JSONL?"
    text = complaint(data.read_rows, tmp_path / "qqq.csv")
    assert f"no file in {tmp_path} has a name like it" in text
    text = complaint(data.read_rows, tmp_path / "no" / "prompts.jsonl")
    assert f"the folder {tmp_path}/no is not there either" in text


def test_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    text_file(tmp_path, "prompts.txt", "Why?")
    assert data.read_prompts("~/prompts.txt") == [{"prompt": "Why?"}]
    jsonl(tmp_path, {"prompt": " "})
    for reader in (data.read_prompts, data.read_demonstrations, data.read_preferences):
        assert complaint(reader, "~/rows.jsonl").startswith(f"{tmp_path}/rows.jsonl, line 1, ")
    data.write_jsonl("~/demos.jsonl", [{"text": "a"}])
    data.append_jsonl("~/demos.jsonl", {"text": "b"})
    assert data.read_demonstrations("~/demos.jsonl") == [{"text": "a"}, {"text": "b"}]


def test_folders_and_paths_through_files(tmp_path):
    assert "expected a file, found a folder" in complaint(data.read_rows, tmp_path)
    path = jsonl(tmp_path, PLAIN)
    assert "cannot be read (Not a directory)" in complaint(data.read_rows, path / "rows.jsonl")


def test_unknown_endings(tmp_path):
    text = complaint(data.read_prompts, text_file(tmp_path, "rows.tsv", "prompt\nx\n"))
    assert "expected a file ending in .jsonl, .json, .csv or .parquet, found" in text
    assert 'found ".tsv", which is not a kind that can be read' in text
    text = complaint(data.read_demonstrations, text_file(tmp_path, "rows.txt", "x\n"))
    assert 'found ".txt", which holds prompts only' in text


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet", ".txt"])
@pytest.mark.parametrize("content", ["", " \n\n", "\ufeff\n"])
def test_empty_files(tmp_path, ending, content):
    text = complaint(data.read_prompts, text_file(tmp_path, f"rows{ending}", content))
    assert text == f"{tmp_path}/rows{ending}: expected rows, found an empty file; add rows to it"


def test_files_without_rows(tmp_path):
    wanted = "expected at least one row, found none"
    assert wanted in complaint(data.read_rows, text_file(tmp_path, "a.csv", "prompt,kind\n"))
    assert wanted in complaint(data.read_rows, text_file(tmp_path, "a.json", '{"data": []}'))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": []}), tmp_path / "a.parquet")
    assert wanted in complaint(data.read_rows, tmp_path / "a.parquet")


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".txt"])
def test_other_encodings_name_the_byte(tmp_path, ending):
    path = tmp_path / f"rows{ending}"
    path.write_bytes(b"\none\r\ncaf\xe9\xe8\n")
    text = complaint(data.read_prompts, path)
    assert f"{path}, line 3: expected UTF-8, found 0xe9 at byte offset 9 of the file" in text
    path.write_bytes(b"\xef\xbb\xbfone\n\ncaf\xe9\n")
    assert complaint(data.read_prompts, path) == (
        f"{path}, line 3: expected UTF-8, found 0xe9 at byte offset 11 of the file; "
        "save the file as UTF-8"
    )


def test_broken_json_lines_name_line_column_and_what_was_found(tmp_path):
    path = jsonl(tmp_path, "", PLAIN, "  {'prompt': 1}\r", '{"prompt": "a"', "{", name="a.jsonl")
    first, second, third = complaint(data.read_rows, path).split("\n")
    assert first.startswith(f"{path}, line 3, column 4: broken JSON, ")
    assert "found \"'prompt': 1}\"; each line must hold one whole JSON object" in first
    assert second.startswith(f"{path}, line 4, column 15: broken JSON, Expecting ',' delimiter")
    assert "found the end of the line" in second
    assert third.startswith(f"{path}, line 5, column ")
    assert "found the end of the line" in third


def test_long_excerpts_are_cut(tmp_path):
    text = complaint(data.read_rows, jsonl(tmp_path, "x" * 41))
    assert f'found "{"x" * 40}…"; ' in text
    assert f'found "{"x" * 40}"; ' in complaint(data.read_rows, jsonl(tmp_path, "x" * 40))


@pytest.mark.parametrize("value", ["[" * 100_000, "1" * 5000])
def test_json_that_python_gives_up_on(tmp_path, value):
    text = complaint(data.read_rows, jsonl(tmp_path, "", f'{{"prompt": {value}'))
    assert text.startswith(f"{tmp_path}/rows.jsonl, line 2: broken JSON, nested too deeply or a")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("[1]", "a list"),
        ('"hello"', 'the text "hello"'),
        ("null", "null"),
        ("true", "true"),
        ("3.5", "the number 3.5"),
    ],
)
def test_lines_and_rows_that_are_not_objects(tmp_path, line, found):
    text = complaint(data.read_rows, jsonl(tmp_path, PLAIN, "", line))
    assert f"rows.jsonl, line 3: expected an object, found {found}; " in text
    path = text_file(tmp_path, "rows.json", f"[{json.dumps(PLAIN)},\n\n\n{line}]")
    text = complaint(data.read_rows, path)
    assert f"rows.json, row 2: expected an object, found {found}; " in text


def test_broken_json_files(tmp_path):
    text = complaint(data.read_rows, text_file(tmp_path, "e.json", "[" * 100_000))
    assert text.startswith(f"{tmp_path}/e.json: broken JSON, nested too deeply or a number too")
    text = complaint(data.read_rows, text_file(tmp_path, "a.json", '[{"a": 1},\n {"b" 2}]'))
    assert "a.json, line 2, column 7: broken JSON, Expecting ':' delimiter, found \"2}]\"" in text
    text = complaint(data.read_rows, jsonl(tmp_path, PLAIN, PLAIN, name="b.json"))
    assert "b.json, line 2, column 1: broken JSON, Extra data" in text
    assert "one object a line belongs in a .jsonl file" in text
    text = complaint(data.read_rows, jsonl(tmp_path, PLAIN, name="c.json"))
    assert 'found an object with the keys "prompt", "chosen", "rejected"' in text
    assert '{"data": [...]}' in text
    text = complaint(data.read_rows, text_file(tmp_path, "d.json", '{"data": {}}'))
    assert "expected a list of objects, found an empty object" in text


def test_csv_headers_and_cells(tmp_path):
    def says(text: str) -> str:
        return complaint(data.read_rows, text_file(tmp_path, "a.csv", text))

    assert 'a.csv, line 2: the column "kind" occurs twice' in says("\nkind,prompt,kind \na,b,c\n")
    text = says("prompt;kind\na,b;c\nd;e\n")
    assert 'line 1: expected commas between the columns, found "prompt;kind"' in text
    assert "\n" not in text
    text = says('prompt,kind\n"a\nb",c\n\nd\ne,f,g\nh,i\n')
    first, second = text.split("\n")
    assert 'a.csv, line 5: expected 2 cells ("prompt", "kind"), found 1; put quotes' in first
    assert "a.csv, line 6: " in second
    assert "found 3" in second


@pytest.mark.parametrize("broken", ['"open, \nb\nc\n', '"shut" again,b\n'])
def test_csv_with_broken_quotes(tmp_path, broken):
    path = text_file(tmp_path, "a.csv", 'prompt,kind\n"a\nb",c\n\n' + broken)
    text = complaint(data.read_rows, path)
    assert text.startswith(f"{path}, line 5: broken CSV (")
    assert "put quotes around the whole cell" in text


def test_broken_parquet(tmp_path):
    whole = written(tmp_path, ".parquet", [PLAIN] * 50).read_bytes()
    for content in (b"not parquet at all", whole[: len(whole) // 2]):
        (tmp_path / "a.parquet").write_bytes(content)
        text = complaint(data.read_preferences, tmp_path / "a.parquet")
        assert "expected a parquet file, found broken content (" in text
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["prompt", "prompt"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    text = complaint(data.read_prompts, tmp_path / "a.parquet")
    assert 'a.parquet: the column "prompt" occurs twice' in text


# Rows that are wrong


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


def test_prompts_that_are_wrong(tmp_path):
    def says(row) -> str:
        return complaint(data.read_prompts, jsonl(tmp_path, row))

    text = says({"Prompt": "Why?", "kind": "q"})
    assert 'field "prompt": expected text or a list of messages, found no such column' in text
    assert '(there is "Prompt", "kind"); rename a column' in text
    assert "(there is none)" in says({})
    text = says({"prompt": ASK + GOOD})
    assert 'field "prompt", message 2: expected role "user" at the end, found role "assis' in text
    assert 'field "prompt", message 1: expected text as content' in says(
        {"prompt": [{"role": "user", "content": ""}]}
    )


def test_demonstrations_that_are_wrong(tmp_path):
    def says(row) -> str:
        return complaint(data.read_demonstrations, jsonl(tmp_path, row))

    text = says({"question": "Why?", "text": None})
    assert 'line 1, expected "prompt" and "completion", or "messages", or "text", found' in text
    assert '"question", "text"; rename the columns' in text
    assert "found no columns" in says({})
    assert 'field "completion": expected text or a list of messages, found no such' in says(
        {"prompt": "Why?", "answer": "x"}
    )
    assert 'field "prompt": ' in says({"completion": "x"})
    assert 'field "messages": expected a list of messages, found the text "hi"' in says(
        {"messages": "hi"}
    )
    assert 'field "messages": expected an assistant message to learn from, found none' in says(
        {"messages": ASK}
    )
    assert 'field "text": expected text, found a list; write it as text' in says({"text": GOOD})


def test_implicit_prompts_that_are_wrong(tmp_path):
    def says(chosen, rejected) -> str:
        path = jsonl(tmp_path, IMPLICIT, {"chosen": chosen, "rejected": rejected})
        text = complaint(data.read_preferences, path)
        assert text.startswith(f"{path}, line 2, field ")
        return text.removeprefix(f"{path}, line 2, field ")

    assert says(GOOD, BAD).startswith('"prompt": expected a prompt, or "chosen" and "rejected" th')
    text = says(ASK + GOOD, ASK)
    assert text.startswith('"rejected": expected one message or more after those that both answe')
    assert says(ASK, ASK + GOOD).startswith('"chosen": expected one message or more after')
    odd = [{"role": "human", "content": "Why?"}]
    text = says(odd + GOOD, odd + BAD)
    assert text.startswith('"chosen", message 1: expected a role of "system", "user", "assistant"')
    assert 'found the text "human"' in text
    text = says(ASK + BAD + GOOD, ASK + BAD + ASK)
    assert text.startswith('"chosen", message 2: expected role "user" at the end')
    text = says(ASK + GOOD, ASK + BAD + ASK)
    assert text.startswith('"rejected", message 3: expected role "assistant", found "user"')


def test_plain_preferences_need_their_prompt(tmp_path):
    path = jsonl(tmp_path, {"chosen": "a", "rejected": "b", "completion": "c"})
    text = complaint(data.read_preferences, path)
    assert 'field "prompt": expected text or a list of messages, found no such column' in text
    assert '(there is "chosen", "rejected", "completion")' in text


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


# Helpers


def test_conversation_and_text():
    assert data.as_conversation("Why?") == ASK
    copy = data.as_conversation(ASK)
    assert copy == ASK
    copy[0]["content"] = "changed"
    assert ASK[0]["content"] == "Why?"
    assert data.as_text("Because.") == "Because."
    assert data.as_text(GOOD) == "Because."
    assert data.as_text(GOOD + BAD) == "Because.\nDunno."


def test_split_keeps_prompts_together_and_the_order():
    rows = [{"prompt": f"p{n % 10}", "n": n} for n in range(40)]
    train, held = data.split_by_prompt(rows, 0.25, seed=0)
    assert len({row["prompt"] for row in held}) == 3  # 2.5 prompts, rounded up
    assert {row["prompt"] for row in train}.isdisjoint(row["prompt"] for row in held)
    assert sorted(train + held, key=lambda row: row["n"]) == rows
    assert [row["n"] for row in held] == sorted(row["n"] for row in held)
    assert [row["n"] for row in train] == sorted(row["n"] for row in train)
    assert data.split_by_prompt(rows, 0.25, seed=0) == (train, held)
    others = [data.split_by_prompt(rows, 0.25, seed=seed)[1] for seed in range(1, 6)]
    assert any(other != held for other in others)


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_split_leaves_neither_part_empty(fraction):
    rows: list[dict] = [{"prompt": ASK}, {"prompt": "Why?"}]
    train, held = data.split_by_prompt(rows, fraction, seed=3)
    assert len(train) == len(held) == 1
    assert data.split_by_prompt(rows[:1] * 4, fraction, seed=3) == (rows[:1] * 4, [])
    many = [{"prompt": f"p{n}"} for n in range(10)]
    sizes = {0.01: 1, 0.5: 5, 0.99: 9}
    assert len(data.split_by_prompt(many, fraction, seed=3)[1]) == sizes[fraction]
    assert data.split_by_prompt([], fraction, seed=3) == ([], [])


def test_split_knows_conversations_and_texts():
    turned = [{"content": "Why?", "role": "user"}]
    rows = [{"messages": ASK + GOOD}, {"messages": turned + BAD}]
    assert data.split_by_prompt(rows, 0.5, seed=0) == (rows, [])
    rows = [{"messages": ASK + GOOD}, {"messages": ASK + ASK + GOOD}]
    assert [len(part) for part in data.split_by_prompt(rows, 0.5, seed=0)] == [1, 1]
    rows = [{"prompt": ASK}, {"prompt": turned}]
    assert data.split_by_prompt(rows, 0.5, seed=0) == (rows, [])
    train, held = data.split_by_prompt([{"text": "a"}, {"text": "b"}, {"text": "a"}], 0.5, seed=0)
    assert sorted([len(train), len(held)]) == [1, 2]


def test_split_is_the_same_in_every_process():
    code = (
        "from lorarlhf import data; rows = [{'prompt': f'p{n}'} for n in range(30)]\n"
        "print([row['prompt'] for row in data.split_by_prompt(rows, 0.2, 7)[1]])"
    )
    shown = {run_python(code, PYTHONHASHSEED=seed) for seed in ("0", "1", "2")}
    assert len(shown) == 1


def test_a_new_prompt_moves_at_most_one_other():
    rows = [{"prompt": f"p{n}"} for n in range(50)]
    held = {row["prompt"] for row in data.split_by_prompt(rows, 0.2, seed=1)[1]}
    more = [*rows, {"prompt": "new"}]
    after = {row["prompt"] for row in data.split_by_prompt(more, 0.2, seed=1)[1]}
    assert len(held) == len(after) == 10
    assert len(held ^ after) <= 2


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_split_wants_a_fraction(fraction):
    with pytest.raises(UserError, match=f"must lie between 0 and 1, found {fraction}"):
        data.split_by_prompt([{"prompt": "a"}], fraction, seed=0)


def test_written_rows_are_utf8_lines_and_read_back(tmp_path):
    path = tmp_path / "new" / "folder" / "rows.jsonl"
    rows: list[dict] = [{"prompt": "Grüße 👋\nzwei\u2028drei"}, {"prompt": "half \ud83d", "n": 1}]
    data.write_jsonl(path, rows)
    assert path.read_bytes() == (
        '{"prompt": "Grüße 👋\\nzwei\u2028drei"}\n{"prompt": "half \\ud83d", "n": 1}\n'.encode()
    )
    assert [row for _, row in data.read_rows(path)] == rows
    assert os.listdir(path.parent) == ["rows.jsonl"]


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = jsonl(tmp_path, PLAIN)
    before = path.read_bytes()
    with pytest.raises(TypeError, match="set has no place in JSON"):
        data.write_jsonl(path, [PLAIN, {"prompt": {1}}])

    def full(descriptor: int) -> None:
        assert os.fstat(descriptor).st_size > 0  # all rows have left Python's buffer by then
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"rows\.jsonl: cannot be written \(No space left on dev"):
        data.write_jsonl(path, [CHAT])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_writing_below_a_file_is_a_mistake_of_the_user(tmp_path):
    path = jsonl(tmp_path, PLAIN)
    for write in (lambda p: data.write_jsonl(p, [PLAIN]), lambda p: data.append_jsonl(p, PLAIN)):
        assert "cannot be written (" in complaint(write, path / "rows.jsonl")


def test_appending_adds_a_line_and_spares_one_that_was_cut_off(tmp_path):
    path = tmp_path / "new" / "folder" / "log.jsonl"
    data.append_jsonl(path, {"step": 1, "day": date(2026, 1, 2)})
    data.append_jsonl(path, {"step": 2, "text": "é"})
    assert (
        path.read_bytes() == '{"step": 1, "day": "2026-01-02"}\n{"step": 2, "text": "é"}\n'.encode()
    )
    path.write_bytes(b'{"step": 1}\n{"ste')
    data.append_jsonl(path, {"step": 3})
    assert path.read_bytes() == b'{"step": 1}\n{"ste\n{"step": 3}\n'


def test_bundled_files_are_read_by_name():
    path = data.bundled("prompts.jsonl")
    assert path == data.bundled("prompts")
    assert len(data.read_prompts(path)) >= 200
    assert len(data.read_prompts(data.bundled("prompts_heldout"))) == 60
    assert len(data.read_demonstrations(data.bundled("demonstrations"))) >= 60
    text = complaint(data.bundled, "poems")
    assert (
        'no data file "poems.jsonl" comes with lorarlhf; there are "demonstrations.jsonl", ' in text
    )


def test_bundled_files_come_from_the_installed_package_or_the_checkout(tmp_path, monkeypatch):
    jsonl(tmp_path, PLAIN, name="prompts.jsonl")
    monkeypatch.setattr(data.resources, "files", lambda package: tmp_path)
    assert data.bundled("prompts") == tmp_path / "prompts.jsonl"

    def not_installed(package: str) -> Path:
        raise ModuleNotFoundError(package)

    monkeypatch.setattr(data.resources, "files", not_installed)
    assert data.bundled("prompts").parent.parts[-2:] == ("recipes", "data")
    monkeypatch.setattr(data, "__file__", str(tmp_path / "lorarlhf" / "data" / "readers.py"))
    assert "its data are missing, install it again" in complaint(data.bundled, "prompts")


def test_import_is_light():
    code = "import sys, lorarlhf.data; print({'torch', 'pyarrow', 'datasets'} & set(sys.modules))"
    assert run_python(code) == "set()\n"


def run_python(code: str, **environment: str) -> str:
    root = str(Path(data.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout
