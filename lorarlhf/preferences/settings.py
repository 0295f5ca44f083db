"""Settings of the rating pages, kept in the store: one JSON value for each name."""

import json
from typing import Any

from lorarlhf.preferences.store import Store

ANSWERS = "collect"
"""The setting that says which models answer on the Rate page, and how; the pages' `AnswerSettings`.
Projects on disk have it under this name."""


def read_setting(store: Store, name: str) -> Any:
    """The value of a setting; None if it was never written."""
    rows = store.rows("SELECT value FROM setting WHERE name = ?", (name,))
    return json.loads(rows[0]["value"]) if rows else None


def write_setting(store: Store, name: str, value: Any) -> None:
    """Set a setting to a value that JSON can hold."""
    with store.write() as db:
        db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, json.dumps(value)))
