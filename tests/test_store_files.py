"""The file of the preference store: migrations, backups, and files that cannot be used."""

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lorarlhf.preferences import schema
from lorarlhf.preferences.records import Verdict
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError

FIRST = Verdict("ranked", [[0], [1]])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "preferences.sqlite")


def pair(store: Store, prompt: str = "Why?", **more: str) -> int:
    return store.add_item(prompt, [("Because.", "base"), ("No idea.", "policy")], **more)


def test_a_backup_is_taken_while_others_write(store: Store, tmp_path: Path) -> None:
    for number in range(50):
        store.judge(store.present(pair(store, f"{number}?"), "ann").token, FIRST)
    other = Store(store.path)
    with other.write() as db:
        db.execute("INSERT INTO rater (name, created_at) VALUES ('x', 0)")
        copy = store.backup(tmp_path / "copy.sqlite")
    assert Store(copy).votes() == store.votes()


def test_a_newer_store_is_unchanged(store: Store) -> None:
    store.close()
    db = sqlite3.connect(store.path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    before = store.path.read_bytes()
    with pytest.raises(UserError, match="schema 99"):
        Store(store.path)
    assert store.path.read_bytes() == before


@pytest.mark.parametrize("content", [b"not a database at all, but text" * 40, None])
def test_a_file_that_is_no_store_is_unchanged(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "other.sqlite"
    if content is None:
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE bookmark (url)")
        db.close()
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(UserError, match="not a store of preferences"):
        Store(path)
    assert path.read_bytes() == before


def test_an_older_schema_is_migrated_with_its_votes(
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


def test_a_full_disk_is_reported_and_leaves_no_partial_vote(store: Store) -> None:
    item = pair(store)
    shown = store.present(item, "ann")
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(UserError, match="The disk is full: the last vote was not saved"):
        store.judge(shown.token, Verdict("ranked", [[0], [1]], note="x" * 100_000))
    assert store.count() == 0
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.judge(shown.token, FIRST)
    assert store.count() == 1


def test_a_read_only_folder_is_reported(store: Store) -> None:
    shown = store.present(pair(store), "ann")
    store._db.execute("PRAGMA query_only = 1")  # as SQLite finds a read-only file
    with pytest.raises(UserError, match="can't be written. Check who owns the file and its folder"):
        store.judge(shown.token, FIRST)
    store._db.execute("PRAGMA query_only = 0")
    store.judge(shown.token, FIRST)
    if Path("/proc/self").exists():  # a folder where not even root can make files
        with pytest.raises(
            UserError, match="can't be written. Check who owns the file and its folder"
        ):
            Store(Path("/proc/self/votes.sqlite"))


def test_several_processes_may_create_the_same_store(tmp_path: Path) -> None:
    words = "import sys; from lorarlhf.preferences.store import Store\n"
    words += "for path in sys.argv[1:]: Store(path).rater('x')"
    paths = [str(tmp_path / f"{number}.sqlite") for number in range(40)]
    processes = [subprocess.Popen([sys.executable, "-c", words, *paths]) for _ in range(6)]
    assert [process.wait() for process in processes] == [0] * 6
    assert [Store(path).rater("x") for path in paths] == [1] * 40


def test_the_store_loads_no_torch() -> None:
    words = "import sys, lorarlhf.preferences.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words]).returncode == 0


def test_threads_leave_no_file_open(store: Store) -> None:
    def files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = files()
    for _ in range(40):
        thread = threading.Thread(target=store.count)
        thread.start()
        thread.join()
    assert files() <= before + 1


def test_a_migration_may_rebuild_a_table(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_migration_that_breaks_a_reference_is_rolled_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.judge(store.present(pair(store), "ann").token, FIRST)
    store.close()
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "DELETE FROM prompt;"))
        with pytest.raises(sqlite3.IntegrityError, match="rows would refer to missing rows"):
            Store(store.path)
    assert [vote.prompt for vote in Store(store.path).votes()] == ["Why?"]


def test_a_backup_overwrites_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "there.sqlite").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        store.backup(tmp_path / "there.sqlite")
    assert (tmp_path / "there.sqlite").read_text() == "mine"
    with pytest.raises(UserError, match="can't be written"):
        store.backup(tmp_path / "none" / "copy.sqlite")
