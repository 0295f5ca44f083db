"""Rows of the store's tables: inserting them, and turning them into records."""

import hashlib
import json
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from lorarlhf.preferences.records import Presentation, Prompt, Verdict, Vote

VOTES = """
    SELECT c.*, r.name AS rater, p.item_id, p.shown, p.repeats, p.imported, p.key,
        i.purpose, i.origin, q.messages
    FROM current_judgement c
    JOIN presentation p ON p.id = c.presentation_id
    JOIN rater r ON r.id = p.rater_id
    JOIN item i ON i.id = p.item_id
    JOIN prompt q ON q.id = i.prompt_id
"""
"""The query behind `vote_from_row`, without its WHERE."""


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def prompt_text(prompt: Prompt) -> str:
    """A prompt as the column `messages` holds it."""
    return json.dumps(prompt, ensure_ascii=False, sort_keys=True)


def prompt_digest(prompt: Prompt) -> str:
    """What the column `digest` holds of a prompt."""
    return hashlib.sha256(prompt_text(prompt).encode("utf-8", "surrogatepass")).hexdigest()


def insert_prompt(db: sqlite3.Connection, prompt: Prompt, source: str) -> int:
    """The id of a prompt, which is inserted if it is new."""
    digest = prompt_digest(prompt)
    db.execute(
        "INSERT INTO prompt (digest, messages, source, created_at) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (digest) DO NOTHING",
        (digest, prompt_text(prompt), source, now()),
    )
    return db.execute("SELECT id FROM prompt WHERE digest = ?", (digest,)).fetchone()[0]


def insert_completion(
    db: sqlite3.Connection, prompt_id: int, text: str, source: str, sampling: dict[str, Any]
) -> int:
    """The id of a new completion."""
    made = db.execute(
        "INSERT INTO completion (prompt_id, text, source, sampling, created_at) "
        "VALUES (?, ?, ?, ?, ?)",
        (prompt_id, text, source, json.dumps(sampling), now()),
    ).lastrowid
    return int(made or 0)


def insert_judgement(
    db: sqlite3.Connection,
    presentation_id: int,
    verdict: Verdict,
    milliseconds: int | None,
    supersedes: int | None,
    voted_at: int,
) -> int:
    """The id of a new judgement."""
    made = db.execute(
        "INSERT INTO judgement (presentation_id, verdict, ranking, strength, note, edited, "
        "milliseconds, supersedes, voted_at, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            presentation_id,
            verdict.verdict,
            json.dumps(verdict.ranking) if verdict.ranking else None,
            verdict.strength,
            verdict.note,
            verdict.edited,
            milliseconds,
            supersedes,
            voted_at,
            now(),
        ),
    ).lastrowid
    return int(made or 0)


def count_answers(db: sqlite3.Connection, item_id: int) -> int:
    """How many answers an item has."""
    return db.execute(
        "SELECT count(*) FROM item_completion WHERE item_id = ?", (item_id,)
    ).fetchone()[0]


def open_presentation(
    db: sqlite3.Connection, item_id: int, rater_id: int, repeats: int | None
) -> Presentation | None:
    """The presentation of an item that this rater has not judged yet."""
    row = db.execute(
        "SELECT * FROM presentation WHERE item_id = ? AND rater_id = ? AND repeats IS ? "
        "AND open = 1",
        (item_id, rater_id, repeats),
    ).fetchone()
    return None if row is None else presentation_from_row(row)


def presentation_from_row(row: sqlite3.Row) -> Presentation:
    """A row of the table `presentation` as a record."""
    return Presentation(row["id"], row["token"], row["item_id"], json.loads(row["shown"]))


def verdict_from_row(row: sqlite3.Row) -> Verdict:
    """The verdict in a row of the table `judgement`."""
    return Verdict(
        row["verdict"],
        json.loads(row["ranking"] or "[]"),
        row["strength"],
        row["note"],
        row["edited"],
    )


def _object(text: str) -> dict[str, Any]:
    """A JSON object; most are empty, and among many thousand votes that saves a second."""
    return {} if text == "{}" else json.loads(text)


def vote_from_row(row: sqlite3.Row, answers: Sequence[sqlite3.Row]) -> Vote:
    """A row of `VOTES` and the item's answers (text, source, sampling; by position) as a record."""
    return Vote(
        id=row["id"],
        rater=row["rater"],
        presentation_id=row["presentation_id"],
        item_id=row["item_id"],
        purpose=row["purpose"],
        prompt=json.loads(row["messages"]),
        completions=[answer["text"] for answer in answers],
        sources=[answer["source"] for answer in answers],
        shown=json.loads(row["shown"]),
        verdict=verdict_from_row(row),
        milliseconds=row["milliseconds"],
        created_at=row["voted_at"],
        sampling=[_object(answer["sampling"]) for answer in answers],
        repeats=row["repeats"],
        origin=_object(row["origin"]),
        imported=bool(row["imported"]),
        key=row["key"],
    )
