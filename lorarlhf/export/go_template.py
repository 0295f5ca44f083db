"""Ollama's templates, written from what a chat template renders, and rendered again to compare.

Ollama renders prompts with Go's text/template, and a base comes with a Jinja template. The Jinja
template is not translated. It is asked to render a few conversations whose texts are marks, and
what it writes around the marks becomes the Go template: before the first message, around each
role's message, and before an answer. This covers the formats in which a conversation is one
message after the other (ChatML, Llama 3, Gemma, Mistral, Phi 3 and their likes). Whether it has
covered one is not assumed: the Go template is rendered for other conversations, and has to give
the same text.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

from lorarlhf.export.go_render import render as render_template
from lorarlhf.runtime.errors import UserError

Messages = list[dict[str, str]]
Render = Callable[[Messages, bool], str]
"""A chat template: messages, and whether an answer is next -> the text."""
USER, ANSWER, SYSTEM = "@@user{}@@", "@@answer{}@@", "@@system@@"


class Refused(Exception):
    """The chat template refuses a conversation, for example one with a system prompt."""


@dataclass(frozen=True)
class Pieces:
    """A chat format: what is written around messages.

    Attributes:
        start: before everything, without a system prompt (it may hold a default one).
        system: before and after a system prompt, in place of `start`; None if the prompt is part
            of the user's message, or is refused.
        joined: between a system prompt and the user's message that it is part of; None where it
            is not. joined_to: whether that message is the `first` or the `last` one.
        user, answer: before and after a message of that role.
        last: before an answer.
    """

    start: str
    system: tuple[str, str] | None
    joined: str | None
    joined_to: str
    user: tuple[str, str]
    answer: tuple[str, str]
    last: str


def conversation(turns: int, system: bool = False, marks: bool = True) -> Messages:
    """Messages with so many of the user, with marks or with words as texts."""
    words = ("How do bees fly?", "And at night?", "Why, then?")
    replies = ("They beat their wings.", "They stay at home.")
    messages = []
    if system:
        text = SYSTEM if marks else "Answer in one sentence."
        messages.append({"role": "system", "content": text})
    for n in range(turns):
        text = USER.format(n) if marks else words[n]
        messages.append({"role": "user", "content": text})
        if n < turns - 1:
            text = ANSWER.format(n) if marks else replies[n]
            messages.append({"role": "assistant", "content": text})
    return messages


def read_pieces(render: Render) -> Pieces:
    """What a chat template writes around messages.

    Raises:
        UserError: it does not keep the texts apart, so no Go template can be written from it.
    """
    start, user, answer, last = _turns(render)
    try:
        told = render(conversation(1, system=True), True)
    except Refused:
        return Pieces(start, None, None, "first", user, answer, last)
    opened, middle, closed = _between(told, SYSTEM, USER.format(0))
    if closed != user[1] + last:
        raise _no("a system prompt changes what it writes after the user's message")
    if opened == start + user[0]:  # the system prompt is written into the user's message
        more = render(conversation(2, system=True), True)
        to = "first" if more.index(SYSTEM) < more.index(USER.format(0)) else "last"
        return Pieces(start, None, middle, to, user, answer, last)
    if not middle.endswith(user[0]):
        raise _no("a system prompt changes what it writes before the user's message")
    system = (opened, middle[: len(middle) - len(user[0])])
    return Pieces(start, system, None, "first", user, answer, last)


def _turns(render: Render) -> tuple[str, tuple[str, str], tuple[str, str], str]:
    """What is written before everything, around a user's message and an answer, and at the end."""
    marks = [mark.format(n) for n in (0, 1, 2) for mark in (USER, ANSWER)]
    first, end = _between(render(conversation(1), True), marks[0])
    before, to_answer, between, closing = _between(render(conversation(2), True), *marks[:3])
    parts = _between(render(conversation(3), True), *marks[:5])
    steady = [first, to_answer, between, to_answer, between, end]
    if [before, closing] != [first, end] or parts != steady:
        raise _no("what it writes around a message depends on the messages before or after it")
    # Without an answer next, a template writes just the end of the last message, or more.
    after_user = _after(render, conversation(1), marks[0])
    if after_user is None or not (to_answer.startswith(after_user) and end.startswith(after_user)):
        after_user = _common_start(to_answer, end)
    after_answer = _after(render, conversation(2)[:2], marks[1])
    if after_answer is None or not between.startswith(after_answer):
        after_answer = between[: len(between) - len(_common_end(between, first))]
    before_user = between[len(after_answer) :]
    if not first.endswith(before_user):
        raise _no("it writes something else before the first message than before the others")
    start = first[: len(first) - len(before_user)]
    answer = (to_answer[len(after_user) :], after_answer)
    return start, (before_user, after_user), answer, end[len(after_user) :]


