"""The newest answers of the endpoint, so that a thumb for one of them can be stored.

They are private: a file in the project that only its owner may read. The oldest make room for new
ones, and what is deleted is overwritten.
"""

import json
import os
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from lorarlhf.preferences.thumbs import NamedAnswer
from lorarlhf.runtime.errors import UserError

FILE = "serve.sqlite"
"""In the project's folder."""
MOST = 5000
"""Answers that are remembered."""
BUSY_SECONDS = 30.0
_TABLE = """
    CREATE TABLE IF NOT EXISTS answer (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,              -- of the completion and the choice: chatcmpl-...#0
        prompt TEXT NOT NULL,                   -- JSON: the messages
        text TEXT NOT NULL,
        source TEXT NOT NULL,                   -- base, or runs/NAME
        sampling TEXT NOT NULL                  -- JSON
    )
"""


class Remembered:
    """The answers, by the names that clients know. Threads may share it.

    Args:
        folder: of the project.

    Raises:
        UserError: the file can't be written, or is no store of answers.
    """

    def __init__(self, folder: Path, most: int = MOST) -> None:
        self.path, self.most = folder / FILE, most
        self._lock = threading.Lock()
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            with closing(self._connect()) as db, db:
                db.execute(_TABLE)
        except (OSError, sqlite3.DatabaseError) as error:
            raise UserError(
                f"The answers in {self.path} can't be kept ({error}). Delete the file, check the "
                "folder's rights, or start with --no-feedback."
            ) from error

    def keep(self, answers: Sequence[NamedAnswer]) -> None:
        """Remember answers, and forget the oldest ones beyond the limit."""
        rows = [
            (
                answer.name,
                json.dumps(answer.prompt),
                answer.text,
                answer.source,
                json.dumps(answer.sampling),
            )
            for answer in answers
        ]
        with self._lock, closing(self._connect()) as db, db:
            db.executemany(
                "INSERT INTO answer (name, prompt, text, source, sampling) VALUES (?, ?, ?, ?, ?)",
                rows,
            )
            db.execute(
                "DELETE FROM answer WHERE number <= (SELECT max(number) FROM answer) - ?",
                (self.most,),
            )

    def find(self, name: str) -> NamedAnswer | None:
        """The answer with a name; None if it is not remembered.

        Raises:
            UserError: the file can't be read.
        """
        try:
            with self._lock, closing(self._connect()) as db:
                row = db.execute(
                    "SELECT prompt, text, source, sampling FROM answer WHERE name = ?", (name,)
                ).fetchone()
        except (OSError, sqlite3.DatabaseError) as error:
            raise UserError(f"The answers in {self.path.name} can't be read ({error}).") from error
        if row is None:
            return None
        prompt, text, source, sampling = row
        return NamedAnswer(name, json.loads(prompt), text, source, json.loads(sampling))

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=BUSY_SECONDS)
        db.execute("PRAGMA secure_delete = ON")
        return db
