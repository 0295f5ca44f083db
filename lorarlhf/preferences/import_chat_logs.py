"""Chat logs of SillyTavern and text-generation-webui: answers that were made again, to be rated.

A swipe or a regeneration is another answer to the same conversation. Which one was kept is no
judgement, so these answers wait on the Rate page. Names of users and characters are not read.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from lorarlhf.preferences.fields import (
    UNNAMED,
    Left,
    Message,
    Numbered,
    Parsed,
    Row,
    RowFault,
    expected,
    list_of,
    name_of,
    need,
    object_of,
    text_of,
)
from lorarlhf.preferences.records import Candidates

SILLY_TAVERN = {"mes", "is_user"}
TEXT_GENERATION = {"internal", "visible"}
ONE_ANSWER = "messages without another answer to compare"
OPENING = "messages that open the conversation, so that there is no prompt"
BEGIN = "<|BEGIN-VISIBLE-CHAT|>"
"""What text-generation-webui writes in place of a question before a character's greeting."""


def silly_tavern(rows: Numbered) -> Iterator[tuple[int, Candidates | Left | RowFault]]:
    """The answers with swipes; each message is a line, and the first line is about the chat.

    After a message that can't be read nothing more is taken, since the prompts would lack it.
    """
    before: list[Message] = []
    for place, (number, row) in enumerate(rows):
        if place and number != rows[place - 1][0] + 1:
            yield number, RowFault("the line before it is missing; nothing after it is taken")
            return
        if "mes" not in row and ("chat_metadata" in row or "user_name" in row):
            continue
        try:
            message = _message(row)
            if message["role"] == "assistant":
                yield number, _swipes(row, before)
        except RowFault as fault:
            yield number, fault
            return
        if row.get("is_system") is not True:  # such as hidden messages and comments
            before = [*before, message]


def _message(row: Row) -> Message:
    """A line as a message of the conversation."""
    need(row, *sorted(SILLY_TAVERN))
    if not isinstance(row["is_user"], bool):
        raise expected("is_user", "true or false", row["is_user"])
    extra = object_of(row.get("extra") or {}, "extra")
    told = row.get("is_system") is True or extra.get("type") == "narrator"
    role = "user" if row["is_user"] else "system" if told else "assistant"
    return {"role": role, "content": text_of(row["mes"], "mes")}


def _swipes(row: Row, before: Sequence[Message]) -> Candidates | Left:
    swipes = [text_of(text, "swipes") for text in list_of(row.get("swipes"), "swipes")]
    infos = list_of(row.get("swipe_info"), "swipe_info")
    texts = {text: _model(row) for text in [row["mes"]]}
    for place, text in enumerate(swipes):
        info = infos[place] if place < len(infos) else None
        texts[text] = _model(info) if isinstance(info, dict) else texts.get(text, UNNAMED)
    return _candidates(before, texts, row["mes"])


def _model(row: Row) -> str:
    """The model that wrote an answer."""
    extra = row.get("extra")
    return name_of(extra.get("model"), "model") if isinstance(extra, dict) else UNNAMED


def text_generation(row: Row) -> Parsed:
    """A chat of text-generation-webui: one object, whose turns are pairs of question and answer.

    What is left out is named by the number of the turn.
    """
    need(row, *sorted(TEXT_GENERATION))
    turns = list_of(row["internal"], "internal")
    about = object_of(row.get("metadata") or {}, "metadata")
    before: list[Message] = []
    for place, turn in enumerate(turns):
        if not isinstance(turn, list) or len(turn) != 2:
            raise expected("internal", "turns of a question and an answer", turn)
        asked, answer = (text_of(text, f"internal, turn {place + 1}") for text in turn)
        if asked != BEGIN:
            before = [*before, {"role": "user", "content": asked}]
        if not answer:
            continue  # the question of an answer that has not come
        known = object_of(about.get(f"assistant_{place}") or {}, f"metadata.assistant_{place}")
        found = _versions(known, answer, before, place)
        yield Left(found.reason, place + 1) if isinstance(found, Left) else found
        before = [*before, {"role": "assistant", "content": answer}]


def _versions(known: Row, answer: str, before: Sequence[Message], place: int) -> Candidates | Left:
    field = f"metadata.assistant_{place}"
    model = name_of(known.get("model_name"), field)
    versions = [object_of(one, field) for one in list_of(known.get("versions"), field)]
    texts = {text_of(one.get("content"), f"{field}.versions"): model for one in versions}
    return _candidates(before, texts | {answer: model}, answer)


def _candidates(before: Sequence[Message], texts: dict[str, str], kept: str) -> Candidates | Left:
    """The different answers to a conversation, or why there is nothing to rate."""
    if not any(message["role"] == "user" for message in before):
        return Left(OPENING)
    told: Any = tuple((text, model) for text, model in texts.items() if text.strip())
    if len(told) < 2:
        return Left(ONE_ANSWER)
    return Candidates(list(before), told, kept if kept.strip() else None)
