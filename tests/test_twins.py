"""Rows and answers that are the same but for Unicode form or blanks, and repeated prompts."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.data import twins
from lorarlhf.data.readers import read_demonstrations, read_labelled, read_preferences
from lorarlhf.runtime.files import write_jsonl

DECOMPOSED = unicodedata.normalize("NFD", "Ein Café für alle")
COMPOSED = unicodedata.normalize("NFC", DECOMPOSED)


def pair(prompt: Any, chosen: Any, rejected: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def said(tmp_path: Path, capsys: pytest.CaptureFixture[str], read: Any, rows: list[Any]) -> str:
    write_jsonl(tmp_path / "rows.jsonl", rows)
    read(tmp_path / "rows.jsonl")
    return capsys.readouterr().err


def test_twins_are_said_once_with_the_first_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [pair(COMPOSED, "Yes.", "No."), pair("What is it?", "A.", "B.")]
    rows += [pair(DECOMPOSED, "Yes.", "No."), pair(f" {COMPOSED}\n", "Yes.", "No.")]
    rows += [pair("What is it?", "A.", "B.")]  # the same vote twice is two raters' matter
    err = said(tmp_path, capsys, read_preferences, rows)
    assert err.count("\n") == 1 and "2 of 5 rows differ from an earlier row only in" in err
    assert f"the first is {tmp_path}/rows.jsonl, line 3, of {tmp_path}/rows.jsonl, line 1." in err
    err = said(tmp_path, capsys, read_labelled, rows)
    assert err.count("\n") == 1 and "2 of 5 rows differ" in err
    rows = [{"prompt": p, "completion": "Yes."} for p in ("One two", "One  two", "Two one")]
    assert "1 of 3 rows differ" in said(tmp_path, capsys, read_demonstrations, rows)
    talk = [[{"role": "user", "content": text}] for text in ("One two", "One\u00a0two")]
    rows = [pair(t, *[[{"role": "assistant", "content": x}] for x in "ab"]) for t in talk]
    assert "1 of 2 rows differ" in said(tmp_path, capsys, read_preferences, rows)


def test_answers_that_are_the_same_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [pair("Where?", "Here.", "There."), pair("Where?", COMPOSED, DECOMPOSED)]
    rows += [pair("Why?", "So.", "So. ")]
    err = said(tmp_path, capsys, read_preferences, rows)
    assert "2 of 3 pairs have the same answer twice" in err and "rows.jsonl, line 2." in err


def test_a_prompt_in_both_answers_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = "What is tea?"
    rows = [pair(asked, f"{asked} A drink.", f"{asked}\nNo idea."), pair("Hi", "Hi you", "Hi me")]
    rows += [pair("What is it?", "What is it? A cup.", "A cup.")]
    err = said(tmp_path, capsys, read_preferences, rows)
    assert "1 of 3 rows repeat their prompt" in err and "rows.jsonl, line 1." in err
    rows = [{"prompt": asked, "completion": f"{asked} A drink."}]
    assert "1 of 1 rows repeat" in said(tmp_path, capsys, read_demonstrations, rows)


def test_ordinary_rows_are_passed_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [pair(f"What is {n}?", f"It is {n}.", f"{n}, I think.") for n in range(9)]
    assert said(tmp_path, capsys, read_preferences, rows) == ""
    assert list(twins.notices([{"text": "a b"}, {"text": "a  b"}])) == []
