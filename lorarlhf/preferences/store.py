"""`Store`: prompts, completions, what was shown to whom, and the votes, in one SQLite file.

A vote is kept when `judge` returns: it is then on the disk, and neither a crash nor a power cut
takes it back. One store may be used by several threads and several processes at once.
"""

import hashlib
import json
import secrets
import sqlite3
import time
from collections.abc import Iterable, Sequence
from typing import Any

from lorarlhf.preferences.database import Database
from lorarlhf.preferences.records import (
    MOST_COMPLETIONS,
    UNDONE,
    Given,
    Presentation,
    Prompt,
    Verdict,
    Vote,
    check_verdict,
    stable_order,
)
from lorarlhf.runtime.errors import UserError


class Store(Database):
    """The preferences in one file."""

    # ---- what is voted on

    def add_prompt(self, prompt: Prompt, source: str = "") -> int:
        """A prompt's id; one that is there already is not added again."""
        with self.write() as db:
            return _add_prompt(db, prompt, source)

    def add_item(
        self,
        prompt: Prompt,
        completions: Sequence[tuple[str, str]],
        *,
        purpose: str = "train",
        sampling: Sequence[dict[str, Any]] = (),
        origin: dict[str, Any] | None = None,
        shared: bool = False,
        taste_test: int | None = None,
    ) -> int:
        """Two to six answers to one prompt, to be compared.

        Args:
            completions: (text, source) each; the source is the role or run that wrote it.
            purpose: `train`, or `compare` for taste tests, which are not trained on unless asked.
            sampling: how each was sampled.
            origin: where an imported item came from.
            shared: asked of every rater, not of one alone.
            taste_test: the test that it belongs to.

        Raises:
            ValueError: fewer than two or more than six answers, or another purpose.
        """
        if not 2 <= len(completions) <= MOST_COMPLETIONS:
            raise ValueError(f"an item has 2 to {MOST_COMPLETIONS} answers, not {len(completions)}")
        if purpose not in ("train", "compare"):
            raise ValueError(f"purpose is train or compare, not {purpose!r}")
        with self.write() as db:
            prompt_id, now = _add_prompt(db, prompt, ""), _now()
            item = db.execute(
                "INSERT INTO item (prompt_id, purpose, origin, shared, taste_test, created_at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (prompt_id, purpose, json.dumps(origin or {}), shared, taste_test, now),
            ).lastrowid
            for position, (text, source) in enumerate(completions):
                how = json.dumps(sampling[position] if sampling else {})
                completion = db.execute(
                    "INSERT INTO completion (prompt_id, text, source, sampling, created_at) "
                    "VALUES (?, ?, ?, ?, ?)",
                    (prompt_id, text, source, how, now),
                ).lastrowid
                db.execute(
                    "INSERT INTO item_completion VALUES (?, ?, ?)", (item, position, completion)
                )
        return int(item or 0)

    def rater(self, name: str) -> int:
        """A rater's id by name, made where there is none."""
        with self.write() as db:
            db.execute(
                "INSERT INTO rater (name, created_at) VALUES (?, ?) ON CONFLICT DO NOTHING",
                (name, _now()),
            )
            return db.execute("SELECT id FROM rater WHERE name = ?", (name,)).fetchone()[0]

    # ---- showing and judging

    def present(
        self,
        item_id: int,
        rater: str,
        repeats: int | None = None,
        shown: Sequence[int] | None = None,
    ) -> Presentation:
        """Show an item to a rater: sides by a shuffle that is always the same for this rater.

        What the rater was shown and has not judged yet is shown again, with the same token: a
        reload or a second tab makes no second vote.

        Args:
            repeats: the presentation that this one asks again; its order is turned round.
            shown: the order on the screen where it was another one.
        """
        with self.write() as db:
            rater_id = self.rater(rater)
            waiting = None if shown is not None else self._waiting(item_id, rater_id, repeats)
            if waiting is not None:
                return waiting
            if shown is not None:
                order = list(shown)
            elif repeats is None:
                order = stable_order(rater, item_id, _size(db, item_id))
            else:
                before = db.execute("SELECT shown FROM presentation WHERE id = ?", (repeats,))
                order = json.loads(before.fetchone()[0])[::-1]
            token = secrets.token_urlsafe(12)
            made = db.execute(
                "INSERT INTO presentation (token, item_id, rater_id, shown, repeats, created_at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (token, item_id, rater_id, json.dumps(order), repeats, _now()),
            ).lastrowid
            db.execute("UPDATE item SET presented = 1 WHERE id = ?", (item_id,))
        return Presentation(int(made or 0), token, item_id, order)

    def _waiting(self, item_id: int, rater_id: int, repeats: int | None) -> Presentation | None:
        """What the rater was shown of an item and has not judged yet."""
        rows = self.rows(
            "SELECT * FROM presentation WHERE item_id = ? AND rater_id = ? AND repeats IS ? "
            "AND open = 1",
            (item_id, rater_id, repeats),
        )
        if not rows:
            return None
        return Presentation(rows[0]["id"], rows[0]["token"], item_id, json.loads(rows[0]["shown"]))

    def presentation(self, token: str, rater: str) -> Presentation:
        """What was shown to a rater under a token.

        Raises:
            UserError: this rater was shown nothing of that name.
        """
        rows = self.rows(
            "SELECT p.* FROM presentation p JOIN rater r ON r.id = p.rater_id "
            "WHERE p.token = ? AND r.name = ?",
            (token, rater),
        )
        if not rows:
            raise UserError("This page is not known here any more. Reload it.")
        return Presentation(rows[0]["id"], token, rows[0]["item_id"], json.loads(rows[0]["shown"]))

    def judge(
        self,
        token: str,
        verdict: Verdict,
        milliseconds: int | None = None,
        created_at: int | None = None,
    ) -> int:
        """Keep a vote; returns its id. A second vote with the same token changes nothing.

        Raises:
            UserError: no such token, or its vote was taken back or corrected in the meantime.
            ValueError: a verdict that the item does not allow.
        """
        with self.write() as db:
            found = db.execute(
                "SELECT id, item_id FROM presentation WHERE token = ?", (token,)
            ).fetchone()
            if found is None:
                raise UserError("This page is not known here any more. Reload it.")
            first = db.execute(
                "SELECT j.id, c.id IS NOT NULL AS stands FROM judgement j "
                "LEFT JOIN current_judgement c ON c.id = j.id "
                "WHERE j.presentation_id = ? AND j.supersedes IS NULL",
                (found["id"],),
            ).fetchone()
            if first is not None and not first["stands"]:
                raise UserError("This vote was changed elsewhere in the meantime. Reload the page.")
            if first is not None:
                return first["id"]
            check_verdict(verdict, _size(db, found["item_id"]))
            when = _now() if created_at is None else created_at
            db.execute("UPDATE presentation SET open = 0 WHERE id = ?", (found["id"],))
            return _insert(db, found["id"], verdict, milliseconds, None, when)

    def correct(self, judgement_id: int, verdict: Verdict | None) -> int:
        """Put a new verdict in the place of a judgement; None takes it back (undo).

        Raises:
            UserError: the judgement is not there, or was corrected already.
        """
        with self.write() as db:
            old = db.execute(
                "SELECT c.*, p.item_id FROM current_judgement c "
                "JOIN presentation p ON p.id = c.presentation_id WHERE c.id = ?",
                (judgement_id,),
            ).fetchone()
            if old is None:
                raise UserError("This vote was changed elsewhere in the meantime. Reload the page.")
            if verdict is not None:
                check_verdict(verdict, _size(db, old["item_id"]))
            new = verdict or Verdict(UNDONE)
            place = old["presentation_id"]
            return _insert(db, place, new, old["milliseconds"], judgement_id, old["voted_at"])

    def undo(
        self,
        rater: str,
        *,
        purpose: str = "train",
        taste_test: int | None = None,
        expected: int | None = None,
    ) -> Presentation | None:
        """Take a rater's last vote back and show its item again; None where there is none.

        Args:
            purpose, taste_test: only votes of this kind, and of this test.
            expected: the vote that the rater means, also where it was corrected since. Where it is
                undone already (a second click) its item is shown, and no other vote is touched.
        """
        with self.write():
            if (number := expected) is None:
                number = self.last_vote(rater, purpose, taste_test)
            found = self.rows(
                "SELECT p.*, c.id AS now, c.verdict AS said FROM judgement j "
                "JOIN presentation p ON p.id = j.presentation_id "
                "JOIN current_judgement c ON c.presentation_id = p.id "
                "JOIN rater r ON r.id = p.rater_id JOIN item i ON i.id = p.item_id "
                "WHERE j.id = ? AND j.verdict != 'undone' AND r.name = ? AND i.purpose = ? "
                "AND (?4 IS NULL OR i.taste_test = ?4)",
                (number, rater, purpose, taste_test),
            )
            if not found:
                return None
            if found[0]["said"] != UNDONE:
                self.correct(found[0]["now"], None)
            return self.present_again(found[0]["id"])

    def present_again(self, presentation: int) -> Presentation:
        """Show what was shown, to the same rater and with the same sides."""
        with self.write():
            (row,) = self.rows(
                "SELECT p.*, r.name FROM presentation p JOIN rater r ON r.id = p.rater_id "
                "WHERE p.id = ?",
                (presentation,),
            )
            waiting = self._waiting(row["item_id"], row["rater_id"], row["repeats"])
            if waiting is not None:  # a second click
                return waiting
            order = json.loads(row["shown"])
            return self.present(row["item_id"], row["name"], row["repeats"], order)

    def last_vote(
        self, rater: str, purpose: str = "train", taste_test: int | None = None
    ) -> int | None:
        """The number of the rater's newest vote as it stands; None where there is none."""
        rows = self.rows(
            "SELECT c.id FROM current_judgement c JOIN presentation p ON p.id = c.presentation_id "
            "JOIN rater r ON r.id = p.rater_id JOIN item i ON i.id = p.item_id "
            "WHERE r.name = ? AND i.purpose = ? AND (?3 IS NULL OR i.taste_test = ?3) "
            "AND c.verdict != 'undone' ORDER BY c.voted_at DESC, c.id DESC LIMIT 1",
            (rater, purpose, taste_test),
        )
        return rows[0]["id"] if rows else None

    def add_votes(self, votes: Iterable[Given]) -> int:
        """Add votes from elsewhere, all of them or, where one does not fit, none; says how many.

        Raises:
            ValueError: a vote that does not fit its item.
        """
        items: dict[Any, int] = {}
        presentations: dict[tuple[int, int], int] = {}  # by item and the number elsewhere
        added = 0
        with self.write():
            for vote in votes:
                # What is not the same prompt and answers is not the same item, whatever its name.
                key = (vote.item, json.dumps(vote.prompt), vote.completions, vote.purpose)
                item = items.get(key) if vote.item is not None else None
                if item is None:
                    item = items[key] = self.add_item(
                        vote.prompt,
                        vote.completions,
                        purpose=vote.purpose,
                        sampling=vote.sampling,
                        origin=vote.origin,
                    )
                order = list(vote.shown or range(len(vote.completions)))
                repeats = presentations.get((item, vote.repeats)) if vote.repeats else None
                shown = self.present(item, vote.rater, repeats, order)
                if vote.presentation is not None:
                    presentations[item, vote.presentation] = shown.id
                self.judge(shown.token, vote.verdict, vote.milliseconds, vote.created_at)
                added += 1
        return added

    # ---- reading

    def votes(
        self, *, rater: str | None = None, purpose: str | None = None, newest: int | None = None
    ) -> list[Vote]:
        """The judgements as they stand, in the order in which they were made, undone ones left out.

        Args:
            rater, purpose: only these.
            newest: only so many, of the newest.
        """
        where = "WHERE c.verdict != 'undone' AND (:rater IS NULL OR r.name = :rater) "
        where += "AND (:purpose IS NULL OR i.purpose = :purpose)"
        with self._lock:  # votes and answers as they are at one moment
            rows = self.rows(
                f"SELECT * FROM ({_VOTES} {where} ORDER BY c.voted_at DESC, c.id DESC "
                "LIMIT :newest) ORDER BY voted_at, id",
                {"rater": rater, "purpose": purpose, "newest": -1 if newest is None else newest},
            )
            return [self._vote(row) for row in rows]

    def vote(self, judgement_id: int) -> Vote | None:
        """One judgement; None where it does not stand any more, or is an undone one."""
        rows = self.rows(
            f"{_VOTES} WHERE c.id = ? AND c.verdict != 'undone'",
            (judgement_id,),
        )
        return self._vote(rows[0]) if rows else None

    def count(self, rater: str | None = None, since: int = 0) -> int:
        """Judgements as they stand, undone ones left out, from a time on (ms since 1970)."""
        return self.counts(rater, (since,))[0]

    def counts(self, rater: str | None, since: Sequence[int]) -> list[int]:
        """`count` from each of several times on."""
        sums = ", ".join("coalesce(sum(j.voted_at >= ?), 0)" for _ in since)
        rows = self.rows(
            f"SELECT {sums} FROM judgement j JOIN presentation p ON p.id = j.presentation_id "
            "JOIN rater r ON r.id = p.rater_id WHERE j.verdict != 'undone' "
            "AND NOT EXISTS (SELECT 1 FROM judgement k WHERE k.supersedes = j.id) "
            "AND (? IS NULL OR r.name = ?)",
            (*since, rater, rater),
        )
        return list(rows[0])

    def _vote(self, row: sqlite3.Row) -> Vote:
        answers = self.rows(
            "SELECT c.text, c.source, c.sampling FROM item_completion ic "
            "JOIN completion c ON c.id = ic.completion_id WHERE ic.item_id = ? ORDER BY position",
            (row["item_id"],),
        )
        verdict = Verdict(
            row["verdict"],
            json.loads(row["ranking"] or "[]"),
            row["strength"],
            row["note"],
            row["edited"],
        )
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
            verdict=verdict,
            milliseconds=row["milliseconds"],
            created_at=row["voted_at"],
            sampling=[json.loads(answer["sampling"]) for answer in answers],
            repeats=row["repeats"],
            origin=json.loads(row["origin"]),
        )


