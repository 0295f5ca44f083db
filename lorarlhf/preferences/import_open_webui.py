"""Open WebUI's export of feedback: thumbs up and down, each with its conversation, and arena votes.

A thumb says of one answer that it is good or bad. In the arena it says that the answer is better or
worse than those beside it, as Open WebUI itself counts it.
"""

import re
from collections.abc import Iterator
from typing import Any

from lorarlhf.preferences.fields import (
    UNNAMED,
    Left,
    Message,
    Numbered,
    Row,
    RowFault,
    expected,
    list_of,
    name_of,
    need,
    object_of,
    text_of,
    time_of,
)
from lorarlhf.preferences.records import (
    BOTH_BAD,
    BOTH_GOOD,
    MOST_COMPLETIONS,
    RANKED,
    ImportedVote,
    Verdict,
)

COLUMNS = {"type", "data", "meta", "user_id"}
OTHER_TYPE = "feedback that rates no answer"
NO_THUMB = "feedback without a thumb up or down"
NO_CHAT = "ratings whose conversation is not in the file"
PICTURES = "ratings in conversations with pictures or files"
FAILED = "ratings of answers that are empty or ended in an error"
SAID_ALREADY = "arena ratings that another one of the same answers has said already"
_THOUGHTS = re.compile(r"<details type=\"reasoning\".*?</details>\s*", re.DOTALL)
"""How Open WebUI keeps what a model thought before an answer."""


def open_webui(rows: Numbered) -> Iterator[tuple[int, ImportedVote | Left | RowFault]]:
    """The votes of the file; the earliest rating first, so that a longer export says the same."""
    said = set[tuple[Any, ...]]()
    for number, row in sorted(rows, key=lambda one: _time(one[1])):
        try:
            vote = _vote(row)
        except RowFault as fault:
            yield number, fault
            continue
        if isinstance(vote, ImportedVote) and len(vote.completions) > 1:
            says = (vote.rater, vote.item, vote.completions, str(vote.verdict.ranking))
            if says in said:
                vote = Left(SAID_ALREADY)
            said.add(says)
        yield number, vote


def _time(row: Row) -> float:
    time = row.get("created_at")
    return float(time) if isinstance(time, int | float) else 0.0


def _vote(row: Row) -> ImportedVote | Left:
    """What one piece of feedback says."""
    need(row, *sorted(COLUMNS))
    data, meta = (object_of(row[name] or {}, name) for name in ("data", "meta"))
    if row["type"] != "rating":
        return Left(OTHER_TYPE)
    if data.get("rating") not in (1, -1, "1", "-1"):
        return Left(NO_THUMB)
    good = int(data["rating"]) == 1
    messages, system = _messages(row.get("snapshot"))
    rated = messages.get(name_of(meta.get("message_id"), "meta.message_id", ""))
    if rated is None:
        return Left(NO_CHAT)
    path = _before(messages, object_of(rated, "snapshot"))
    if any(message.get("files") for message in path):
        return Left(PICTURES)
    prompt = system + [{"role": one["role"], "content": _text(one)} for one in path]
    if not _answered(rated) or not path:
        return Left(FAILED)
    answers, verdict = _compared(messages, path[-1], rated, good, bool(meta.get("arena")))
    return ImportedVote(
        prompt=prompt,
        completions=tuple((_text(one), _writer(one)) for one in answers),
        verdict=Verdict(*verdict, note=_note(data)),
        rater=name_of(row["user_id"], "user_id", UNNAMED),
        item=f"{name_of(meta.get('chat_id'), 'meta.chat_id', '')} {path[-1]['id']}",
        created_at=time_of(row.get("created_at"), "created_at"),
        changed_at=time_of(row.get("updated_at"), "updated_at"),
        key=f"open-webui {name_of(row.get('id'), 'id', '')}" if row.get("id") else None,
    )


def _compared(
    messages: Row, asked: Row, rated: Row, good: bool, arena: bool
) -> tuple[list[Row], tuple[str, list[list[int]]]]:
    """The answers that a thumb is about, in their order in the conversation, and the verdict."""
    names = list_of(asked.get("childrenIds"), "childrenIds") if arena else []
    beside = [messages.get(name) for name in names if isinstance(name, str)]
    said: list[Row] = [one for one in beside if isinstance(one, dict)]
    said = [one for one in said if one.get("role") == "assistant" and _answered(one)]
    answers = [one for one in said if one is rated or _text(one) != _text(rated)]
    others = [one for one in answers if one is not rated][: MOST_COMPLETIONS - 1]
    if not others:
        return [rated], (BOTH_GOOD if good else BOTH_BAD, [])
    answers = [one for one in answers if one is rated or any(one is other for other in others)]
    place = next((n for n, one in enumerate(answers) if one is rated), None)
    if place is None:
        raise RowFault('field "snapshot": the rated answer is not among those of its question')
    rest = [n for n in range(len(answers)) if n != place]
    return answers, (RANKED, [[place], rest] if good else [rest, [place]])


def _messages(snapshot: Any) -> tuple[Row, list[Message]]:
    """The messages of a conversation by their name, and its system prompt as a message."""
    chat = object_of(object_of(snapshot or {}, "snapshot").get("chat") or {}, "snapshot.chat")
    inner = chat.get("chat")
    chat = inner if isinstance(inner, dict) else chat
    history = object_of(chat.get("history") or {}, "snapshot.chat.history")
    messages = object_of(history.get("messages") or {}, "snapshot.chat.history.messages")
    params = object_of(chat.get("params") or {}, "snapshot.chat.params")
    system = params.get("system") or chat.get("system")
    told = isinstance(system, str) and bool(system.strip())
    return messages, [{"role": "system", "content": system}] if told else []


def _before(messages: Row, rated: Row) -> list[Row]:
    """The messages that lead to an answer, from the first to its question."""
    path: list[Row] = []
    name = rated.get("parentId")
    while name is not None:
        one = messages.get(name) if isinstance(name, str) else None
        if not isinstance(one, dict) or any(one is other for other in path):
            raise RowFault(
                'field "snapshot": expected the messages that lead to the rated answer, each once'
            )
        if one.get("role") not in ("user", "assistant", "system"):
            raise expected("snapshot", "a role of user, assistant or system", one.get("role"))
        if not isinstance(one.get("id"), str):
            raise expected("snapshot", "messages with a text as id", one.get("id"))
        path.append(one)
        name = one.get("parentId")
    return path[::-1]


def _writer(message: Row) -> str:
    """The model that wrote an answer; in the arena it stands beside the name that was shown."""
    return name_of(message.get("selectedModelId") or message.get("model"), "model")


def _answered(message: Row) -> bool:
    return not message.get("error") and bool(_text(message).strip())


def _text(message: Row) -> str:
    """A message's text without the model's thoughts."""
    content = message.get("content")
    return "" if content is None else _THOUGHTS.sub("", text_of(content, "snapshot, content"))


def _note(data: Row) -> str | None:
    """What the rater wrote, behind the reason that was picked from a list."""
    reason, comment = data.get("reason"), data.get("comment")
    said = (reason.replace("_", " ") if isinstance(reason, str) else "", comment)
    return (
        ": ".join(text.strip() for text in said if isinstance(text, str) and text.strip()) or None
    )
