"""The preference store: every vote as it was meant, once, and never lost or changed."""

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lorarlhf.preferences import schema
from lorarlhf.preferences.records import Verdict, check_verdict, stable_order
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError

PROMPT = [{"role": "user", "content": "Name a quiet hobby."}]
FIRST, SECOND = Verdict("ranked", [[0], [1]]), Verdict("ranked", [[1], [0]])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "preferences.sqlite")


def pair(store: Store, prompt: str = "Why?", **more: str) -> int:
    return store.add_item(prompt, [("Because.", "base"), ("No idea.", "policy")], **more)


def test_a_vote_is_kept_with_all_that_it_speaks_of(store: Store) -> None:
    item = store.add_item(PROMPT, [("Drawing.", "base"), ("Drums!", "runs/3")], origin={"row": 7})
    shown = store.present(item, "ann")
    verdict = Verdict("ranked", [[1], [0]], "clearly", "fun", "Drums, softly.")
    number = store.judge(shown.token, verdict, 1234)
    store.close()
    (vote,) = Store(store.path).votes()  # another one, from the disk
    assert (vote.id, vote.rater, vote.purpose, vote.prompt) == (number, "ann", "train", PROMPT)
    assert (vote.completions, vote.sources) == (["Drawing.", "Drums!"], ["base", "runs/3"])
    assert (vote.verdict, vote.shown, vote.milliseconds) == (verdict, shown.shown, 1234)
    assert vote.origin == {"row": 7} and vote.repeats is None


def test_a_second_vote_with_the_same_token_is_no_vote(store: Store) -> None:
    shown = store.present(pair(store), "ann")
    assert store.judge(shown.token, FIRST) == store.judge(shown.token, SECOND)
    (vote,) = store.votes()
    assert vote.verdict == FIRST and store.count() == 1
    with pytest.raises(UserError, match="Reload"):
        store.judge("unknown", FIRST)


def test_undo_shows_the_item_again_and_keeps_both_rows(store: Store) -> None:
    item = pair(store)
    store.judge(store.present(item, "ann").token, FIRST)
    store.judge(store.present(pair(store, "When?"), "bob").token, SECOND)
    again = store.undo("ann")
    assert again is not None and again.item_id == item
    assert [vote.rater for vote in store.votes()] == ["bob"]  # the other's is as it was
    store.judge(again.token, SECOND)
    assert [vote.verdict for vote in store.votes(rater="ann")] == [SECOND]
    assert store.undo("ann") is not None and store.undo("ann") is None
    assert store.undo("nobody") is None
    kept = sqlite3.connect(store.path).execute("SELECT verdict FROM judgement ORDER BY id")
    assert [row[0] for row in kept] == ["ranked", "ranked", "undone", "ranked", "undone"]


def test_a_correction_takes_the_place_of_a_vote_once(store: Store) -> None:
    number = store.judge(store.present(pair(store), "ann").token, FIRST)
    newer = store.correct(number, SECOND)
    (vote,) = store.votes()
    assert (vote.id, vote.verdict) == (newer, SECOND)
    with pytest.raises(UserError, match="changed elsewhere"):
        store.correct(number, FIRST)
    store.correct(newer, Verdict("both_bad"))
    assert [v.verdict.verdict for v in store.votes()] == ["both_bad"]


