"""The report's section on a reward role: held-out pairs as heat maps, word by word."""

from collections.abc import Mapping, Sequence
from typing import Any

from lorarlhf.evaluation.heat_map import SHADES, WordShares, heat_maps
from lorarlhf.evaluation.report_format import number, printable, text

Row = Mapping[str, Any]
SIDES = ("chosen", "rejected")
HEADINGS = ("Preferred by the rater", "The other answer")
STYLE = "\n".join(
    (
        ".heat p { margin: 0 0 .5em; }",
        ".heat-score, .heat-numbers { font-size: .875rem; }",
        ".heat-words { white-space: pre-wrap; }",
        ".heat summary { cursor: pointer; color: var(--soft); }",
        ".heat .rows { max-height: 22rem; overflow-y: auto; }",
        '.heat [class^="less"] { text-decoration: underline dotted; text-underline-offset: 3px; }',
        *(
            f".more{n} {{ background: rgb(22 163 74 / {1 + 11 * n}%); }}"
            for n in range(1, SHADES + 1)
        ),
        *(
            f".less{n} {{ background: rgb(220 38 38 / {2 + 10 * n}%); }}"
            for n in range(1, SHADES + 1)
        ),
    )
)


def words_section(rows: Sequence[Row]) -> str:
    """Pairs that the role orders right and wrong, each answer as a heat map; empty without pairs.

    Args:
        rows: of `words.jsonl`; broken ones are left out.
    """
    shown = [card for row in rows if (card := _pair(row))]
    if not shown:
        return ""
    return (
        "<p>Pairs of prompts that it has not learned from: those that it orders right by the "
        "largest difference, and those that it orders wrong.</p>\n"
        '<div class="grid">\n' + "\n".join(shown) + "\n</div>"
    )


def _pair(row: Row) -> str:
    answers = [_shares(row.get(side)) for side in SIDES]
    known = [answer for answer in answers if answer is not None]
    if len(known) < len(SIDES):
        return ""
    maps = zip(HEADINGS, heat_maps(known), strict=True)
    body = "\n".join(f"<div>\n<h4>{heading}</h4>\n{drawn}\n</div>" for heading, drawn in maps)
    said = "The reward role agrees." if row.get("right") else "The reward role prefers the other."
    return (
        f'<article>\n<p class="said" dir="auto">{text(row.get("prompt", ""))}</p>\n'
        f'<div class="answers">\n{body}\n</div>\n<p class="soft verdict">{said}</p>\n</article>'
    )


def _shares(found: Any) -> WordShares | None:
    """An answer of a row; None where it is not what the reward stage writes."""
    if not isinstance(found, Mapping) or not isinstance(found.get("words"), list):
        return None
    score = number(found.get("score"))
    words = [
        (printable(str(word[0])), share)
        for word in found["words"]
        if isinstance(word, list) and len(word) == 2 and (share := number(word[1])) is not None
    ]
    if score is None or len(words) < len(found["words"]):
        return None
    return WordShares(score, words, 0.0, exact=True)
