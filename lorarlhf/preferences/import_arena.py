"""Battles of the LMSYS arena (today LMArena): two models' conversations and the winner.

Read are the published conversations, those with a context before them, MT-bench's judgements, and
the table of the competition at Kaggle.
"""

import json
from dataclasses import replace
from typing import Any

from lorarlhf.preferences.fields import (
    Message,
    Parsed,
    Row,
    RowFault,
    expected,
    list_of,
    messages_of,
    name_of,
    need,
    object_of,
    text_of,
    time_of,
)
from lorarlhf.preferences.records import (
    BOTH_BAD,
    BOTH_GOOD,
    RANKED,
    TIE,
    ImportedVote,
    Verdict,
)

FIRST, SECOND = Verdict(RANKED, [[0], [1]]), Verdict(RANKED, [[1], [0]])
PARTED = "battles whose sides differ before the last answer"
BATTLE = {"winner", "conversation_a", "conversation_b"}
TABLE = {"response_a", "response_b", "winner_model_a", "winner_model_b"}

WINNERS = {"model_a": FIRST, "model_b": SECOND, "tie": Verdict(TIE)}
WINNERS |= {"tie (bothbad)": Verdict(BOTH_BAD), "both_bad": Verdict(BOTH_BAD)}


def arena(row: Row) -> Parsed:
    """LMSYS and LMArena records: two conversations and the `winner`.

    The vote is on the last answers. If the sides differ before them, they are answers to different
    conversations, which is no vote on two answers to one prompt, and the row is counted.
    """
    need(row, "winner", "conversation_a", "conversation_b")
    if not isinstance(row["winner"], str) or row["winner"] not in WINNERS:
        raise expected("winner", f"one of {', '.join(WINNERS)}", row["winner"])
    turn = row.get("turn")
    if isinstance(turn, float) and turn.is_integer():  # as tables with empty cells write it
        turn = int(turn)
    if turn is not None and (type(turn) is not int or turn < 1):
        raise expected("turn", "the number of a turn, from 1", turn)
    first, second = (
        _context(row, side) + _judged_turns(row, f"conversation_{side}", turn) for side in "ab"
    )
    if first[:-1] != second[:-1]:
        yield PARTED
        return
    verdict = WINNERS[row["winner"]]
    if row.get("both_good") and verdict.verdict == TIE:
        verdict = Verdict(BOTH_GOOD)
    for name in ("strength", "note", "edited"):  # of our own export
        if isinstance(row.get(name), str):
            verdict = replace(verdict, **{name: row[name]})
    time = "tstamp" if row.get("tstamp") is not None else "timestamp"
    yield ImportedVote(
        prompt=first[:-1],
        completions=(
            (first[-1]["content"], name_of(row.get("model_a"), "model_a")),
            (second[-1]["content"], name_of(row.get("model_b"), "model_b")),
        ),
        verdict=verdict,
        rater=name_of(row.get("judge"), "judge"),
        item=name_of(row.get("question_id") or row.get("id"), "question_id", "") or None,
        created_at=time_of(row.get(time), time),
    )


def _context(row: Row, side: str) -> list[Message]:
    """What a side had seen before its conversation, if that is not a part of it.

    Who votes more than once in a session goes on with two other models. Newer records then have all
    of it in `full_conversation`, where the user's turn is in both.
    """
    order, turns = row.get("evaluation_order"), row.get("full_conversation")
    if not isinstance(order, int | float) or order <= 1 or not isinstance(turns, list):
        return []
    told = sum(
        isinstance(one, dict) and one.get("role") == "user"
        for one in list_of(row[f"conversation_{side}"], f"conversation_{side}")
    )
    if told >= len(turns):
        return []
    found: list[Any] = []
    for turn in turns[: len(turns) - told]:
        parts = object_of(turn, "full_conversation")
        found += [parts.get("user"), parts.get(f"model_side_{side}")]
    return messages_of(found, "full_conversation")


def _judged_turns(row: Row, name: str, turn: int | None) -> list[Message]:
    """A side's conversation up to the answer that was judged: that of the user's turn `turn`."""
    turns = messages_of(row[name], name)
    asked = [place for place, message in enumerate(turns) if message["role"] == "user"]
    if turn is not None and turn < len(asked):
        turns = turns[: asked[turn]]
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise RowFault(f'field "{name}": expected messages that end with an answer')
    return turns


def arena_table(row: Row) -> Parsed:
    """A row of the competition's table: turns as JSON in a text, and a column for each outcome."""
    need(row, "prompt", "response_a", "response_b", "winner_model_a", "winner_model_b")
    asked, first, second = (_turns(row, name) for name in ("prompt", "response_a", "response_b"))
    if not asked or not len(asked) == len(first) == len(second):
        raise RowFault('field "response_a": expected as many answers as turns in "prompt"')
    won = [_flag(row, name) for name in ("winner_model_a", "winner_model_b", "winner_tie")]
    if won.count(True) != 1:
        raise RowFault('field "winner_model_a": expected one winner, or winner_tie')
    if first[:-1] != second[:-1]:
        yield PARTED
        return
    prompt: list[Message] = []
    for place, text in enumerate(asked):
        prompt.append({"role": "user", "content": text})
        if place < len(asked) - 1:
            prompt.append({"role": "assistant", "content": first[place]})
    sides = ((first[-1], "model_a"), (second[-1], "model_b"))
    yield ImportedVote(
        prompt=prompt,
        completions=tuple((text, name_of(row.get(model), model)) for text, model in sides),
        verdict=(FIRST, SECOND, Verdict(TIE))[won.index(True)],
        item=name_of(row.get("id"), "id", "") or None,
    )


def _turns(row: Row, name: str) -> list[str]:
    """The texts of a column, which are a JSON list; where a model said nothing there is null."""
    turns = row[name]
    if isinstance(turns, str):
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError):
            raise expected(name, "a JSON list of texts", row[name]) from None
    return ["" if text is None else text_of(text, name) for text in list_of(turns, name)]


def _flag(row: Row, name: str) -> bool:
    value = row.get(name, 0)
    if value not in (0, 1, "0", "1"):
        raise expected(name, "0 or 1", value)
    return int(value) == 1
