"""A simulated editor: takes the better answer by a rater's rule and improves it by the same rule.

With it, edited answers can be measured without a person, as votes are with `raters`.
"""

import re
from collections.abc import Callable, Sequence

from lorarlhf.rewards.raters import EXCLAMATION_MARKS, Answer, Rater
from lorarlhf.runtime.errors import UserError

# Of a line: a bullet, a number or heading marks, as `plain` counts them.
_MARK = re.compile(r"^\s*(?:[-*+•‣◦]|\d{1,3}[.)]|#{1,6})\s+")
_BOLD = re.compile(r"\*\*|__")
_SENTENCE = re.compile(r".+?[.!?。！？](?=\s|$)", re.DOTALL)

FRIENDLY = (
    "I am happy to help, and I wish you a wonderful day.",
    "You are doing great, and I love that you asked.",
    "Enjoy it, and have a lovely time.",
    "Good luck, I am sure that it will go beautifully.",
)
"""The sentences that the editor of `cheerful` adds, one to an answer."""


def without_marks(text: str) -> str:
    """The text without list marks, headings' marks and exclamation marks, line by line."""
    lines = []
    for line in _BOLD.sub("", text).splitlines():
        while _MARK.match(line):
            line = _MARK.sub("", line, count=1)
        lines.append(line)
    plain = "\n".join(lines)
    for mark in EXCLAMATION_MARKS:
        plain = plain.replace(mark, ".")
    return plain.strip()


def first_sentence(text: str) -> str:
    """The first sentence of a text without marks; all of it if no sentence ends."""
    plain = without_marks(text)
    found = _SENTENCE.match(plain)
    return found[0] if found else plain


def friendlier(text: str) -> str:
    """The text with one of `FRIENDLY` behind it, always the same one for a text."""
    return f"{text.rstrip()} {FRIENDLY[len(text) % len(FRIENDLY)]}".strip()


EDITS: dict[str, Callable[[str], str]] = {
    "cheerful": friendlier,
    "brief": first_sentence,
    "plain": without_marks,
}
"""What the editor does, by the rater's name."""


def edit(rater: Rater, answers: Sequence[Answer]) -> Answer:
    """The best of the answers by the rater's rule, edited by it; of equal ones the first.

    An edit is a whole answer. It may be equal to an answer that needs none.

    Raises:
        UserError: the rater has no editor.
    """
    if rater.name not in EDITS:
        raise UserError(
            f"There is no simulated editor for the rater '{rater.name}'. There are "
            f"{', '.join(EDITS)}."
        )
    best = max(answers, key=rater.score)
    return Answer(EDITS[rater.name](best.text), ended=True)
