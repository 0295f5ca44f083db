"""`Database`: one SQLite file and one connection, which threads use one at a time."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from lorarlhf.preferences import schema
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import move


class Database:
    """The SQLite file of preferences, created if it is missing; `Store` has the methods for it.

    Args:
        path: the SQLite file.

    Raises:
        UserError: the file is not a store, has a newer version, or can't be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        schema.prepare(self.path)
        self._lock = threading.RLock()
        with schema.readable_errors(self.path):
            self._db = schema.connect(self.path)

    def close(self) -> None:
        """Close the file; the store can't be used afterwards."""
        with self._lock:
            self._db.close()

    def checkpoint(self) -> None:
        """Move what is left in the log beside the file into the file, unless others read just now.

        A commit does it, too, but another connection's reading can keep it from the last part.
        """
        with self._lock, suppress(sqlite3.OperationalError):
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: afterwards all of it is on the disk, or nothing."""
        with self._lock:
            if self._db.in_transaction:  # nested in a transaction of this thread
                yield self._db
                return
            with schema.readable_errors(self.path):
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise

    def rows(self, query: str, values: Any = ()) -> list[sqlite3.Row]:
        """The rows that a query finds."""
        with self._lock, schema.readable_errors(self.path):
            return self._db.execute(query, values).fetchall()

    def backup(self, target: str | Path) -> Path:
        """Copy the store as it is now, even while others write to it.

        Raises:
            UserError: the target exists already, or it can't be written.
        """
        target = Path(target)
        if target.exists():
            raise UserError(f"{target} exists already. Name another file for the backup.")
        part = target.with_name(f".{target.name}.part")
        try:
            with self._lock, closing(sqlite3.connect(part)) as copy:
                self._db.backup(copy)
            move(part, target)
        except (OSError, sqlite3.DatabaseError) as error:
            raise UserError(f"The backup {target} can't be written ({error}).") from error
        finally:
            part.unlink(missing_ok=True)
        return target
