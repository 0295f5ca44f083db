"""Looking through the votes: filtered, newest first, a page at a time; and verdicts as words."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lorarlhf.preferences.records import (
    BOTH_BAD,
    BOTH_GOOD,
    RANKED,
    SKIP,
    TIE,
    Ranking,
    Verdict,
    Vote,
)
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError

PAGE = 50
MOST_WORDS = 12
LETTERS = "ABCDEF"


@dataclass(frozen=True)
class Wanted:
    """Which votes are looked for; None and "" leave all of them in.

    Attributes:
        words: each of them stands in the prompt, an answer, the note or the edited answer;
            capital letters make no difference.
    """

    rater: str | None = None
    purpose: str | None = None
    verdict: str | None = None
    words: str = ""


@dataclass(frozen=True)
class Found:
    """A page of votes: those from place `start` on, out of `total`."""

    votes: list[Vote]
    start: int
    total: int


def find(store: Store, wanted: Wanted, start: int = 0, count: int = PAGE) -> Found:
    """The votes that are wanted, the newest first; only one page of them is read.

    A page that lies behind the last one gives the last one: votes may have been taken back.
    """
    words, values = _words(wanted.words)
    query = f"{_IDS} {words} ORDER BY c.voted_at DESC, c.id DESC LIMIT :count OFFSET :start"
    values |= {"rater": wanted.rater or None, "purpose": wanted.purpose or None}
    values |= {"verdict": wanted.verdict or None, "count": count, "start": max(0, start)}
    rows = store.rows(query, values)
    if not rows and start > 0:
        total = len(store.rows(query, values | {"start": 0, "count": -1}))
        start = count * ((total - 1) // count) if total else 0
        rows = store.rows(query, values | {"start": start})
    found = [store.vote(row["id"]) for row in rows]
    votes = [vote for vote in found if vote is not None]  # taken back this very moment
    return Found(votes, max(0, start), rows[0]["total"] if rows else 0)


_IDS = """
    SELECT c.id, count(*) OVER () AS total
    FROM current_judgement c
    JOIN presentation p ON p.id = c.presentation_id
    JOIN rater r ON r.id = p.rater_id
    JOIN item i ON i.id = p.item_id
    JOIN prompt q ON q.id = i.prompt_id
    WHERE c.verdict != 'undone' AND (:rater IS NULL OR r.name = :rater)
    AND (:purpose IS NULL OR i.purpose = :purpose) AND (:verdict IS NULL OR c.verdict = :verdict)
"""
# A prompt is JSON, and its roles and keys are no words of anybody.
_PLACES = (
    "c.note LIKE {word}",
    "c.edited LIKE {word}",
    "EXISTS (SELECT 1 FROM json_tree(q.messages) t "
    "WHERE (t.key IS NULL OR t.key = 'content') AND t.atom LIKE {word})",
    "EXISTS (SELECT 1 FROM item_completion ic JOIN completion a ON a.id = ic.completion_id "
    "WHERE ic.item_id = i.id AND a.text LIKE {word})",
)


def _words(text: str) -> tuple[str, dict[str, object]]:
    """The part of a query that looks for words, and its values."""
    parts, values = [], dict[str, object]()
    for number, word in enumerate(text.split()[:MOST_WORDS]):
        # SQLite's LIKE knows capitals of ASCII only.
        forms = dict.fromkeys((word.lower(), word.upper(), word.capitalize()))
        forms = forms if not word.isascii() else {word: None}
        either = []
        for form_number, form in enumerate(forms):
            name = f"word_{number}_{form_number}"
            values[name] = "%" + re.sub("([%_!])", r"!\1", form) + "%"
            either += [place.format(word=f":{name} ESCAPE '!'") for place in _PLACES]
        parts.append(f"AND ({' OR '.join(either)})")
    return " ".join(parts), values


# ---- as it was shown


def as_shown(vote: Vote) -> Vote:
    """A vote with its answers in the order of the screen, and the verdict on them."""
    order = vote.shown
    verdict = replace(vote.verdict, ranking=moved(vote.verdict.ranking, order.index))
    return replace(
        vote,
        completions=[vote.completions[place] for place in order],
        sources=[vote.sources[place] for place in order],
        sampling=[vote.sampling[place] for place in order],
        verdict=verdict,
        shown=list(range(len(order))),
    )


def as_kept(verdict: Verdict, shown: Sequence[int]) -> Verdict:
    """A verdict on answers in the order of the screen as one in the item's order."""
    return replace(verdict, ranking=moved(verdict.ranking, lambda place: shown[place]))


def moved(ranking: Ranking, where: Callable[[int], int]) -> Ranking:
    """A ranking of the same answers at other positions."""
    return [sorted(where(place) for place in tier) for tier in ranking]


# ---- verdicts as words


def in_words(verdict: Verdict, count: int) -> str:
    """A verdict on `count` answers as people say it, the answers by their letters."""
    every = "both" if count == 2 else "all"
    plain = {TIE: "tie", BOTH_GOOD: f"{every} good", BOTH_BAD: f"{every} bad", SKIP: "skipped"}
    if verdict.verdict != RANKED:
        return plain.get(verdict.verdict, verdict.verdict)
    if count == 2:
        said = f"{LETTERS[verdict.ranking[0][0]]} is better"
    else:
        placed = {position for tier in verdict.ranking for position in tier}
        rest = ", ".join(LETTERS[n] for n in range(count) if n not in placed)
        said = ranking_text(verdict.ranking) + (f" ({rest} not ranked)" if rest else "")
    return f"{said}, {verdict.strength}" if verdict.strength else said


def ranking_text(ranking: Ranking) -> str:
    """Tiers of positions as letters, the best first: `B > A = C`."""
    return " > ".join(" = ".join(LETTERS[position] for position in tier) for tier in ranking)


def read_ranking(text: str, count: int) -> Ranking:
    """What `ranking_text` wrote, or a person typed; answers that are not named are not ranked.

    Raises:
        UserError: it is no ranking of `count` answers.
    """
    known = LETTERS[:count]
    names = re.findall(r"[^\s=>]+", text.upper())
    wrong = [name for name in names if len(name) != 1 or name not in known]
    twice = sorted({name for name in names if names.count(name) > 1})
    tiers = [[name.strip() for name in tier.split("=")] for tier in text.upper().split(">")]
    if wrong:
        why = f"{wrong[0]} is none of {', '.join(known)}"
    elif twice:
        why = f"{twice[0]} stands in it twice"
    elif not all(name in known and name for tier in tiers for name in tier):
        why = "a letter is missing beside > or ="
    elif len(tiers) == 1 and len(tiers[0]) == count:
        why = "it prefers nothing: choose the tie"
    else:
        return [sorted(known.index(name) for name in tier) for tier in tiers]
    example = f"{known[1]} > {' = '.join(known[:1] + known[2:])}"
    raise UserError(f"This ranking can't be read: {why}. Write it such as {example}, best first.")
