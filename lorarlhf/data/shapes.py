"""Rows of other tools' data sets, brought to TRL's columns before they are checked.

Handled here: ShareGPT's `conversations`, Alpaca's `instruction`, dialogues as text with "Human:"
and "Assistant:" turns (HH), answers that repeat the prompt (UltraFeedback), answers that are a
single message, and a `system` column.
"""

import json
import os
import re
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
Message = dict[str, Any]
ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "observation": "tool"}
"""ShareGPT's names of roles, and what they are here; other names stay."""
_TURN = re.compile(r"\n\n(Human|Assistant): ?")


def in_standard_shape(row: Row) -> Row:
    """The row with TRL's columns, as far as its shape is known; otherwise unchanged.

    A `system` column becomes the first message; it stays in rows without an answer, where a reward
    function may want it.
    """
    row = dict(row)
    _rename_conversations(row)
    _rename_instruction(row)
    answers = [name for name in ("chosen", "rejected", "completion") if name in row]
    for name in answers:
        message = as_message(row[name])
        if isinstance(message, dict) and {"role", "content"} <= message.keys():
            row[name] = [message]
    if isinstance(row.get("tools"), list):
        row["tools"] = json.dumps(row["tools"])  # as text, since each tool has other fields
    if "chosen" in row and "rejected" in row:
        _take_messages_as_prompt(row)
        _split_texts(row)
        _drop_repeated_prompt(row)
    _add_system(row, answers)
    return row


def as_message(turn: Any) -> Any:
    """A turn of ShareGPT (`from`, `value`) as a message; anything else unchanged."""
    if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
        return turn
    rest = {name: value for name, value in turn.items() if name not in ("from", "value")}
    who = turn["from"]
    role = ROLES.get(who, who) if isinstance(who, str) else who
    return {"role": role, "content": turn["value"]} | rest


def dialogue(text: str) -> list[Message]:
    """The turns of a dialogue as text; empty if it does not begin with one."""
    parts = _TURN.split(text)
    if parts[0].strip() or len(parts) < 5:
        return []
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": roles[who], "content": content} for who, content in pairs]


def shared_start(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many first elements both have in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def _rename_conversations(row: Row) -> None:
    """`conversations` become `messages`, or the prompt where the answers stand beside them."""
    turns = row.get("conversations")
    beside = "chosen" in row and "rejected" in row
    name = "prompt" if beside else "messages"
    if isinstance(turns, list) and name not in row:
        row[name] = [as_message(turn) for turn in row.pop("conversations")]


def _rename_instruction(row: Row) -> None:
    """Alpaca's `instruction` and `input` become the prompt, `output` the completion.

    `history`, pairs of question and answer, makes the prompt a conversation.
    """
    asked, more = row.get("instruction"), row.get("input")
    if not isinstance(asked, str) or any(row.get(name) for name in ("prompt", "messages", "text")):
        return
    del row["instruction"]
    if isinstance(more, str):
        asked = f"{asked}\n{more}" if more.strip() else asked
        del row["input"]
    if "output" in row and "completion" not in row and "chosen" not in row:
        row["completion"] = row.pop("output")
    row["prompt"] = asked
    history = row.get("history")
    if isinstance(history, list) and all(isinstance(t, list) and len(t) == 2 for t in history):
        del row["history"]
        texts = [text for turn in history for text in turn]
        turns = [
            {"role": "assistant" if number % 2 else "user", "content": text}
            for number, text in enumerate([*texts, asked])
        ]
        if history:
            row["prompt"] = turns
            for name in ("chosen", "rejected", "completion"):
                if isinstance(row.get(name), str):
                    row[name] = [{"role": "assistant", "content": row[name]}]


def _take_messages_as_prompt(row: Row) -> None:
    """`messages` beside two single answers are the conversation before them."""
    turns, answers = row.get("messages"), (row["chosen"], row["rejected"])
    single = all(isinstance(answer, list) and len(answer) == 1 for answer in answers)
    if isinstance(turns, list) and turns and single and row.get("prompt") is None:
        row["prompt"] = row.pop("messages")


def _split_texts(row: Row) -> None:
    """Texts without a prompt: dialogues become messages, others are cut where they part."""
    chosen, rejected = row["chosen"], row["rejected"]
    if row.get("prompt") is not None or not (isinstance(chosen, str) and isinstance(rejected, str)):
        return
    good, bad = dialogue(chosen), dialogue(rejected)
    if good and bad:
        # The vote is on the first answer in which they differ.
        same = min(shared_start(good, bad), len(good) - 1, len(bad) - 1)
        row |= {"chosen": good[: same + 1], "rejected": bad[: same + 1]}
        return
    begin = os.path.commonprefix([chosen, rejected])
    end = max((found.start() for found in re.finditer(r"\s+", begin)), default=0)
    if begin[:end].strip():
        row |= {"prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}


def _drop_repeated_prompt(row: Row) -> None:
    """Answers that are whole dialogues lose the prompt that stands in a column of its own."""
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if prompt is None or not (isinstance(chosen, list) and isinstance(rejected, list)):
        return
    same = min(shared_start(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    start = chosen[:same]
    texts = [turn.get("content") for turn in start if isinstance(turn, dict)]
    asked = prompt if isinstance(prompt, list) else [{"content": prompt}]
    asked = [turn.get("content") if isinstance(turn, dict) else turn for turn in asked]
    if texts and (texts == asked or texts[-1:] == asked):
        row |= {"prompt": start, "chosen": chosen[same:], "rejected": rejected[same:]}
    elif isinstance(prompt, str) and not start:
        row["prompt"] = [{"role": "user", "content": prompt}]


def _add_system(row: Row, answers: Sequence[str]) -> None:
    """A `system` column as the first message, unless there is one."""
    system = row.get("system")
    if not isinstance(system, str) or not system.strip():
        return
    if isinstance(row.get("prompt"), str):
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        for name in answers:
            if isinstance(row[name], str):
                row[name] = [{"role": "assistant", "content": row[name]}]
    holders = ["prompt"] if row.get("prompt") is not None else [*answers, "messages"]
    for name in holders:
        turns = row.get(name)
        if isinstance(turns, list) and turns and isinstance(turns[0], dict):
            if answers or name == "messages":
                row.pop("system", None)
            if turns[0].get("role") != "system":
                row[name] = [{"role": "system", "content": system}, *turns]
