"""Reading answers marked good or bad, and preference pairs in their place."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lorarlhf.data import read_labelled
from lorarlhf.data.readers import unpair
from lorarlhf.runtime.errors import UserError

UP = {"prompt": "Why?", "completion": "Because.", "label": True}
DOWN = {"prompt": "Why?", "completion": "Dunno.", "label": False}
PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "Dunno."}


def jsonl(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_labels_and_pairs_give_the_same_rows(tmp_path: Path) -> None:
    assert read_labelled(jsonl(tmp_path, UP, DOWN)) == [UP, DOWN]
    assert read_labelled(jsonl(tmp_path, PAIR)) == [UP, DOWN]
    assert unpair([UP, PAIR]) == [UP, UP, DOWN]


def test_a_label_may_be_a_number_or_a_cell(tmp_path: Path) -> None:
    rows = [UP | {"label": 1}, DOWN | {"label": 0}]
    assert read_labelled(jsonl(tmp_path, *rows)) == [UP, DOWN]
    table = tmp_path / "rows.csv"
    table.write_text("prompt,completion,label\nWhy?,Because.,True\nWhy?,Dunno.,false\n")
    assert read_labelled(table) == [UP, DOWN]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([UP, DOWN]), tmp_path / "rows.parquet")
    assert read_labelled(tmp_path / "rows.parquet") == [UP, DOWN]


def test_conversations_keep_their_messages(tmp_path: Path) -> None:
    asked, said = [{"role": "user", "content": "Why?"}], [{"role": "assistant", "content": "So."}]
    row = {"prompt": asked, "completion": said, "label": True}
    assert read_labelled(jsonl(tmp_path, row)) == [row]
    no = [{"role": "assistant", "content": "No."}]
    good, bad = read_labelled(jsonl(tmp_path, {"chosen": asked + said, "rejected": asked + no}))
    assert good == row and bad["completion"][0]["content"] == "No." and bad["label"] is False


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"prompt": "Why?", "completion": "So."}, "found no such column"),
        (UP | {"label": "maybe"}, "maybe"),
        (UP | {"label": 2}, "found the number 2"),
        (UP | {"label": None}, "found null"),
        ({"prompt": "Why?", "label": True}, 'field "completion"'),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, Any], found: str) -> None:
    with pytest.raises(UserError) as caught:
        read_labelled(jsonl(tmp_path, UP, row))
    assert "line 2" in str(caught.value) and found in str(caught.value)
