"""A small part of Go's text/template: enough for the templates that Ollama's models come with.

Actions: `if`, `else`, `else if`, `end`, `range`, variables (`$x := ...`, `$x = ...`), fields
(`.Content`, `$.System`, `$m.Role`), constants, `eq`, `ne`, `and`, `or`, `not`, `len`, `slice`, and
the trim marks `{{-` and `-}}`.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from lorarlhf.runtime.errors import UserError

ACTION = re.compile(r"\{\{(-\s)?\s*(.*?)\s*(\s-)?\}\}", re.DOTALL)
WORD = re.compile(r'"(?:[^"\\]|\\.)*"|`[^`]*`|:=|[()|,=]|[^\s()|,=:]+')


@dataclass
class Node:
    """A text, a value that is written, or a block (`if` with branches, `range` with a body)."""

    kind: str
    words: list[str] = field(default_factory=list)
    text: str = ""
    body: list["Node"] = field(default_factory=list)
    other: list["Node"] = field(default_factory=list)


def render(template: str, data: dict[str, Any]) -> str:
    """The text that a template makes of data.

    Raises:
        UserError: the template has an action that is not known here, or is not closed.
    """
    nodes = _parse(_pieces(template))
    return _Run(data).all(nodes, data)


def _pieces(template: str) -> list[Node]:
    found, at = [], 0
    trim = False
    for action in ACTION.finditer(template):
        text = template[at : action.start()]
        text = text.lstrip() if trim else text
        text = text.rstrip() if action[1] else text
        trim, at = bool(action[3]), action.end()
        found.append(Node("text", text=text))
        if not action[2].startswith("/*"):
            found.append(Node("action", words=WORD.findall(action[2])))
    rest = template[at:]
    return [*found, Node("text", text=rest.lstrip() if trim else rest)]


def _parse(pieces: list[Node]) -> list[Node]:
    top: list[Node] = []
    open_blocks: list[tuple[Node, list[Node], int]] = []
    into, closing = top, 1
    for piece in pieces:
        first = piece.words[0] if piece.words else ""
        if first in ("if", "range"):
            block = Node(first, words=piece.words[1:])
            into.append(block)
            open_blocks.append((block, into, closing))
            into, closing = block.body, 1
        elif first == "else" and open_blocks:
            into = open_blocks[-1][0].other
            if piece.words[1:2] == ["if"]:
                block = Node("if", words=piece.words[2:])
                into.append(block)
                outer = open_blocks.pop()
                open_blocks.append((block, outer[1], outer[2]))
                into = block.body
        elif first == "end" and open_blocks:
            _, into, closing = open_blocks.pop()
        else:
            into.append(piece)
    if open_blocks:
        raise UserError(f"A Go template does not close {open_blocks[-1][0].kind} by end.")
    return top


class _Run:
    """One rendering: the data, and the variables that are set."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.variables: dict[str, Any] = {"$": data}

    def all(self, nodes: list[Node], dot: Any) -> str:
        return "".join(self.one(node, dot) for node in nodes)

    def one(self, node: Node, dot: Any) -> str:
        if node.kind == "text":
            return node.text
        if node.kind == "if":
            return self.all(node.body if self.value(node.words, dot) else node.other, dot)
        if node.kind == "range":
            return self.range(node, dot)
        if len(node.words) > 2 and node.words[1] in (":=", "="):
            self.variables[node.words[0]] = self.value(node.words[2:], dot)
            return ""
        found = self.value(node.words, dot)
        return "" if found is None else str(found)

    def range(self, node: Node, dot: Any) -> str:
        names: list[str] = []
        words = node.words
        if ":=" in words:
            at = words.index(":=")
            names, words = [word for word in words[:at] if word != ","], words[at + 1 :]
        written = []
        for number, item in enumerate(self.value(words, dot) or []):
            for name, value in zip(reversed(names), (item, number), strict=False):
                self.variables[name] = value
            written.append(self.all(node.body, item))
        return "".join(written)

    def value(self, words: list[str], dot: Any) -> Any:
        found, left = self.call(list(words), dot)
        if left:
            raise UserError(
                f"A Go template has an action that is not known here: {' '.join(words)}."
            )
        return found

    def call(self, words: list[str], dot: Any) -> tuple[Any, list[str]]:
        name = words[0] if words else ""
        if name not in FUNCTIONS:
            return self.term(words, dot)
        arguments, left = [], words[1:]
        while left and left[0] not in (")", "|"):
            argument, left = self.term(left, dot)
            arguments.append(argument)
        return FUNCTIONS[name](*arguments), left

    def term(self, words: list[str], dot: Any) -> tuple[Any, list[str]]:
        word, left = (words[0], words[1:]) if words else ("", [])
        if word == "(":
            found, left = self.call(left, dot)
            if left[:1] != [")"]:
                raise UserError("A Go template does not close a parenthesis.")
            return found, left[1:]
        if word.startswith('"'):
            return json.loads(word), left
        if word.startswith("`"):
            return word[1:-1], left
        if word in ("true", "false"):
            return word == "true", left
        if word.lstrip("-").isdecimal():
            return int(word), left
        if word.startswith("."):
            return _field(dot, word), left
        if word.startswith("$"):
            name, dotted, path = word.partition(".")
            if name in self.variables:
                return _field(self.variables[name], dotted + path), left
        raise UserError(f"A Go template has a word that is not known here: {word or 'nothing'}.")


def _field(value: Any, path: str) -> Any:
    for name in filter(None, path.split(".")):
        known = {key.lower(): key for key in value} if isinstance(value, dict) else {}
        value = value[known[name.lower()]] if name.lower() in known else None
    return value


FUNCTIONS: dict[str, Any] = {
    "eq": lambda one, *others: any(one == other for other in others),
    "ne": lambda one, other: one != other,
    "not": lambda one: not one,
    "and": lambda *some: next((one for one in some if not one), some[-1]),
    "or": lambda *some: next((one for one in some if one), some[-1]),
    "len": len,
    "slice": lambda some, start=0, end=None: some[start:end],
}
