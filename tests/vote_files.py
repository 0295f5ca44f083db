"""Reading rows as a file of votes, for the tests of what other tools export."""

import json
from pathlib import Path
from typing import Any

from lorarlhf.preferences.imports import Import, read_votes
from lorarlhf.preferences.records import ImportedVote, Verdict

FIRST, SECOND = Verdict("ranked", [[0], [1]]), Verdict("ranked", [[1], [0]])
Row = dict[str, Any]


def read(folder: Path, *rows: Row, name: str = "rows.jsonl", **how: Any) -> Import:
    (folder / name).write_text("\n".join(json.dumps(row) for row in rows))
    return read_votes(folder / name, **how)


def only(found: Import) -> ImportedVote:
    (vote,) = found.votes
    return vote


def talk(*texts: str) -> list[Row]:
    roles = ("user", "assistant") * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