def test_judgements_can_be_neither_changed_nor_deleted(store: Store) -> None:
    store.judge(store.present(pair(store), "ann").token, FIRST)
    db = sqlite3.connect(store.path)
    for words in ("UPDATE judgement SET verdict = 'skip'", "DELETE FROM judgement"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            db.execute(words)


def test_sides_are_shuffled_always_alike_and_a_repeat_is_turned_round(store: Store) -> None:
    items = [pair(store, f"Question {n}?") for n in range(60)]
    orders = [store.present(item, "ann").shown for item in items]
    assert orders == [store.present(item, "ann").shown for item in items]
    assert 15 < sum(order == [0, 1] for order in orders) < 45
    assert orders != [store.present(item, "bob").shown for item in items]
    first = store.present(items[0], "ann")
    assert store.present(items[0], "ann", repeats=first.id).shown == first.shown[::-1]
    assert sorted(stable_order("ann", 1, 5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("verdict", "count", "said"),
    [
        (Verdict("better"), 2, "a verdict is one of"),
        (Verdict("ranked", [[0], [1]], "very"), 2, "strength is one of"),
        (Verdict("tie", [[0, 1]]), 2, "does not go with"),
        (Verdict("ranked", [[0], [2]]), 2, "positions 0 to 1"),
        (Verdict("ranked", [[0], [0]]), 2, "at most once"),
        (Verdict("ranked", []), 2, "at least one tier"),
        (Verdict("ranked", [[0], []]), 2, "none is empty"),
        (Verdict("ranked", [[0, 1]]), 2, "is a tie"),
        (Verdict("undone"), 2, "a verdict is one of"),
    ],
)
def test_verdicts_that_mean_nothing_are_refused(verdict: Verdict, count: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_verdict(verdict, count)


def test_rankings_with_ties_and_of_the_top_alone_are_kept(store: Store) -> None:
    item = store.add_item("Why?", [(f"Answer {n}", "base") for n in range(4)])
    for number, ranking in enumerate(([[2], [0, 1], [3]], [[3]], [[1, 2]])):
        store.judge(store.present(item, f"rater {number}").token, Verdict("ranked", ranking))
    assert [vote.verdict.ranking for vote in store.votes()] == [[[2], [0, 1], [3]], [[3]], [[1, 2]]]
    for wrong in (1, 7):
        with pytest.raises(ValueError, match="2 to 6 answers"):
            store.add_item("Why?", [("x", "base")] * wrong)


def test_taste_tests_are_marked(store: Store) -> None:
    for purpose in ("train", "compare"):
        store.judge(store.present(pair(store, purpose, purpose=purpose), "ann").token, FIRST)
    assert [vote.prompt for vote in store.votes(purpose="compare")] == ["compare"]
    with pytest.raises(ValueError, match="train or compare"):
        pair(store, purpose="else")


def test_the_newest_votes_come_in_their_order(store: Store) -> None:
    for number in range(6):
        store.judge(store.present(pair(store, f"{number}?"), "ann").token, FIRST)
    assert [vote.prompt for vote in store.votes(newest=3)] == ["3?", "4?", "5?"]
    assert store.count("ann") == 6 and store.count("bob") == 0
    assert store.count(since=store.votes()[-1].created_at + 1) == 0


def test_a_prompt_is_kept_once(store: Store) -> None:
    assert (
        store.add_prompt("Why?") == store.add_prompt("Why?", "a file") != store.add_prompt("What?")
    )


def test_threads_share_a_store(store: Store) -> None:
    def vote(name: str) -> None:
        for number in range(25):
            store.judge(store.present(pair(store, f"{name} {number}?"), name).token, FIRST)

    threads = [threading.Thread(target=vote, args=(f"rater {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.count() == 100 and all(store.count(f"rater {n}") == 25 for n in range(4))


def test_a_backup_is_taken_while_others_write(store: Store, tmp_path: Path) -> None:
    for number in range(50):
        store.judge(store.present(pair(store, f"{number}?"), "ann").token, FIRST)
    other = Store(store.path)
    with other.write() as db:
        db.execute("INSERT INTO rater (name, created_at) VALUES ('x', 0)")
        copy = store.backup(tmp_path / "copy.sqlite")
    assert Store(copy).votes() == store.votes()


# ---- files that do not fit


def test_a_newer_store_is_left_alone(store: Store) -> None:
    store.close()
    db = sqlite3.connect(store.path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    before = store.path.read_bytes()
    with pytest.raises(UserError, match="schema 99"):
        Store(store.path)
    assert store.path.read_bytes() == before


@pytest.mark.parametrize("content", [b"not a database at all, but text" * 40, None])
def test_another_file_is_left_alone(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "other.sqlite"
    if content is None:
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE bookmark (url)")
        db.close()
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(UserError, match="no store of preferences|not a store of preferences"):
        Store(path)
    assert path.read_bytes() == before


def test_an_older_schema_is_brought_up_and_keeps_its_votes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.judge(store.present(pair(store), "ann").token, FIRST)
    store.close()
    newer = "CREATE TABLE extra (id INTEGER);"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, newer))
    again = Store(store.path)
    assert [vote.verdict for vote in again.votes()] == [FIRST]
    assert again._db.execute("PRAGMA user_version").fetchone()[0] == len(schema.MIGRATIONS)
    Store(store.path)


def test_a_migration_that_fails_changes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.judge(store.present(pair(store), "ann").token, FIRST)
    store.close()
    broken = "CREATE TABLE extra (id INTEGER);\nCREATE TABLE prompt (id INTEGER);"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        with pytest.raises(sqlite3.OperationalError, match="already exists"):
            Store(store.path)
    again = Store(store.path)
    assert again.count() == 1
    assert again._db.execute("PRAGMA user_version").fetchone()[0] == len(schema.MIGRATIONS)


def test_a_full_disk_is_told_and_nothing_is_half_kept(store: Store) -> None:
    item = pair(store)
    shown = store.present(item, "ann")
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(UserError, match="The disk is full: the last vote is not kept"):
        store.judge(shown.token, Verdict("ranked", [[0], [1]], note="x" * 100_000))
    assert store.count() == 0
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.judge(shown.token, FIRST)
    assert store.count() == 1


def test_a_folder_that_can_not_be_written_is_told(store: Store) -> None:
    shown = store.present(pair(store), "ann")
    store._db.execute("PRAGMA query_only = 1")  # as SQLite finds a read-only file
    with pytest.raises(UserError, match="can't be written. Check who owns file and folder"):
        store.judge(shown.token, FIRST)
    store._db.execute("PRAGMA query_only = 0")
    store.judge(shown.token, FIRST)
    if Path("/proc/self").exists():  # a folder where not even root can make files
        with pytest.raises(UserError, match="can't be written. Check who owns file and folder"):
            Store(Path("/proc/self/votes.sqlite"))


def test_two_processes_may_make_the_same_store(tmp_path: Path) -> None:
    path = tmp_path / "new.sqlite"
    words = (
        "import sys; from lorarlhf.preferences.store import Store; Store(sys.argv[1]).rater('x')"
    )
    processes = [subprocess.Popen([sys.executable, "-c", words, str(path)]) for _ in range(6)]
    assert [process.wait() for process in processes] == [0] * 6
    assert Store(path).rater("x") == 1


def test_the_store_loads_no_torch() -> None:
    words = "import sys, lorarlhf.preferences.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words]).returncode == 0


# ---- pages that are reloaded, stale or clicked twice


def test_a_reload_shows_the_same_and_takes_one_vote(store: Store) -> None:
    item = pair(store)
    shown = store.present(item, "ann")
    assert store.present(item, "ann") == shown != store.present(item, "bob")
    store.judge(shown.token, FIRST)
    later = store.present(item, "ann")
    assert later.token != shown.token and later.shown == shown.shown


def test_a_stale_page_can_not_bring_an_undone_vote_back(store: Store) -> None:
    shown = store.present(pair(store), "ann")
    store.judge(shown.token, FIRST)
    again = store.undo("ann")
    assert again is not None and again.token != shown.token
    with pytest.raises(UserError, match="changed elsewhere in the meantime"):
        store.judge(shown.token, SECOND)
    assert store.count() == 0


def test_a_second_click_on_undo_takes_nothing_more_back(store: Store) -> None:
    numbers = [store.judge(store.present(pair(store, f"{n}?"), "ann").token, FIRST) for n in (1, 2)]
    first = store.undo("ann", expected=numbers[1])
    assert first == store.undo("ann", expected=numbers[1])
    assert [vote.id for vote in store.votes()] == numbers[:1]


def test_undo_of_a_corrected_vote_takes_the_correction_back(store: Store) -> None:
    item = pair(store)
    old = store.judge(store.present(item, "ann").token, FIRST)
    new = store.correct(old, SECOND)
    assert store.last_vote("ann") == new
    again = store.undo("ann", expected=old)
    assert again is not None and store.votes() == [] and store.last_vote("ann") is None
    assert store.undo("ann", expected=new) == again
    store.judge(again.token, FIRST)
    assert len(store.votes()) == 1


def test_undo_keeps_the_sides(store: Store) -> None:
    item = pair(store)
    for shown in ([0, 1], [1, 0]):
        number = store.judge(store.present(item, "ann", shown=shown).token, FIRST)
        again = store.undo("ann", expected=number)
        assert again is not None and again.shown == shown
        store.judge(again.token, FIRST)


def test_a_correction_keeps_the_time_of_the_vote(store: Store) -> None:
    old = store.judge(store.present(pair(store), "ann").token, FIRST, 900, created_at=5_000)
    store.judge(store.present(pair(store, "When?"), "ann").token, FIRST, created_at=6_000)
    store.correct(old, SECOND)
    assert [(vote.prompt, vote.created_at) for vote in store.votes()] == [
        ("Why?", 5_000),
        ("When?", 6_000),
    ]
    assert store.votes()[0].milliseconds == 900
    last = store.undo("ann")
    assert last is not None and [vote.prompt for vote in store.votes()] == ["Why?"]


def test_threads_leave_nothing_open(store: Store) -> None:
    def files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = files()
    for _ in range(40):
        thread = threading.Thread(target=store.count)
        thread.start()
        thread.join()
    assert files() <= before + 1


def test_a_migration_may_build_a_table_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.judge(store.present(pair(store), "ann").token, FIRST)
    store.close()
    anew = """
    CREATE TABLE prompt_new (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE,
        messages TEXT NOT NULL, source TEXT NOT NULL, created_at INTEGER NOT NULL, extra TEXT);
    INSERT INTO prompt_new SELECT *, 'x' FROM prompt;
    DROP TABLE prompt;
    ALTER TABLE prompt_new RENAME TO prompt;
    """
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, anew))
    assert [vote.prompt for vote in Store(store.path).votes()] == ["Why?"]


def test_a_migration_that_leaves_votes_without_their_prompt_is_taken_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.judge(store.present(pair(store), "ann").token, FIRST)
    store.close()
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "DELETE FROM prompt;"))
        with pytest.raises(sqlite3.IntegrityError, match="rows would name what is not there"):
            Store(store.path)
    assert [vote.prompt for vote in Store(store.path).votes()] == ["Why?"]


def test_a_backup_writes_over_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "there.sqlite").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        store.backup(tmp_path / "there.sqlite")
    assert (tmp_path / "there.sqlite").read_text() == "mine"
    with pytest.raises(UserError, match="can't be written"):
        store.backup(tmp_path / "none" / "copy.sqlite")
