"""An answer as a heat map: what each word adds to the reward role's score, as safe HTML.

Words that raise the score are green, those that lower it red and underlined. The numbers stand in
the title of each word and in a folded table, which a screen reader can read. Model text is never
trusted: every word is escaped.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

SHADES = 5
WORDS = "words.jsonl"
"""The file in a reward run's folder with the pairs that its report shows as heat maps."""
EXACT = (
    "The reward role scores an answer by the mean over its tokens, so these shares are exact: "
    "together they are the score. A word may owe its share to the words before it."
)
ESTIMATED = (
    "The reward role reads the score at the end of an answer, so these shares are estimates "
    "(integrated gradients). With what no word adds, they are the score."
)


@dataclass(frozen=True)
class WordShares:
    """An answer's score by its words; the sum of the shares and of `rest` is the score.

    Attributes:
        words: each with what it adds; joined they are the answer.
        rest: what no word adds.
        exact: whether the shares are terms of the score, and not estimates.
    """

    score: float
    words: list[tuple[str, float]]
    rest: float
    exact: bool

    @property
    def strongest(self) -> float:
        """The largest share of a word, whatever its sign; 0 without words."""
        return max((abs(share) for _, share in self.words), default=0.0)


def heat_maps(answers: Sequence[WordShares]) -> list[str]:
    """The heat maps of answers to one prompt, whose colours mean the same."""
    strongest = max((answer.strongest for answer in answers), default=0.0)
    return [heat_map(answer, strongest) for answer in answers]


def heat_map(answer: WordShares, strongest: float | None = None) -> str:
    """The heat map of an answer.

    Args:
        strongest: the share that gets the deepest colour; by default the answer's own strongest.
    """
    most = answer.strongest if strongest is None else strongest
    words = "".join(_word(text, share, most) for text, share in answer.words)
    return (
        f'<div class="heat"><p class="heat-score">Score <b>{signed(answer.score)}</b>. '
        '<span class="more3">Green</span> words raise it; '
        '<span class="less3">red, underlined</span> words lower it.</p>'
        f'<p class="heat-words" dir="auto">{words or "(an empty answer)"}</p>'
        f'<details class="heat-numbers"><summary>The numbers as a table</summary>{_table(answer)}'
        f"<p>{EXACT if answer.exact else ESTIMATED}</p></details></div>"
    )


def signed(number: float) -> str:
    """A share or a score with its sign, as `+0.125`; zero has none."""
    text = f"{number:+.3f}".replace("-", "\u2212")
    return text[1:] if float(f"{number:.3f}") == 0 else text


def _word(text: str, share: float, strongest: float) -> str:
    """A word with its colour and its number; the blanks around it stay without colour."""
    core = text.strip()
    if not core:
        return html.escape(text)
    before, after = text[: text.index(core)], text[text.index(core) + len(core) :]
    shade = round(SHADES * abs(share) / strongest) if strongest > 0 else 0
    kind = f' class="{"more" if share > 0 else "less"}{shade}"' if shade else ""
    return f'{before}<span{kind} title="{signed(share)}">{html.escape(core)}</span>{after}'


def _table(answer: WordShares) -> str:
    rows = [_row(_named(text), share) for text, share in answer.words]
    rest = "" if answer.exact else _row("no word", answer.rest)
    return (
        '<div class="rows" tabindex="0" role="group" aria-label="What each word adds"><table>'
        '<thead><tr><th scope="col">Word</th><th scope="col">Adds</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody><tfoot>{rest}{_row('Score', answer.score)}</tfoot>"
        "</table></div>"
    )


def _row(name: str, number: float) -> str:
    return f'<tr><th scope="row">{name}</th><td>{signed(number)}</td></tr>'


def _named(text: str) -> str:
    """A word as a cell of the table; blanks have a name."""
    return f'<span dir="auto">{html.escape(text.strip())}</span>' if text.strip() else "(blank)"
