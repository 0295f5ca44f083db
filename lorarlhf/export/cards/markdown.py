"""Markdown of the cards: the hub's YAML head, tables, and texts that can't change the layout."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lorarlhf.evaluation.report_format import printable

_SIGNS = re.compile(r"([\\`*_\[\]|<>#~])")


def card(head: Mapping[str, Any], title: str, parts: Iterable[tuple[str, str]]) -> str:
    """A card: the head between lines of dashes, the title, and the parts that are not empty.

    Args:
        head: names and values of the YAML head; None and empty values are left out.
        parts: a heading and Markdown each; the first one without a heading is the introduction.
    """
    from huggingface_hub import CardData

    known = {name: value for name, value in head.items() if value not in (None, "", [], {})}
    blocks = [f"---\n{CardData(**known).to_yaml()}\n---", f"# {plain(title)}"]
    for heading, body in parts:
        if body.strip():
            blocks.append(f"## {heading}\n\n{body.strip()}" if heading else body.strip())
    return "\n\n".join(blocks) + "\n"


def plain(value: Any) -> str:
    """A text on one line that Markdown and HTML show as it is."""
    return _SIGNS.sub(r"\\\1", one_line(value))


def one_line(value: Any) -> str:
    """A text with single blanks for line ends and tabs, and no control characters."""
    return " ".join(printable(str(value)).split())


def code(value: Any) -> str:
    """A text as code, also within a table."""
    return f"`{one_line(value).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown cells; empty without rows."""
    body = ["| " + " | ".join(row) + " |" for row in rows]
    if not body:
        return ""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *body])


def bullets(lines: Iterable[str]) -> str:
    """A list, one line each."""
    return "\n".join(f"- {line}" for line in lines)


def fenced(text: str, language: str = "") -> str:
    """A block of code, with a fence that is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def many(count: int, what: str) -> str:
    """`1 vote`, `1,200 votes`."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def percent(rate: float, low: float, high: float) -> str:
    """A share with its 95% interval: `62% (50 to 74%)`."""
    return f"{rate:.0%} ({100 * low:.0f} to {high:.0%})"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