_VOTES = """
    SELECT c.*, r.name AS rater, p.item_id, p.shown, p.repeats, i.purpose, i.origin, q.messages
    FROM current_judgement c
    JOIN presentation p ON p.id = c.presentation_id
    JOIN rater r ON r.id = p.rater_id
    JOIN item i ON i.id = p.item_id
    JOIN prompt q ON q.id = i.prompt_id
"""


def _now() -> int:
    return time.time_ns() // 1_000_000


def _add_prompt(db: sqlite3.Connection, prompt: Prompt, source: str) -> int:
    messages = json.dumps(prompt, ensure_ascii=False, sort_keys=True)
    digest = hashlib.sha256(messages.encode("utf-8", "surrogatepass")).hexdigest()
    db.execute(
        "INSERT INTO prompt (digest, messages, source, created_at) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (digest) DO NOTHING",
        (digest, messages, source, _now()),
    )
    return db.execute("SELECT id FROM prompt WHERE digest = ?", (digest,)).fetchone()[0]


def _size(db: sqlite3.Connection, item_id: int) -> int:
    """How many answers an item has."""
    return db.execute(
        "SELECT count(*) FROM item_completion WHERE item_id = ?", (item_id,)
    ).fetchone()[0]


def _insert(
    db: sqlite3.Connection,
    presentation_id: int,
    verdict: Verdict,
    milliseconds: int | None,
    supersedes: int | None,
    voted_at: int,
) -> int:
    ranking = json.dumps(verdict.ranking) if verdict.ranking else None
    made = db.execute(
        "INSERT INTO judgement (presentation_id, verdict, ranking, strength, note, edited, "
        "milliseconds, supersedes, voted_at, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            presentation_id,
            verdict.verdict,
            ranking,
            verdict.strength,
            verdict.note,
            verdict.edited,
            milliseconds,
            supersedes,
            voted_at,
            _now(),
        ),
    ).lastrowid
    return int(made or 0)
