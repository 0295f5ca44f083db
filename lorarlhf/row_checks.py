"""Rows as a base would read them: whether it can hold them, and how long the longest is.

Only the base's tokenizer is needed, so that all of this is said before the weights are loaded.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from lorarlhf.backbone.reading import Reader
from lorarlhf.data import as_text
from lorarlhf.errors import UserError
from lorarlhf.generation import encode_prompts
from lorarlhf.runs import say_to_stderr
from lorarlhf.settings import Settings
from lorarlhf.stages.common import conversational
from lorarlhf.training_ppo import conversations

Row = dict[str, Any]


class Length(NamedTuple):
    """Tokens of a row. Of a row without a prompt all tokens are the answer's."""

    prompt: int
    answer: int


def check_rows(
    stage: str, reader: Reader, rows: list[Row], settings: Settings
) -> tuple[list[Row], Length]:
    """The rows as the stage takes them; the longest row's length, and the longest answer in it.

    Raises:
        UserError: conversations for a base without a chat template, prompts that are too long.
    """
    own = settings.own
    if stage == "ppo":
        rows = conversations(rows, own["plain"])
        prompts = [row["prompt"] for row in rows]
        encoded = encode_prompts(reader, prompts, own["max_prompt_tokens"])
        return rows, Length(max(map(len, encoded)), own["max_new_tokens"])
    lengths = [_length(reader, row) for row in conversational(rows, reader, own["plain"])]
    longest, answer = max(map(sum, lengths)), max(length.answer for length in lengths)
    if "max_tokens" in own:
        limit = settings.trl.get("max_length", own["max_tokens"])
        _tell_cut_rows(lengths, limit)
        longest = min(longest, limit)
        answer = min(answer, longest)
    return rows, Length(longest - answer, answer)


def _length(reader: Reader, row: Row) -> Length:
    if "prompt" not in row:
        return Length(0, len(reader.encode(row.get("messages") or row["text"])))
    answers = [as_text(row[name]) for name in ("completion", "chosen", "rejected") if name in row]
    longest = max(len(reader.encode(answer)) for answer in answers)
    return Length(len(reader.encode(row["prompt"])), longest)


def _tell_cut_rows(lengths: Sequence[Length], limit: int) -> None:
    """Count the rows that TRL cuts at `max_tokens`; refuse those of which no answer is left."""
    if longer := [length.prompt for length in lengths if length.prompt >= limit]:
        raise UserError(
            f"{len(longer)} of {len(lengths)} rows have a prompt as long as max_tokens ({limit}) "
            f"or longer (up to {max(longer)}), so that nothing of the answer is left to learn "
            "from. Shorten them, leave them out, or raise the limit with --set max_tokens=N."
        )
    if longer := [sum(length) for length in lengths if sum(length) > limit]:
        say_to_stderr(
            f"{len(longer)} of {len(lengths)} rows are longer than max_tokens ({limit}; the "
            f"longest has {max(longer)}) and are cut there. --set max_tokens=N changes that."
        )
