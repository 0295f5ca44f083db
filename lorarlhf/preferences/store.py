"""`Store`: prompts, completions, presentations and votes in one SQLite file.

When `judge` returns, the vote is on the disk: a crash or a power cut does not lose it. Several
threads and several processes may use one store at the same time.
"""

import json
import secrets
import sqlite3
from collections.abc import Sequence
from typing import Any

from lorarlhf.preferences.database import Database
from lorarlhf.preferences.records import (
    MOST_COMPLETIONS,
    UNDONE,
    Presentation,
    Prompt,
    Verdict,
    Vote,
    check_verdict,
    spellings,
    stable_order,
)
from lorarlhf.preferences.rows import (
    VOTES,
    count_answers,
    insert_completion,
    insert_judgement,
    insert_prompt,
    now,
    open_presentation,
    presentation_from_row,
    vote_from_row,
)
from lorarlhf.runtime.errors import UserError

UNKNOWN_PAGE = "This page is not known here any more. Reload it."
CHANGED_ELSEWHERE = "This vote was changed elsewhere in the meantime. Reload the page."


class Store(Database):
    """The preferences in one file.

    The methods add what is voted on, record votes and read them back. Functions for one purpose
    each take a store: `queue` (what to ask next), `undo`, `history` (search), `statistics`,
    `blind_comparisons`, `guesses`, `settings`, `accounts`, `thumbs` and `merge` (import).
    """

    # ---- what is voted on

    def add_prompt(self, prompt: Prompt, source: str = "") -> int:
        """The id of a prompt; a prompt that the store already has is not added again."""
        with self.write() as db:
            return insert_prompt(db, prompt, source)

    def add_item(
        self,
        prompt: Prompt,
        completions: Sequence[tuple[str, str]],
        *,
        purpose: str = "train",
        sampling: Sequence[dict[str, Any]] = (),
        origin: dict[str, Any] | None = None,
        shared: bool = False,
        comparison: int | None = None,
        alone: bool = False,
    ) -> int:
        """Add two to six answers to one prompt, to be compared; returns the item's id.

        Args:
            completions: (text, source) each; the source is the role or run that wrote it.
            purpose: `train`, or `compare` for blind comparisons, which are left out of training
                unless asked for.
            sampling: how each was sampled.
            origin: where an imported item came from.
            shared: ask every rater, not just one.
            comparison: the id of the blind comparison it belongs to.
            alone: allow one answer, for a vote that calls it good or bad. Nobody is asked it.

        Raises:
            ValueError: too few answers or more than six, or another purpose.
        """
        fewest = 1 if alone else 2
        if not fewest <= len(completions) <= MOST_COMPLETIONS:
            many = f"{fewest} to {MOST_COMPLETIONS} answers"
            raise ValueError(f"an item has {many}, not {len(completions)}")
        if purpose not in ("train", "compare"):
            raise ValueError(f"purpose is train or compare, not {purpose!r}")
        with self.write() as db:
            prompt_id = insert_prompt(db, prompt, "")
            item = db.execute(
                "INSERT INTO item (prompt_id, purpose, origin, shared, taste_test, created_at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (prompt_id, purpose, json.dumps(origin or {}), shared, comparison, now()),
            ).lastrowid
            for position, (text, source) in enumerate(completions):
                how = sampling[position] if sampling else {}
                completion = insert_completion(db, prompt_id, text, source, how)
                db.execute(
                    "INSERT INTO item_completion VALUES (?, ?, ?)", (item, position, completion)
                )
        return int(item or 0)

    def rater(self, name: str) -> int:
        """The id of the rater with this name, who is added if new; see `rater_name`."""
        with self.write() as db:
            name = self.rater_name(name)
            db.execute(
                "INSERT INTO rater (name, created_at) VALUES (?, ?) ON CONFLICT DO NOTHING",
                (name, now()),
            )
            return db.execute("SELECT id FROM rater WHERE name = ?", (name,)).fetchone()[0]

    def rater_name(self, name: str) -> str:
        """A rater's name as the store has it, in whatever Unicode form it is given.

        New names are stored composed (NFC); older stores may have others.
        """
        forms = spellings(name)
        rows = self.rows(
            "SELECT name FROM rater WHERE name IN (SELECT value FROM json_each(?))",
            (json.dumps(forms),),
        )
        known = {row["name"] for row in rows}
        return next((form for form in (name, *forms) if form in known), forms[0])

    # ---- showing and judging

    def present(
        self,
        item_id: int,
        rater: str,
        repeats: int | None = None,
        shown: Sequence[int] | None = None,
        *,
        imported: bool = False,
        key: str | None = None,
    ) -> Presentation:
        """Show an item to a rater, with the sides shuffled in a fixed order for this rater.

        An item that the rater has open already keeps its presentation and token, so a reload or a
        second tab does not lead to a second vote.

        Args:
            repeats: the presentation that this one asks again, with its order reversed.
            shown: another order of positions on the screen.
            imported: the vote comes from a file. Undo leaves it alone.
            key: its name in the program that it comes from.
        """
        with self.write() as db:
            rater_id = self.rater(rater)
            opened = open_presentation(db, item_id, rater_id, repeats)
            if opened is not None and shown is None:
                return opened
            if shown is not None:
                order = list(shown)
            elif repeats is None:
                order = stable_order(rater, item_id, count_answers(db, item_id))
            else:
                before = db.execute("SELECT shown FROM presentation WHERE id = ?", (repeats,))
                order = json.loads(before.fetchone()[0])[::-1]
            token = secrets.token_urlsafe(12)
            made = db.execute(
                "INSERT INTO presentation (token, item_id, rater_id, shown, repeats, created_at, "
                "imported, key) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (token, item_id, rater_id, json.dumps(order), repeats, now(), imported, key),
            ).lastrowid
            db.execute("UPDATE item SET presented = 1 WHERE id = ?", (item_id,))
        return Presentation(int(made or 0), token, item_id, order)

    def presentation(self, token: str, rater: str) -> Presentation:
        """The presentation behind a token.

        Raises:
            UserError: this rater has no presentation with this token.
        """
        rows = self.rows(
            "SELECT p.* FROM presentation p JOIN rater r ON r.id = p.rater_id "
            "WHERE p.token = ? AND r.name = ?",
            (token, rater),
        )
        if not rows:
            raise UserError(UNKNOWN_PAGE)
        return presentation_from_row(rows[0])

    def judge(
        self,
        token: str,
        verdict: Verdict,
        milliseconds: int | None = None,
        created_at: int | None = None,
    ) -> int:
        """Record a vote and return its id. A second vote with the same token changes nothing.

        Raises:
            UserError: the token is unknown, or its vote was undone or corrected in the meantime.
            ValueError: the verdict does not fit the item.
        """
        with self.write() as db:
            found = db.execute(
                "SELECT id, item_id FROM presentation WHERE token = ?", (token,)
            ).fetchone()
            if found is None:
                raise UserError(UNKNOWN_PAGE)
            first = db.execute(
                "SELECT j.id, c.id IS NOT NULL AS stands FROM judgement j "
                "LEFT JOIN current_judgement c ON c.id = j.id "
                "WHERE j.presentation_id = ? AND j.supersedes IS NULL",
                (found["id"],),
            ).fetchone()
            if first is not None and not first["stands"]:
                raise UserError(CHANGED_ELSEWHERE)
            if first is not None:
                return first["id"]
            check_verdict(verdict, count_answers(db, found["item_id"]))
            when = now() if created_at is None else created_at
            db.execute("UPDATE presentation SET open = 0 WHERE id = ?", (found["id"],))
            return insert_judgement(db, found["id"], verdict, milliseconds, None, when)

    def correct(self, judgement_id: int, verdict: Verdict | None) -> int:
        """Replace a judgement by a new one and return its id; a verdict of None undoes the vote.

        Raises:
            UserError: there is no such judgement, or it was corrected already.
        """
        with self.write() as db:
            old = db.execute(
                "SELECT c.*, p.item_id FROM current_judgement c "
                "JOIN presentation p ON p.id = c.presentation_id WHERE c.id = ?",
                (judgement_id,),
            ).fetchone()
            if old is None:
                raise UserError(CHANGED_ELSEWHERE)
            if verdict is not None:
                check_verdict(verdict, count_answers(db, old["item_id"]))
            return insert_judgement(
                db,
                old["presentation_id"],
                verdict or Verdict(UNDONE),
                old["milliseconds"],
                supersedes=judgement_id,
                voted_at=old["voted_at"],
            )

    # ---- reading

    def votes(
        self, *, rater: str | None = None, purpose: str | None = None, newest: int | None = None
    ) -> list[Vote]:
        """The current votes in the order in which they were cast, without undone ones.

        Args:
            rater, purpose: only these.
            newest: at most this many, the newest ones.
        """
        where = "WHERE c.verdict != 'undone' AND (:rater IS NULL OR r.name = :rater) "
        where += "AND (:purpose IS NULL OR i.purpose = :purpose)"
        with self._lock:  # votes and answers from the same moment
            rows = self.rows(
                f"SELECT * FROM ({VOTES} {where} ORDER BY c.voted_at DESC, c.id DESC "
                "LIMIT :newest) ORDER BY voted_at, id",
                {"rater": rater, "purpose": purpose, "newest": -1 if newest is None else newest},
            )
            return self._with_answers(rows)

    def vote(self, judgement_id: int) -> Vote | None:
        """One vote; None if it was undone or corrected since."""
        rows = self.rows(
            f"{VOTES} WHERE c.id = ? AND c.verdict != 'undone'",
            (judgement_id,),
        )
        return self._with_answers(rows)[0] if rows else None

    def count(self, rater: str | None = None, since: int = 0) -> int:
        """The number of current votes, without undone ones, from a time on (ms since 1970)."""
        return self.counts(rater, (since,))[0]

    def counts(self, rater: str | None, since: Sequence[int]) -> list[int]:
        """`count` for each of several starting times."""
        sums = ", ".join("coalesce(sum(j.voted_at >= ?), 0)" for _ in since)
        rows = self.rows(
            f"SELECT {sums} FROM judgement j JOIN presentation p ON p.id = j.presentation_id "
            "JOIN rater r ON r.id = p.rater_id WHERE j.verdict != 'undone' "
            "AND NOT EXISTS (SELECT 1 FROM judgement k WHERE k.supersedes = j.id) "
            "AND (? IS NULL OR r.name = ?)",
            (*since, rater, rater),
        )
        return list(rows[0])

    def _with_answers(self, rows: Sequence[sqlite3.Row]) -> list[Vote]:
        answers: dict[int, list[sqlite3.Row]] = {row["item_id"]: [] for row in rows}
        # One query for all, because one for each of many thousand votes takes seconds.
        for answer in self.rows(
            "SELECT ic.item_id, c.text, c.source, c.sampling FROM item_completion ic "
            "JOIN completion c ON c.id = ic.completion_id "
            "WHERE ic.item_id IN (SELECT value FROM json_each(?)) ORDER BY ic.item_id, position",
            (json.dumps(list(answers)),),
        ):
            answers[answer["item_id"]].append(answer)
        return [vote_from_row(row, answers[row["item_id"]]) for row in rows]
