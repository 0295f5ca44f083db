"""Reading demonstrations, prompts and preferences: every form in every format."""

import csv
import json
from pathlib import Path

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
    complaint,
    jsonl,
    run_python,
    text_file,
    written,
)


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


# ---- conversations and bundled files


def test_conversation_and_text():
    assert data.as_conversation("Why?") == ASK
    copy = data.as_conversation(ASK)
    assert copy == ASK
    copy[0]["content"] = "changed"
    assert ASK[0]["content"] == "Why?"
    assert data.as_text("Because.") == "Because."
    assert data.as_text(GOOD) == "Because."
    assert data.as_text(GOOD + BAD) == "Because.\nDunno."


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
