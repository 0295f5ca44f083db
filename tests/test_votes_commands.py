"""`lorarlhf votes` and `lorarlhf raters`: counts, files in and out, backups, logins."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.cli import votes as votes_commands
from lorarlhf.cli.main import main
from lorarlhf.cli.project_options import EXPORT_FORMS
from lorarlhf.preferences.accounts import password_fits, with_password
from lorarlhf.preferences.exports import EXPORTS
from lorarlhf.preferences.history import VoteFilter, find
from lorarlhf.preferences.merge import Merged, add_votes, merge_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.preferences.statistics import agreement, self_agreement
from lorarlhf.preferences.store import Store
from lorarlhf.preferences.undo import undo
from lorarlhf.project.project import create

FIRST, SECOND = Verdict("ranked", [[0], [1]]), Verdict("ranked", [[1], [0]])
ANSWERS = (("One.", "base"), ("Two.", "runs/1"))
PASSWORD = "quiet harbour 7"
IMPORTS = Path(__file__).parent / "data/imports"

Run = Callable[..., tuple[int, str, str]]


def given(number: int = 0, verdict: Verdict = FIRST, **more: Any) -> ImportedVote:
    item = {"prompt": f"Question {number}?", "completions": ANSWERS, "rater": "ann", **more}
    return ImportedVote(verdict=verdict, **item)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*words: Any) -> tuple[int, str, str]:
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return command


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return create(tmp_path / "mine").folder


@pytest.fixture
def store(project: Path) -> Store:
    made = Store(project / "preferences.sqlite")
    add_votes(
        made,
        [
            given(1, created_at=1000),
            given(2, SECOND, rater="bob", created_at=2000),
            given(3, Verdict("skip"), created_at=3000),
            given(4, Verdict("both_good"), purpose="compare", created_at=4000),
        ],
    )
    return made


# ---- counts


def test_votes_are_counted(run: Run, project: Path, store: Store) -> None:
    status, out, _ = run("votes", project)
    assert status == 0 and out.splitlines() == [
        "4 votes",
        "by verdict: 2 ranked, 1 both good, 1 skip",
        "by rater: 3 ann, 1 bob",
        "by purpose: 3 train, 1 compare",
        "0 pairs of votes by two raters on one item: too few to measure agreement (20 are needed)",
    ]
    status, out, _ = run("votes", project, "--json")
    data = json.loads(out)
    assert data["votes"] == 4 and data["rater"] == {"ann": 3, "bob": 1}
    assert data["agreement"] == {"pairs": 0, "same": 0}


def test_agreement_is_reported_from_enough_pairs(run: Run, project: Path) -> None:
    store = Store(project / "preferences.sqlite")
    for number in range(20):
        item = store.add_item(f"{number}?", ANSWERS, shared=True)
        first, second = (store.present(item, name) for name in ("ann", "bob"))
        store.judge(first.token, FIRST if number else Verdict("tie"))
        # A ranking of the best alone says the same as one of both.
        store.judge(second.token, Verdict("ranked", [[0]]) if number < 15 else SECOND)
    assert agreement(store) == {"pairs": 20, "same": 14}
    assert "20 pairs of votes by two raters on one item: 70% agree" in run("votes", project)[1]


def test_an_empty_project_has_no_votes(run: Run, project: Path) -> None:
    assert run("votes", project)[1].startswith("0 votes\nby verdict: none\n")
    assert "Nobody has voted yet" in run("raters", project)[1]


# ---- in


def test_a_file_is_imported(run: Run, project: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{n}?", "completion": "x", "label": True} for n in (1, 1, 2)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, out, _ = run("votes", project, "--import", file)
    assert (status, out) == (0, f"Added 2 votes from {file}.\n")
    written = {"prompt": "3?", "completion": "Mine.", "label": True, "vote": "7", "written": True}
    file.write_text(file.read_text() + json.dumps(written))
    status, out, _ = run("votes", project, "--import", file, "--json")
    reason = "answers that a rater wrote, without one that they are better than"
    told = {"left_out": {reason: 1}, "left_out_rows": {reason: [4]}}
    assert json.loads(out) == {"added": 0, "there_already": 2, **told}


def test_a_folder_of_chats_is_imported(run: Run, project: Path, tmp_path: Path) -> None:
    chats = tmp_path / "chats/Mara"
    chats.mkdir(parents=True)
    for name in ("a.jsonl", "branch of a.jsonl"):
        shutil.copy(IMPORTS / "sillytavern.jsonl", chats / name)
    shutil.copy(IMPORTS / "open_webui.json", chats.parent)
    (chats.parent / "settings.json").write_text('[{"theme": "dark"}]')
    assert "match no known form" in run("votes", project, "--import", chats.parent)[2]
    status, said, _ = run("votes", project, "--import", chats.parent, "--skip-bad")
    assert status == 0 and said.startswith(f"Added 5 votes from {chats.parent}. Left out: ")
    assert "1 files that can't be read" in said and "settings.json: the columns theme" in said
    assert "1 sets of answers already in the store" in said
    assert "1 set of answers waits on the Rate page." in said.splitlines()
    again = run("votes", project, "--import", chats.parent, "--skip-bad")[1]
    assert again.startswith("Added 0 votes") and "5 already in the store" in again
    (tmp_path / "empty").mkdir()
    assert "no file in this folder" in run("votes", project, "--import", tmp_path / "empty")[2]


def test_bad_rows_are_left_out_where_that_is_asked(run: Run, project: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    good = {"prompt": "?", "chosen": "a", "rejected": "a "}
    file.write_text(f"{json.dumps(good)}\n{json.dumps(good | {'chosen': None})}\n")
    status, _, err = run("votes", project, "--import", file)
    assert status == 2 and 'line 2, field "rejected"' in err
    status, out, _ = run("votes", project, "--import", file, "--skip-bad")
    lines = out.splitlines()
    assert status == 0 and lines[0] == (
        f"Added 1 vote from {file}. Left out: 1 rows that can't be read."
    )
    assert "Look at these: 1 votes that prefer one of answers that differ only" in lines[1]
    assert lines[2].startswith(f'{file}, line 2, field "rejected"') and len(lines) == 3
    data = json.loads(run("votes", project, "--import", file, "--skip-bad", "--json")[1])
    assert data["there_already"] == 1 and len(data["bad_rows"]) == 1
    assert run("votes", project, "--skip-bad")[0] == 2


def test_votes_in_the_store_are_not_imported_again(
    run: Run, project: Path, store: Store, tmp_path: Path
) -> None:
    out = tmp_path / "own.jsonl"
    assert run("votes", project, "--export", "own", "--purpose", "all", "--out", out)[0] == 0
    undo(store, "ann")  # taken back here is still known
    store.correct(store.votes(rater="bob")[0].id, FIRST)
    status, said, _ = run("votes", project, "--import", out)
    assert (status, said) == (0, f"Added 0 votes from {out}. Left out: 4 already in the store.\n")
    other = create(tmp_path / "other").folder
    assert "4 votes" in run("votes", other, "--import", out)[1]
    assert "Left out: 4 already in the store" in run("votes", other, "--import", out)[1]


def test_repeats_are_counted(tmp_path: Path) -> None:
    store = Store(tmp_path / "preferences.sqlite")
    for number, verdict in enumerate([FIRST, SECOND, Verdict("tie"), Verdict("skip")]):
        item = store.add_item(f"{number}?", [("a", "base"), ("b", "base")])
        shown = store.present(item, "ann")
        store.judge(shown.token, FIRST)
        again = store.present(item, "ann", shown.id)
        assert again.shown == shown.shown[::-1]
        store.judge(again.token, verdict)
    assert self_agreement(store) == {"repeats": 3, "same": 1}


def test_the_same_vote_twice_in_a_file_is_two_votes(tmp_path: Path) -> None:
    store = Store(tmp_path / "preferences.sqlite")
    assert merge_votes(store, [given(), given(), given(verdict=SECOND)]) == Merged(3, 0)
    assert merge_votes(store, [given(), given(), given()]) == Merged(1, 2)
    assert merge_votes(store, [given(rater="bob"), given(1)]) == Merged(2, 0)
    assert merge_votes(store, [given(created_at=5)]) == Merged(1, 0)  # at no known time
    assert merge_votes(store, [given(created_at=5)]) == Merged(0, 1)


def test_a_broken_file_changes_nothing(
    run: Run, project: Path, store: Store, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen": 1}')
    status, out, err = run("votes", project, "--import", file)
    assert (status, out) == (2, "") and f"{file}, line 2" in err
    assert store.count() == 4


# ---- out


def test_the_forms_are_those_of_the_exports() -> None:
    assert tuple(EXPORTS) == EXPORT_FORMS


def test_an_export_says_what_it_leaves_out(
    run: Run, project: Path, store: Store, tmp_path: Path
) -> None:
    out = tmp_path / "a" / "votes.jsonl"
    status, said, _ = run("votes", project, "--export", "trl", "--out", out)
    assert status == 0 and said == (
        f"{out}: 2 rows from 4 votes. Left out: 1 skipped; 1 of blind comparisons "
        "(--purpose all takes them).\n"
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["chosen"][0]["content"] for row in rows] == ["One.", "Two."]
    status, _, err = run("votes", project, "--export", "trl", "--out", out)
    assert status == 2 and f"{out} exists already" in err
    other = tmp_path / "bob.jsonl"
    words = ("--export", "own", "--out", other, "--rater", "bob", "--json")
    assert json.loads(run("votes", project, *words)[1])["rows"] == 1
    assert json.loads(other.read_text())["rater"] == "bob"


@pytest.mark.parametrize(
    "words, said",
    [
        (("--export", "trl"), "--export needs a file to write: --out FILE.jsonl"),
        (("--out", "x"), "--out belongs to --export"),
        (("--rater", "ann"), "--rater belongs to --export"),
        (("--answers", "x"), "--answers belongs to --import"),
        (("--export", "xml", "--out", "x"), "invalid choice: 'xml'"),
        (("--import", "x", "--backup", "y"), "not allowed with"),
        (("--export", "trl", "--out", "x", "--rater", "eve"), "no votes of eve. There are votes"),
        (("--export", "demonstrations", "--out", "x"), "nothing to write to x. Left out: 3 votes"),
    ],
)
def test_mistakes_are_reported(
    run: Run, project: Path, store: Store, words: tuple[str, ...], said: str
) -> None:
    status, out, err = run("votes", project, *words)
    assert (status, out) == (2, "") and said in err


def test_a_backup_holds_everything(run: Run, project: Path, store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "copy.sqlite"
    status, out, _ = run("votes", project, "--backup", copy)
    assert (status, out) == (0, f"{copy} holds all 4 votes.\n")
    assert Store(copy).count() == 4
    assert find(Store(copy), VoteFilter(rater="bob")).total == 1
    status, _, err = run("votes", project, "--backup", copy)
    assert status == 2 and "exists already" in err


# ---- raters


def test_raters_are_added_listed_and_removed(
    run: Run, project: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def typed(text: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))

    typed(f"{PASSWORD}\n")
    said = run("raters", project, "--add", "carol", "--password-stdin")[1]
    assert said == "carol can log in as a rater.\n"
    assert password_fits(store, "carol", PASSWORD)
    assert run("raters", project)[1].splitlines() == [
        "ann    3 votes, no password",
        "bob    1 vote, no password",
        "carol  0 votes, can log in as a rater",
    ]
    typed("another one\n")
    said = run("raters", project, "--add", "carol", "--password-stdin")[1]
    assert said == "carol has a new password and is a rater; earlier logins have ended.\n"
    assert run("raters", project, "--remove", "carol")[1].startswith("carol can't log in any more")
    assert with_password(store) == []
    status, _, err = run("raters", project, "--remove", "carol")
    assert status == 2 and "no rater carol with a password" in err
    typed("short\n")
    status, _, err = run("raters", project, "--add", "dan", "--password-stdin")
    assert status == 2 and "8 characters" in err
    data = json.loads(run("raters", project, "--json")[1])
    assert data["raters"][0] == {
        **{"name": "ann", "votes": 3, "can_log_in": False, "role": "rater"}
    }


def test_a_password_is_asked_for_twice(
    run: Run, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _, err = run("raters", project, "--add", "ann")
    assert status == 2 and "--password-stdin" in err  # nobody sits at the terminal here
    answers = [PASSWORD, PASSWORD, PASSWORD, "a slip of it"]
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(votes_commands.getpass, "getpass", lambda prompt: answers.pop(0))
    assert run("raters", project, "--add", "ann")[0] == 0
    status, _, err = run("raters", project, "--add", "ann")
    assert status == 2 and "differ" in err
    assert password_fits(Store(project / "preferences.sqlite"), "ann", PASSWORD)
    status, _, err = run("raters", project, "--password-stdin")
    assert status == 2 and "belongs to --add" in err
