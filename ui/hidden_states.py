"""A cache of the answers' hidden states beside the store; it may be deleted at any time."""

import contextlib
import hashlib
import json
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorarlhf.preferences.records import Prompt
from lorarlhf.runtime.files import move
from lorarlhf_ui.engine_worker import unpacked

if TYPE_CHECKING:
    import numpy as np

FILE = "hidden_states.sqlite"


class HiddenStates:
    """Rows of features by prompt and answer, for one feature space.

    Args:
        path: the SQLite file; it is created if it does not exist.

    Attributes:
        space: names the feature space: the base, and the layer at which its trunk ends.
    """

    def __init__(self, path: Path) -> None:
        self._lock, self.space = threading.Lock(), ""
        try:
            self._open(path)
        except sqlite3.OperationalError:  # the folder is read-only, or the file is locked
            raise
        except sqlite3.DatabaseError:  # damaged, but it is only a cache
            self._db.close()
            move(path, path.with_suffix(".damaged"))
            self._open(path)

    def _open(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, row TEXT)")
        self._db.execute("CREATE TABLE IF NOT EXISTS last (space TEXT)")
        found = self._db.execute("SELECT space FROM last").fetchone()
        if found:
            self.space = found[0]  # so that the meter works before the model is loaded

    def use(self, space: str) -> None:
        """Change to the feature space of the base that is loaded."""
        with self._lock, contextlib.suppress(sqlite3.OperationalError):
            self.space = space
            self._db.execute("DELETE FROM last")
            self._db.execute("INSERT INTO last VALUES (?)", (space,))

    def put(self, prompt: Prompt, answers: Sequence[str], rows: Sequence[str]) -> None:
        """Keep packed rows. A full disk is ignored: votes do not depend on this cache."""
        keys = [self._key(prompt, answer) for answer in answers]
        with self._lock, contextlib.suppress(sqlite3.OperationalError):
            self._db.executemany(
                "INSERT OR REPLACE INTO state VALUES (?, ?)", list(zip(keys, rows, strict=True))
            )

    def get(self, prompt: Prompt, answers: Sequence[str]) -> "list[np.ndarray] | None":
        """The rows (F,) of all these answers; None if one is missing."""
        found = []
        for answer in answers:
            key = self._key(prompt, answer)
            with self._lock:
                row = self._db.execute("SELECT row FROM state WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            found.append(unpacked(row[0]))
        return found

    def version(self) -> tuple[str, int]:
        """Stays the same as long as the feature space and the rows are the same."""
        with self._lock:
            newest = self._db.execute("SELECT max(rowid) FROM state").fetchone()[0]
        return self.space, newest or 0

    def put_axes(self, rows: Sequence[str]) -> None:
        """Keep the packed style axes of this feature space."""
        self.put("style axes", ["axes"], [json.dumps(list(rows))])

    def axes(self) -> "np.ndarray | None":
        """The style axes (K, F) of this feature space; None if they are not known yet."""
        import numpy as np

        with self._lock:
            key = self._key("style axes", "axes")
            row = self._db.execute("SELECT row FROM state WHERE key = ?", (key,)).fetchone()
        return None if row is None else np.stack([unpacked(text) for text in json.loads(row[0])])

    def _key(self, prompt: Prompt, answer: str) -> str:
        # Sorted: the store returns the fields of a message in another order.
        text = json.dumps([self.space, prompt, answer], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
