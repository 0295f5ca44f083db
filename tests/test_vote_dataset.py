"""Votes as a data set: read by `datasets`, with counts that are right, and without names."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import load_dataset

from lorarlhf.cli.main import main
from lorarlhf.data.readers import read_preferences
from lorarlhf.export.dataset import make_dataset
from lorarlhf.export.dataset_folder import write_dataset
from lorarlhf.preferences.records import Verdict
from lorarlhf.preferences.single_answers import SINGLE
from lorarlhf.preferences.store import Store
from lorarlhf.project.project import Project, create
from lorarlhf.runtime.errors import UserError
from tests.rated_votes import FIRST, SECOND, vote

ROOT = Path(__file__).parents[1]
RATERS = ("Zebedee", "Quintilla")
NOTE = "Reminds me of my neighbour"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Two raters who judge thirty pairs each, with ties, a skip, strengths and a note."""
    made = create(tmp_path / "mine")
    store = made.store()
    for number in range(30):
        answers = [(f"Good {number}.", "base"), (f"Bad {number}.", "runs/0001-sft")]
        item = store.add_item(f"What is {number}?", answers, shared=True)
        for place, name in enumerate(RATERS):
            verdict = FIRST
            if number == 0:
                verdict = Verdict("tie")
            elif number == 1:
                verdict = Verdict("both_bad")
            elif number == 2 and place:
                verdict = Verdict("skip")
            elif number == 3:
                verdict = Verdict("ranked", [[0], [1]], "much", NOTE)
            elif number < 10 and place:
                verdict = SECOND
            store.judge(store.present(item, name).token, verdict)
    store.close()
    return made


def export(project: Project, *words: str) -> Path:
    out = project.folder.parent / "votes"
    command = ["votes", str(project.folder), "--export", "dataset", "--out", str(out), *words]
    assert main(command) == 0
    return out


def rows_of(folder: Path) -> list[dict[str, Any]]:
    cache = str(folder.parent / "cache")
    return [dict(row) for row in load_dataset(str(folder), split="train", cache_dir=cache)]


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


def test_the_data_set_is_loaded_by_its_folder(project: Project) -> None:
    folder = export(project)
    rows = rows_of(folder)
    # 30 + 30 votes without 2 ties, 2 "both bad" and a skip
    assert len(rows) == 55
    assert set(rows[0]) == {"prompt", "chosen", "rejected", "margin", "group", "weight"}
    assert rows[0]["prompt"] == [{"role": "user", "content": "What is 2?"}]
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "Good 2."}]
    assert sorted({row["margin"] for row in rows}) == [0.0, 3.0]
    assert len(read_preferences(folder / "train.jsonl")) == 55  # and by the training commands
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "train.jsonl"]


def test_the_card_counts(project: Project) -> None:
    head, text = card_of(export(project))
    assert head["size_categories"] == ["n<1K"] and "trl" in head["tags"]
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "train.jsonl"}]
    assert "license" not in head and "None was chosen yet" in text
    assert "55 preference pairs from 60 votes on 30 prompts" in text
    assert "| 55 | name a better answer |" in text
    assert "| 2 | find the answers equal |" in text and "| 2 | call all answers bad |" in text
    assert (
        "| 1 | skip the comparison |" in text and "| 2 | say how much better an answer is |" in text
    )
    assert "2 raters on the rating pages; votes of each: 30, 30." in text
    # 29 pairs that both judged; they differ on the numbers 4 to 9
    assert "On 29 pairs that two or more raters judged, 79% of the verdicts are the same" in text
    assert "| base | 60 |" in text and "smollm2" in text.lower()
    assert str(project.folder.parent) not in text


def test_names_and_notes_are_left_out(project: Project) -> None:
    folder = export(project)
    whole = "".join(file.read_text() for file in folder.iterdir())
    assert NOTE not in whole and not any(name in whole for name in RATERS)
    assert "the raters' notes (2)" in whole


