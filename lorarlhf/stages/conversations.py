"""Rows as TRL's trainers and PPO take them: conversations, unless plain text is asked for."""

import json
from collections.abc import Sequence
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import check_chat_template
from lorarlhf.backbone.tokenizer import Conversation, PromptEncoder
from lorarlhf.data.readers import as_conversation
from lorarlhf.data.validation import TEMPLATE_COLUMNS
from lorarlhf.runtime.errors import UserError

Row = dict[str, Any]
COLUMNS = (
    *("prompt", "completion", "chosen", "rejected", "messages", "text", "margin", "label"),
    "worse",
)
"""TRL's columns, and one of `ditto`; those for the chat template come on top."""
PAIR = ("prompt", "chosen", "rejected", "margin")
"""Of them, those of a pair: some of TRL's trainers refuse one that also has a single answer."""


def prompt_conversations(rows: Sequence[Row], plain: bool) -> list[Row]:
    """Rows of prompts as conversations for the chat template; unchanged if `plain`.

    All columns are kept, for reward functions.
    """
    if plain:
        return list(rows)
    return [row | {"prompt": _with_arguments(as_conversation(row["prompt"]), row)} for row in rows]


def conversational(
    rows: Sequence[Row], encoder: Backbone | PromptEncoder, plain: bool
) -> list[Row]:
    """Texts as conversations for the chat template; unchanged if `plain`.

    Only the columns in `COLUMNS` are kept.

    Raises:
        UserError: conversations, and the base has no chat template.
    """
    kept = [
        {n: row[n] for n in (PAIR if "chosen" in row else COLUMNS) if row.get(n) is not None}
        for row in rows
    ]
    if plain:
        return kept
    made = [{name: _as_messages(name, value) for name, value in row.items()} for row in kept]
    for row, before in zip(made, rows, strict=True):
        for name in {"prompt", "messages"} & row.keys():
            row[name] = _with_arguments(row[name], before)
    if any(row.get(name) is not None for row in rows for name in TEMPLATE_COLUMNS):
        for row, before in zip(made, rows, strict=True):  # TRL reads them where one row has them
            row |= {"tools": before.get("tools")}
            row |= {"chat_template_kwargs": before.get("chat_template_kwargs") or {}}
    check_chat_template(encoder, [row.get("prompt", row.get("messages", "")) for row in made])
    return made


def refuse_template_columns(rows: Sequence[Row], stage: str) -> None:
    """Refuse rows whose `tools` TRL's trainer of the stage would leave out.

    Raises:
        UserError: it names the columns.
    """
    found = [name for name in TEMPLATE_COLUMNS if any(row.get(name) is not None for row in rows)]
    if found:
        raise UserError(
            f"The rows have {' and '.join(found)}, which TRL's trainer does not hand to the chat "
            f"template in {stage}. Use sft, reward or dpo, or leave the columns out."
        )


def _with_arguments(messages: Any, row: Row) -> Any:
    """Messages with what the row's `tools` and `chat_template_kwargs` give to the template."""
    tools, more = row.get("tools"), row.get("chat_template_kwargs") or {}
    arguments = ({"tools": json.loads(tools)} if tools else {}) | more
    return Conversation(messages, arguments) if arguments else messages


def _as_messages(name: str, value: Any) -> Any:
    if not isinstance(value, str) or name in ("text", "label"):
        return value
    if name == "prompt":
        return as_conversation(value)
    return [{"role": "assistant", "content": value}]
