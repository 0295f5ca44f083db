"""Searching the votes, a page at a time and the newest first; verdicts and rankings as text."""

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
    spellings,
)
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError

PAGE = 50
MOST_WORDS = 12
LETTERS = "ABCDEF"


@dataclass(frozen=True)
class VoteFilter:
    """Which votes to find; None and "" exclude none.

    Attributes:
        without_login: beside the rater's, the votes of all names that nobody can log in with.
        words: each of them occurs in the prompt, an answer, the note or the edited answer; upper
            and lower case are the same.
    """

    rater: str | None = None
    purpose: str | None = None
    verdict: str | None = None
    words: str = ""
    without_login: bool = False


@dataclass(frozen=True)
class VotePage:
    """Some of `total` votes: those from position `start` on."""

    votes: list[Vote]
    start: int
    total: int


def find(store: Store, wanted: VoteFilter, start: int = 0, count: int = PAGE) -> VotePage:
    """Find a page of votes, the newest first; only this page is read.

    A start after the last vote gives the last page, since votes may have been undone.
    """
    words, values = _words(wanted.words)
    query = f"{_IDS} {words} ORDER BY c.voted_at DESC, c.id DESC LIMIT :count OFFSET :start"
    values |= {"rater": wanted.rater or None, "purpose": wanted.purpose or None}
    values |= {"verdict": wanted.verdict or None, "count": count, "start": max(0, start)}
    values |= {"without_login": wanted.without_login}
    rows = store.rows(query, values)
    if not rows and start > 0:
        total = len(store.rows(query, values | {"start": 0, "count": -1}))
        start = count * ((total - 1) // count) if total else 0
        rows = store.rows(query, values | {"start": start})
    found = [store.vote(row["id"]) for row in rows]
    votes = [vote for vote in found if vote is not None]  # those undone in between
    return VotePage(votes, max(0, start), rows[0]["total"] if rows else 0)


_IDS = """
    SELECT c.id, count(*) OVER () AS total
    FROM current_judgement c
    JOIN presentation p ON p.id = c.presentation_id
    JOIN rater r ON r.id = p.rater_id
    JOIN item i ON i.id = p.item_id
    JOIN prompt q ON q.id = i.prompt_id
    WHERE c.verdict != 'undone'
    AND (:rater IS NULL OR r.name = :rater OR (:without_login AND r.password IS NULL))
    AND (:purpose IS NULL OR i.purpose = :purpose) AND (:verdict IS NULL OR c.verdict = :verdict)
"""
# A prompt is JSON, in which only the contents are searched and not roles and keys.
_PLACES = (
    "c.note LIKE {word}",
    "c.edited LIKE {word}",
    "EXISTS (SELECT 1 FROM json_tree(q.messages) t "
    "WHERE (t.key IS NULL OR t.key = 'content') AND t.atom LIKE {word})",
    "EXISTS (SELECT 1 FROM item_completion ic JOIN completion a ON a.id = ic.completion_id "
    "WHERE ic.item_id = i.id AND a.text LIKE {word})",
)


def _words(text: str) -> tuple[str, dict[str, object]]:
    """The conditions of a query that finds words, and their values."""
    parts, values = [], dict[str, object]()
    for number, word in enumerate(text.split()[:MOST_WORDS]):
        # SQLite's LIKE ignores case in ASCII only.
        cases = (word.lower(), word.upper(), word.capitalize())
        forms = dict.fromkeys(form for case in cases for form in spellings(case))
        forms = forms if not word.isascii() else {word: None}
        either = []
        for form_number, form in enumerate(forms):
            name = f"word_{number}_{form_number}"
            values[name] = "%" + re.sub("([%_!])", r"!\1", form) + "%"
            either += [place.format(word=f":{name} ESCAPE '!'") for place in _PLACES]
        parts.append(f"AND ({' OR '.join(either)})")
    return " ".join(parts), values


# ---- the order on the screen


def as_shown(vote: Vote) -> Vote:
    """A vote with its answers in the order on the screen, and its verdict in that order."""
    order = vote.shown
    verdict = replace(vote.verdict, ranking=remap(vote.verdict.ranking, order.index))
    return replace(
        vote,
        completions=[vote.completions[place] for place in order],
        sources=[vote.sources[place] for place in order],
        sampling=[vote.sampling[place] for place in order],
        verdict=verdict,
        shown=list(range(len(order))),
    )


def as_stored(verdict: Verdict, shown: Sequence[int]) -> Verdict:
    """A verdict in the order on the screen as one in the order of the item."""
    return replace(verdict, ranking=remap(verdict.ranking, lambda place: shown[place]))


def remap(ranking: Ranking, where: Callable[[int], int]) -> Ranking:
    """A ranking of the same answers at other positions: `where` maps old to new."""
    return [sorted(where(place) for place in tier) for tier in ranking]


# ---- verdicts as text


def describe(verdict: Verdict, count: int) -> str:
    """A verdict on `count` answers as text, such as `B is better, clearly`."""
    every = {1: "", 2: "both "}.get(count, "all ")
    plain = {TIE: "tie", BOTH_GOOD: f"{every}good", BOTH_BAD: f"{every}bad", SKIP: "skipped"}
    if verdict.verdict != RANKED:
        return plain.get(verdict.verdict, verdict.verdict)
    if count == 2:
        text = f"{LETTERS[verdict.ranking[0][0]]} is better"
    else:
        placed = {position for tier in verdict.ranking for position in tier}
        rest = ", ".join(LETTERS[n] for n in range(count) if n not in placed)
        text = ranking_text(verdict.ranking) + (f" ({rest} not ranked)" if rest else "")
    return f"{text}, {verdict.strength}" if verdict.strength else text


def ranking_text(ranking: Ranking) -> str:
    """Tiers of positions as letters, the best first: `B > A = C`."""
    return " > ".join(" = ".join(LETTERS[position] for position in tier) for tier in ranking)


def read_ranking(text: str, count: int) -> Ranking:
    """A ranking from text as `ranking_text` writes it; answers that are not named are not ranked.

    Raises:
        UserError: the text is not a ranking of `count` answers.
    """
    if count == 1:
        raise UserError("One answer alone is not ranked: call it good or bad.")
    known = LETTERS[:count]
    names = re.findall(r"[^\s=>]+", text.upper())
    wrong = [name for name in names if len(name) != 1 or name not in known]
    twice = sorted({name for name in names if names.count(name) > 1})
    tiers = [[name.strip() for name in tier.split("=")] for tier in text.upper().split(">")]
    if wrong:
        why = f"{wrong[0]} is none of {', '.join(known)}"
    elif twice:
        why = f"{twice[0]} occurs twice"
    elif not all(name in known and name for tier in tiers for name in tier):
        why = "a letter is missing next to > or ="
    elif len(tiers) == 1 and len(tiers[0]) == count:
        why = "it prefers nothing, so choose the tie"
    else:
        return [sorted(known.index(name) for name in tier) for tier in tiers]
    example = f"{known[1]} > {' = '.join(known[:1] + known[2:])}"
    raise UserError(f"This ranking can't be read: {why}. Write it like {example}, best first.")
