"""Rows and answers that are the same but for Unicode form or blanks, and rows in two files."""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from lorarlhf.data.file_formats import Row, place_of
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.terminal import log_to_stderr

ANSWERS = ("chosen", "rejected", "completion")
Key = tuple[Any, ...]


def normal(value: Any) -> str:
    """A text, or the texts of a conversation, in one Unicode form and with single blanks."""
    if isinstance(value, list):
        turns = (turn for turn in value if isinstance(turn, dict))
        value = "\n".join(f"{turn.get('role')} {turn.get('content')}" for turn in turns)
    return " ".join(unicodedata.normalize("NFKC", str(value)).split())


def notices(rows: Sequence[Row]) -> Iterator[str]:
    """What is unusual about rows with answers, one sentence a kind, each with the first place."""
    seen: dict[Key, tuple[str, str]] = {}
    twins, same, repeated = [], [], []
    for number, row in enumerate(rows, start=1):
        names, place = [name for name in ANSWERS if name in row], place_of(row, number)
        prompt, answers = row.get("prompt"), [normal(row[name]) for name in names]
        if len(answers) == 2 and answers[0] == answers[1]:
            same.append(place)
        if answers and _repeats(prompt, [row[name] for name in names]):
            repeated.append(place)
        exact = repr([prompt, *(row[name] for name in names)])
        before, other = seen.setdefault((normal(prompt), *answers), (exact, place))
        if answers and before != exact:
            twins.append(f"{place}, of {other}")
    if twins:
        rest = "differ from an earlier row only in Unicode form or blanks"
        yield f"{len(twins)} of {len(rows)} rows {rest}; the first is {twins[0]}."
    if same:
        rest = "the same answer twice, but for Unicode form or blanks, which teaches nothing"
        yield f"{len(same)} of {len(rows)} pairs have {rest}; the first is {same[0]}."
    if repeated:
        rest = "repeat their prompt at the beginning of each answer, where it is learned as a part"
        advice = "of the answer. Take it out of the answers, or leave out the prompts"
        yield f"{len(repeated)} of {len(rows)} rows {rest} {advice}; the first is {repeated[0]}."


def _repeats(prompt: Any, answers: Sequence[Any]) -> bool:
    """Whether each answer begins with the prompt's text; a prompt of one word may do so."""
    if isinstance(prompt, list) and prompt:
        prompt = prompt[-1].get("content")
    texts = [a[0].get("content") if isinstance(a, list) and a else a for a in answers]
    asked = normal(prompt)
    return " " in asked and all(normal(text).startswith(asked) for text in texts)


def leave_out_shared(rows: Sequence[Row], eval_rows: Sequence[Row]) -> list[Row]:
    """The held-out rows that are not among the rows to learn from; says how many are.

    Two pairs are the same whichever answer is the better one.

    Raises:
        UserError: all are.
    """
    learned, prompts = {_key(row) for row in rows}, {normal(row["prompt"]) for row in rows}
    kept = [row for row in eval_rows if _key(row) not in learned]
    shared = len(eval_rows) - len(kept)
    if shared and not kept:
        raise UserError(
            f"All {shared} rows to measure on are also among the rows to learn from, so the result "
            "would say nothing about new ones. Name other rows with --eval, or leave it out."
        )
    if shared:
        log_to_stderr(
            f"{shared} of {len(eval_rows)} rows to measure on are also among the rows to learn "
            "from; they are left out of the measurement."
        )
    if again := sum(normal(row["prompt"]) in prompts for row in kept):
        log_to_stderr(
            f"{again} of {len(kept)} rows to measure on have a prompt that is also learned from, "
            "with other answers: the result may be better than on new prompts."
        )
    return kept


def _key(row: Row) -> Key:
    return normal(row["prompt"]), frozenset(normal(row[name]) for name in ANSWERS if name in row)