def test_names_and_notes_are_kept_where_that_is_asked(project: Project) -> None:
    folder = export(project, "--with-notes", "--with-raters")
    rows = rows_of(folder)
    assert {row["rater"] for row in rows} == set(RATERS)
    assert sorted({row["note"] for row in rows}) == ["", NOTE]
    text = (folder / "README.md").read_text()
    assert all(name in text for name in RATERS) and "what the rater wrote about the vote" in text


def test_one_raters_votes(project: Project) -> None:
    folder = export(project, "--rater", RATERS[0])
    text = (folder / "README.md").read_text()
    assert len(rows_of(folder)) == 28 and "1 rater on the rating pages." in text
    assert "Agreement between raters is not known" in text


def test_the_instruction_is_that_of_the_page() -> None:
    """The card quotes the page."""
    page = " ".join((ROOT / "ui/static/vote_widget.html").read_text(encoding="utf-8").split())
    text = (ROOT / "lorarlhf/export/cards/dataset_card.py").read_text(encoding="utf-8")
    quoted = "Read the prompt and its two answers, and choose the better one"
    assert quoted in page and quoted in text


def test_odd_texts_can_be_loaded(tmp_path: Path) -> None:
    texts = ["half \ud800 a pair", "line\u2028end", "nul \x00", "`| <b>", "日本語 🎈"]
    votes = [
        vote(n, FIRST, prompt=[{"role": "user", "content": text}], completions=[text, f"no {n}"])
        for n, text in enumerate(texts, start=1)
    ]
    folder = write_dataset(make_dataset(votes), tmp_path / "odd", "Odd | <votes>\nof mine")
    rows = rows_of(folder)
    assert [row["prompt"][0]["content"] for row in rows] == ["half ? a pair", *texts[1:]]
    head, text = card_of(folder)
    assert head["pretty_name"] == "Odd | <votes>\nof mine"
    assert "\n# Odd \\| \\<votes\\> of mine\n" in text


def test_a_ranking_gives_all_of_its_pairs(tmp_path: Path) -> None:
    ranked = vote(1, Verdict("ranked", [[2], [0], [1]]), completions=["a", "b", "c"])
    made = make_dataset([ranked, vote(2, Verdict("skip"))])
    assert [row["weight"] for row in made.rows] == [1 / 3] * 3
    assert {row["group"] for row in made.rows} == {1}
    assert made.left_out == {"skipped": 1}


def test_imported_votes_are_said_to_be_imported(tmp_path: Path) -> None:
    votes = [vote(n, FIRST, imported=True, prompt=f"{n}?") for n in range(1, 4)]
    folder = write_dataset(make_dataset(votes), tmp_path / "out", "Votes")
    text = (folder / "README.md").read_text()
    assert "3 votes from files and other programs" in text
    assert "How the imported votes were asked for is not recorded" in text


def test_the_card_says_what_becomes_of_thumbs(tmp_path: Path) -> None:
    thumbs = {"Good.": "both_good", "Bad.": "both_bad", "Fine.": "both_good"}
    votes = [
        vote(n, Verdict(verdict), completions=[text], imported=True)
        for n, (text, verdict) in enumerate(thumbs.items(), start=1)
    ]
    made = make_dataset(votes)
    assert len(made.rows) == 1 and made.left_out == {SINGLE: 1}
    text = (write_dataset(made, tmp_path / "out", "Votes") / "README.md").read_text()
    assert "| 3 | are on one answer alone; a good and a bad one by the same rater" in text
    assert "only counted here, but of those on one answer alone a good and a bad one" in text


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, out = make_dataset([vote(1, FIRST)]), tmp_path / "out"

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lorarlhf.export.dataset_folder.write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_dataset(made, out, "Votes")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="no vote names a better answer"):
        write_dataset(make_dataset([vote(1, Verdict("tie"))]), out, "Votes")
    out.mkdir()
    with pytest.raises(UserError, match="exists already"):
        write_dataset(made, out, "Votes")


def test_the_command_as_json(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export(project, "--json")
    data = json.loads(capsys.readouterr().out)
    assert data["folder"] == str(folder) and data["rows"] == 55 and data["votes"] == 60
    assert sum(data["left_out"].values()) == 5
    store = Store(project.folder / "preferences.sqlite")
    assert store.count() == 60
