"""The tables of the preference store, its migrations, and how it is opened.

Rows of `judgement` are never changed or deleted: an undo or a correction is a new row that names
the row it `supersedes`. SQLite's `user_version` holds the number of the schema.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from lorarlhf.runtime.errors import UserError

BUSY_SECONDS = 30.0
"""How long a writer waits for another writer before it gives up."""

MIGRATIONS = (
    """
    CREATE TABLE prompt (
        id INTEGER PRIMARY KEY,
        digest TEXT NOT NULL UNIQUE,            -- of `messages`: a prompt is kept once
        messages TEXT NOT NULL,                 -- JSON: a text, or a list of role and content
        source TEXT NOT NULL,                   -- a file, a page, a person
        created_at INTEGER NOT NULL             -- milliseconds since 1970, as all times here
    );
    CREATE TABLE completion (
        id INTEGER PRIMARY KEY,
        prompt_id INTEGER NOT NULL REFERENCES prompt(id),
        text TEXT NOT NULL,
        source TEXT NOT NULL,                   -- the role or run that wrote it
        sampling TEXT NOT NULL DEFAULT '{}',    -- JSON: temperature, seed, ...
        created_at INTEGER NOT NULL
    );
    CREATE INDEX completion_of_prompt ON completion(prompt_id);
    CREATE TABLE item (
        id INTEGER PRIMARY KEY,
        prompt_id INTEGER NOT NULL REFERENCES prompt(id),
        purpose TEXT NOT NULL,                  -- train, or compare for taste tests
        origin TEXT NOT NULL DEFAULT '{}',      -- JSON: where an imported one came from
        created_at INTEGER NOT NULL
    );
    CREATE TABLE item_completion (
        item_id INTEGER NOT NULL REFERENCES item(id),
        position INTEGER NOT NULL,              -- 0 to 5; rankings speak of positions
        completion_id INTEGER NOT NULL REFERENCES completion(id),
        PRIMARY KEY (item_id, position)
    ) WITHOUT ROWID;
    CREATE TABLE rater (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        created_at INTEGER NOT NULL
    );
    CREATE TABLE presentation (
        id INTEGER PRIMARY KEY,
        token TEXT NOT NULL UNIQUE,             -- what a page sends back with its vote
        item_id INTEGER NOT NULL REFERENCES item(id),
        rater_id INTEGER NOT NULL REFERENCES rater(id),
        shown TEXT NOT NULL,                    -- JSON: positions in the order on the screen
        repeats INTEGER REFERENCES presentation(id),  -- asked again, for self-consistency
        created_at INTEGER NOT NULL
    );
    CREATE INDEX presentation_of_rater ON presentation(rater_id, item_id);
    CREATE INDEX presentation_of_item ON presentation(item_id);
    CREATE TABLE judgement (
        id INTEGER PRIMARY KEY,
        presentation_id INTEGER NOT NULL REFERENCES presentation(id),
        verdict TEXT NOT NULL,                  -- ranked, tie, both_good, both_bad, skip, undone
        ranking TEXT,                           -- JSON: tiers of positions, the best first
        strength TEXT,                          -- slightly, clearly, much
        note TEXT,
        edited TEXT,                            -- a better answer, written by the rater
        milliseconds INTEGER,                   -- from shown to judged
        supersedes INTEGER UNIQUE REFERENCES judgement(id),
        voted_at INTEGER NOT NULL,              -- when the first of a row of corrections was made
        created_at INTEGER NOT NULL
    );
    CREATE UNIQUE INDEX one_first_judgement ON judgement(presentation_id)
        WHERE supersedes IS NULL;               -- a double click or a held key is one vote
    CREATE INDEX judgement_of_presentation ON judgement(presentation_id);
    CREATE TRIGGER judgements_stay BEFORE UPDATE ON judgement
        BEGIN SELECT RAISE(ABORT, 'judgements are never changed'); END;
    CREATE TRIGGER judgements_are_kept BEFORE DELETE ON judgement
        BEGIN SELECT RAISE(ABORT, 'judgements are never deleted'); END;
    CREATE VIEW current_judgement AS
        SELECT j.* FROM judgement j
        WHERE NOT EXISTS (SELECT 1 FROM judgement k WHERE k.supersedes = j.id);
    """,
    """
    ALTER TABLE presentation ADD COLUMN open INTEGER NOT NULL DEFAULT 1;  -- not judged yet
    UPDATE presentation SET open = 0
        WHERE EXISTS (SELECT 1 FROM judgement j WHERE j.presentation_id = presentation.id);
    CREATE INDEX open_presentation ON presentation(rater_id, id) WHERE open = 1;
    CREATE INDEX presentation_in_time ON presentation(rater_id, id);
    CREATE INDEX repeated_presentation ON presentation(repeats) WHERE repeats IS NOT NULL;

    CREATE TABLE taste_test (                   -- a blind comparison of two models
        id INTEGER PRIMARY KEY,
        first TEXT NOT NULL,                    -- base, or a run
        second TEXT NOT NULL,
        wanted INTEGER NOT NULL,                -- prompts
        created_at INTEGER NOT NULL
    );
    ALTER TABLE item ADD COLUMN presented INTEGER NOT NULL DEFAULT 0;  -- to anybody
    ALTER TABLE item ADD COLUMN shared INTEGER NOT NULL DEFAULT 0;     -- asked of every rater
    ALTER TABLE item ADD COLUMN taste_test INTEGER REFERENCES taste_test(id);
    UPDATE item SET presented = 1
        WHERE EXISTS (SELECT 1 FROM presentation p WHERE p.item_id = item.id);
    CREATE INDEX item_waiting ON item(purpose, taste_test, id) WHERE presented = 0;
    CREATE INDEX item_shared ON item(purpose, taste_test, id) WHERE shared = 1;
    CREATE INDEX item_of_test ON item(taste_test) WHERE taste_test IS NOT NULL;

    CREATE TABLE guess (                        -- what the reward head said before a vote
        judgement_id INTEGER PRIMARY KEY REFERENCES judgement(id),
        model REAL NOT NULL,                    -- 1 right, 0 wrong, between where scores are equal
        longer REAL NOT NULL,                   -- the same of the longest answer
        chance REAL NOT NULL,                   -- and of a blind guess
        votes INTEGER NOT NULL,                 -- that the head had learned from
        created_at INTEGER NOT NULL
    );

    ALTER TABLE rater ADD COLUMN password TEXT; -- salted scrypt; without one nobody can log in
    CREATE TABLE session (                      -- logins
        digest TEXT PRIMARY KEY,                -- of the token in the browser
        rater_id INTEGER NOT NULL REFERENCES rater(id),
        expires_at INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE setting (                      -- of the rating pages
        name TEXT PRIMARY KEY,
        value TEXT NOT NULL                     -- JSON
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE presentation ADD COLUMN imported INTEGER NOT NULL DEFAULT 0;  -- not cast here
    """,
    """
    ALTER TABLE rater ADD COLUMN role TEXT NOT NULL DEFAULT 'rater';  -- at the pages; or owner
    -- Whoever could log in before there were roles could do everything.
    UPDATE rater SET role = 'owner' WHERE password IS NOT NULL;
    """,
    """
    ALTER TABLE guess ADD COLUMN confidence REAL;  -- the chance of the answer that it predicted
    """,
    """
    ALTER TABLE presentation ADD COLUMN key TEXT;  -- an imported vote's name in its own program
    CREATE UNIQUE INDEX presentation_key ON presentation(key) WHERE key IS NOT NULL;
    """,
)


def connect(path: Path) -> sqlite3.Connection:
    """A connection with the settings that keep data safe: WAL, full sync, foreign keys."""
    # Threads share the connection; `Database` has a lock for it.
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    _keep_a_log(db)
    db.execute("PRAGMA synchronous = FULL")
    # Each commit moves the log (the file that ends in -wal) into the file itself, so that a copy of
    # the file alone has all votes.
    db.execute("PRAGMA wal_autocheckpoint = 1")
    db.execute("PRAGMA foreign_keys = ON")
    return db


def _keep_a_log(db: sqlite3.Connection) -> None:
    """Turn on WAL; SQLite itself does not wait where several processes do so at once."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(0.01)


def prepare(path: Path) -> None:
    """Create the store if it is missing, and migrate an older one to the current schema.

    Raises:
        UserError: the file is not a store, has a newer version, or can't be written. It is left
            unchanged.
    """
    with readable_errors(path):
        version = _version(path)
        if version > len(MIGRATIONS):
            raise UserError(
                f"The preferences in {path} were written by a newer lorarlhf (schema {version}; "
                f"this one knows {len(MIGRATIONS)}). Install that version; the file is unchanged."
            )
        if version == len(MIGRATIONS):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(connect(path)) as db:
            db.execute("PRAGMA foreign_keys = OFF")  # a migration may drop and rebuild a table
            db.execute("BEGIN EXCLUSIVE")
            # Only one process gets here at a time, and another may have migrated it already.
            version = db.execute("PRAGMA user_version").fetchone()[0]
            for script in MIGRATIONS[version:]:
                for statement in _statements(script):
                    db.execute(statement)
            if broken := db.execute("PRAGMA foreign_key_check").fetchall():
                raise sqlite3.IntegrityError(f"{len(broken)} rows would refer to missing rows")
            db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            db.execute("COMMIT")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one; the body of a trigger is part of its statement."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _version(path: Path) -> int:
    """The number of the schema, read without changing the file; 0 if there is no store yet."""
    if not path.exists() or path.stat().st_size == 0:
        return 0
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master")}
    if tables and "judgement" not in tables:
        raise UserError(
            f"{path} is an SQLite database of another program, not a store of preferences. Name "
            "another file; this one is unchanged."
        )
    return version


@contextlib.contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into a `UserError` that says what to do."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        reason = str(error)
        if "not a database" in reason or "malformed" in reason:
            text = (
                f"{path} is not a store of preferences, or is damaged ({reason}); the file is "
                "unchanged."
            )
        elif "disk is full" in reason:
            text = (
                f"The disk is full: the last vote was not saved; all earlier ones in {path} are. "
                "Free some space and vote again."
            )
        elif "readonly" in reason or "unable to open" in reason:
            text = (
                f"The preferences in {path} can't be written. Check who owns the file and its "
                "folder."
            )
        elif "locked" in reason:
            text = f"Another program locks {path} for more than {BUSY_SECONDS:.0f} s. Close it."
        else:
            raise
        raise UserError(text) from error
    except PermissionError as error:
        raise UserError(
            f"The preferences in {path} can't be written ({error.strerror}). Check who owns the "
            "file and its folder."
        ) from error
