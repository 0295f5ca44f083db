"""Splitting rows by prompt, and writing them as JSONL."""

import json
import os
from datetime import date

import pytest

from lorarlhf.data import readers as data
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import append_jsonl, readable_rows, write_jsonl
from tests.data_steps import ASK, BAD, CHAT, GOOD, PLAIN, complaint, jsonl, run_python


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


# ---- writing


def test_written_rows_are_utf8_lines_and_read_back(tmp_path):
    path = tmp_path / "new" / "folder" / "rows.jsonl"
    rows: list[dict] = [{"prompt": "Grüße 👋\nzwei\u2028drei"}, {"prompt": "half \ud83d", "n": 1}]
    write_jsonl(path, rows)
    assert path.read_bytes() == (
        '{"prompt": "Grüße 👋\\nzwei\\u2028drei"}\n{"prompt": "half \\ud83d", "n": 1}\n'.encode()
    )
    assert [row for _, row in data.read_rows(path)] == rows
    assert os.listdir(path.parent) == ["rows.jsonl"]


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = jsonl(tmp_path, PLAIN)
    before = path.read_bytes()
    with pytest.raises(TypeError, match="set can.t be written as JSON"):
        write_jsonl(path, [PLAIN, {"prompt": {1}}])

    def full(descriptor: int) -> None:
        assert os.fstat(descriptor).st_size > 0  # all rows have left Python's buffer by then
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"rows\.jsonl: cannot be written \(No space left on dev"):
        write_jsonl(path, [CHAT])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_writing_below_a_file_is_a_mistake_of_the_user(tmp_path):
    path = jsonl(tmp_path, PLAIN)
    for write in (lambda p: write_jsonl(p, [PLAIN]), lambda p: append_jsonl(p, PLAIN)):
        assert "cannot be written (" in complaint(write, path / "rows.jsonl")


def test_no_line_holds_what_other_programs_take_for_its_end(tmp_path):
    """`str.splitlines` ends a line at U+2028 too; a model of random weights writes it often."""
    path, texts = tmp_path / "rows.jsonl", ["a\x85b", "a\u2028b\u2029", "a\x1cb\x0c", "é\ud800"]
    write_jsonl(path, [{"text": text} for text in texts[:2]])
    for text in texts[2:]:
        append_jsonl(path, {"text": text})
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == texts
    # Files of others and of earlier versions have them bare; a killed run leaves half a line.
    path.write_text('{"text": "a\u2028b"}\n{"te', encoding="utf-8")
    assert list(readable_rows(path)) == [{"text": "a\u2028b"}]


def test_appending_adds_a_line_and_spares_one_that_was_cut_off(tmp_path):
    path = tmp_path / "new" / "folder" / "log.jsonl"
    append_jsonl(path, {"step": 1, "day": date(2026, 1, 2)})
    append_jsonl(path, {"step": 2, "text": "é"})
    assert (
        path.read_bytes() == '{"step": 1, "day": "2026-01-02"}\n{"step": 2, "text": "é"}\n'.encode()
    )
    path.write_bytes(b'{"step": 1}\n{"ste')
    append_jsonl(path, {"step": 3})
    assert path.read_bytes() == b'{"step": 1}\n{"ste\n{"step": 3}\n'
