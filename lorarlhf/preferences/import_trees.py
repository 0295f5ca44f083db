"""OpenAssistant's message trees: the answers to each message of a user, ranked by volunteers.

They are published as trees, one a line, and as a table of messages that name their parents.
"""

from collections import defaultdict
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
from lorarlhf.preferences.records import MOST_COMPLETIONS, RANKED, ImportedVote, Verdict

TREE = {"message_tree_id", "prompt"}
MESSAGES = {"message_tree_id", "message_id", "parent_id", "text", "role"}
ONE_ANSWER = "messages with one answer only"
NO_RANK = "answers without a rank"
REFUSED = "answers that were deleted or did not pass the review"
ORPHANS = "messages whose parent is not in the file"
ROLES = {"prompter": "user", "assistant": "assistant"}


def tree(row: Row) -> Parsed:
    """A tree: the votes on the answers to each message of a user in it."""
    need(row, *sorted(TREE))
    yield from _votes(object_of(row["prompt"], "prompt"))


def _votes(root: Row) -> Parsed:
    """The rankings below a message, each with the messages before it as its prompt."""
    waiting: list[tuple[Row, list[Message]]] = [(root, [])]
    while waiting:
        node, before = waiting.pop()
        before = [*before, {"role": _role(node), "content": text_of(node.get("text"), "text")}]
        replies = [object_of(one, "replies") for one in list_of(node.get("replies"), "replies")]
        waiting += [(reply, before) for reply in reversed(replies)]
        if before[-1]["role"] == "user" and replies:
            yield from _ranking(before, replies)


def _role(node: Row) -> str:
    role = node.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise expected("role", "prompter or assistant", role)
    return ROLES[role]


def _ranking(before: list[Message], replies: Sequence[Row]) -> Parsed:
    """The votes that the ranks of one message's answers make."""
    answers = []
    for reply in replies:
        if _role(reply) != "assistant":
            raise RowFault('field "role": expected an answer of the assistant below a prompter')
        if reply.get("deleted") is True or reply.get("review_result") is False:
            yield REFUSED
        else:
            answers.append(reply)
    if len(answers) == 1:
        yield ONE_ANSWER
        return
    ranked = [(_rank(one), one) for one in answers]
    yield from [NO_RANK] * sum(rank is None for rank, _ in ranked)
    order = sorted(((rank, one) for rank, one in ranked if rank is not None), key=lambda r: r[0])
    texts = [(text_of(one.get("text"), "text"), _writer(one)) for _, one in order]
    if len(texts) == 1:
        yield ONE_ANSWER
    # More answers than a vote can have are several votes, which meet in the answer between them.
    step = MOST_COMPLETIONS - 1
    for start in range(0, max(len(texts) - 1, 0), step):
        some = tuple(texts[start : start + MOST_COMPLETIONS])
        ranking = [[place] for place in range(len(some))]
        item = name_of(replies[0].get("parent_id"), "parent_id", "") or None
        yield ImportedVote(before, some, Verdict(RANKED, ranking), UNNAMED, item)


def _rank(reply: Row) -> float | None:
    rank = reply.get("rank")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int | float)):
        raise expected("rank", "a number or null", rank)
    return rank


def _writer(reply: Row) -> str:
    """Who wrote an answer: a model by its name. People are not named."""
    return name_of(reply.get("model_name"), "model_name", "OpenAssistant")


# ---- the table of messages


def messages(rows: Numbered) -> Iterator[tuple[int, ImportedVote | Left | RowFault]]:
    """The same of a table, in which each message names its parent."""
    nodes: dict[str, tuple[int, Row]] = {}
    children = defaultdict[str | None, list[tuple[int, Row]]](list)
    for number, row in rows:
        try:
            name = _name(row, "message_id")
            parent = None if row.get("parent_id") is None else _name(row, "parent_id")
            _role(row)
            text_of(row.get("text"), "text")
            _rank(row)
        except RowFault as fault:
            yield number, fault
            continue
        if name in nodes:
            yield number, RowFault('field "message_id": expected every message once')
            continue
        nodes[name] = number, row
        children[parent].append((number, row))
    for parent, found in children.items():
        if parent is not None and parent not in nodes:
            yield from ((number, Left(ORPHANS)) for number, _ in found)
    yield from _of_table(children)


def _of_table(children: Any) -> Iterator[tuple[int, ImportedVote | Left | RowFault]]:
    waiting: list[tuple[int, Row, list[Message]]] = [(*one, []) for one in children[None]]
    while waiting:
        number, node, before = waiting.pop()
        before = [*before, {"role": _role(node), "content": node["text"]}]
        replies = children.get(node["message_id"], [])
        waiting += [(*reply, before) for reply in reversed(replies)]
        if before[-1]["role"] != "user" or not replies:
            continue
        try:
            found = list(_ranking(before, [row for _, row in replies]))
        except RowFault as fault:
            yield replies[0][0], fault
            continue
        for one in found:
            yield number, Left(one) if isinstance(one, str) else one  # type: ignore[misc]


def _name(row: Row, field: str) -> str:
    name = row.get(field)
    if not isinstance(name, str) or not name:
        raise expected(field, "the name of a message", name)
    return name
