"""Data files that can't be read: what is wrong with them, and where."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from lorarlhf.data import readers as data
from lorarlhf.runtime.files import append_jsonl, write_jsonl
from tests.data_steps import PLAIN, complaint, jsonl, text_file, written


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
    write_jsonl("~/demos.jsonl", [{"text": "a"}])
    append_jsonl("~/demos.jsonl", {"text": "b"})
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


def test_a_list_over_several_lines_is_no_jsonl(tmp_path):
    rows = [{"prompt": f"{n}?"} for n in range(3)]
    text = complaint(data.read_rows, text_file(tmp_path, "a.jsonl", json.dumps(rows, indent=1)))
    assert text == (
        f"{tmp_path}/a.jsonl: expected one object a line, found one list of 3 rows over all lines; "
        "name the file .json"
    )
    cut = text_file(tmp_path, "cut.jsonl", json.dumps(rows, indent=1)[:-5])
    assert "line 1, column 2: broken JSON" in complaint(data.read_rows, cut)


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
