"""Rows as TRL's trainers and PPO take them: conversations, unless plain text is asked for."""

from collections.abc import Sequence
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import check_chat_template
from lorarlhf.backbone.tokenizer import PromptEncoder
from lorarlhf.data.readers import as_conversation

Row = dict[str, Any]


def prompt_conversations(rows: Sequence[Row], plain: bool) -> list[Row]:
    """Rows of prompts as conversations for the chat template; unchanged if `plain`.

    All columns are kept, for reward functions.
    """
    if plain:
        return list(rows)
    return [row | {"prompt": as_conversation(row["prompt"])} for row in rows]


def conversational(
    rows: Sequence[Row], encoder: Backbone | PromptEncoder, plain: bool
) -> list[Row]:
    """Texts as conversations for the chat template; unchanged if `plain`.

    Only TRL's columns are kept.

    Raises:
        UserError: conversations, and the base has no chat template.
    """
    columns = ("prompt", "completion", "chosen", "rejected", "messages", "text", "margin", "label")
    kept = [{name: row[name] for name in columns if row.get(name) is not None} for row in rows]
    if plain:
        return kept
    made = [{name: _as_messages(name, value) for name, value in row.items()} for row in kept]
    check_chat_template(encoder, [row.get("prompt", row.get("messages", "")) for row in made])
    return made


def _as_messages(name: str, value: Any) -> Any:
    if not isinstance(value, str) or name in ("text", "label"):
        return value
    if name == "prompt":
        return as_conversation(value)
    return [{"role": "assistant", "content": value}]