def _after(render: Render, messages: Messages, mark: str) -> str | None:
    """The text behind the last message; None where the template refuses it."""
    try:
        _, found, after = render(messages, False).rpartition(mark)
    except Refused:
        return None
    return after if found else None


def _between(text: str, *marks: str) -> list[str]:
    """The text before, between and after marks that come once each, in that order."""
    parts, left = [], text
    for mark in marks:
        if left.count(mark) != 1:
            raise _no("it does not write each message once, as it is and in its order")
        before, _, left = left.partition(mark)
        parts.append(before)
    return [*parts, left]


def _common_start(one: str, other: str) -> str:
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return one[:count]


def _common_end(one: str, other: str) -> str:
    return _common_start(one[::-1], other[::-1])[::-1]


def _no(why: str) -> UserError:
    return UserError(
        f"No Ollama template can be made from this base's chat template: {why}. Templates that can "
        "be: ChatML, Llama 3, Gemma, Mistral, Phi 3 and others that write one message after the "
        "other. Export it --as gguf, whose file has the chat template itself."
    )


# ---- Go


def write_go(pieces: Pieces) -> str:
    """The Go template."""
    user = [_text(pieces.user[0]), "{{ .Content }}", _text(pieces.user[1])]
    opening, loop = "", "{{ range .Messages }}"
    if pieces.joined is not None and pieces.joined_to == "first":
        opening, when = "{{ $first := true }}", "$first"
        user.append("{{ $first = false }}")
    else:
        when = "(eq (len (slice $.Messages $i)) 1)"
    if pieces.joined is not None:
        own = "{{ $.System }}" + _text(pieces.joined)
        user.insert(1, "{{ if and " + when + " $.System }}" + own + "{{ end }}")
        loop = "{{ range $i, $m := .Messages }}"
    start = _text(pieces.start)
    if pieces.system is not None:
        own = _text(pieces.system[0]) + "{{ .System }}" + _text(pieces.system[1])
        start = "{{ if .System }}" + own + "{{ else }}" + start + "{{ end }}"
    answer = _text(pieces.answer[0]) + "{{ .Content }}" + _text(pieces.answer[1])
    return (
        opening
        + start
        + loop
        + '{{ if eq .Role "user" }}'
        + "".join(user)
        + '{{ else if eq .Role "assistant" }}'
        + answer
        + "{{ end }}{{ end }}"
        + _text(pieces.last)
    )


def _text(text: str) -> str:
    """Text as Go writes it unchanged; braces and quotes as string constants."""
    if "{{" in text or '"""' in text:
        return "{{ " + _go_string(text) + " }}"
    return text


def _go_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def render_go(template: str, messages: Messages) -> str:
    """What Ollama makes of messages with a template of `write_go`'s kind.

    It knows the actions that `write_go` writes, and those of most templates in Ollama's library:
    if, else, range over `.Messages`, `.System`, `.Content`, `.Role`, eq, and, or, not, variables,
    and `{{-` and `-}}`.

    Raises:
        UserError: an action that is not among them.
    """
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    return render_template(template, {"System": system, "Messages": messages})


def check_go(template: str, render: Render) -> list[str]:
    """What a Go template renders otherwise than the chat template: a sentence each.

    The conversations have one to three turns, with and without a system prompt where the chat
    template takes one.
    """
    problems = []
    for system in (False, True):
        for turns in (1, 2, 3):
            messages = conversation(turns, system, marks=False)
            try:
                wanted = render(messages, True)
            except Refused:
                continue
            found = render_go(template, messages)
            if found != wanted:
                kind = "with" if system else "without"
                problems.append(
                    f"a conversation of {turns} turns {kind} a system prompt: "
                    f"{first_difference(wanted, found)}"
                )
    return problems


def first_difference(wanted: str, found: str) -> str:
    """Where two texts part, in words."""
    same = len(_common_start(wanted, found))
    ours, theirs = (repr(text[same : same + 40]) for text in (wanted, found))
    behind = repr(wanted[max(0, same - 20) : same])
    return f"after {behind} it should be {ours} and is {theirs}"
