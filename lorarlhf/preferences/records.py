"""The records of the store: votes, verdicts, presentations. Plain data, no database."""

import hashlib
import unicodedata
from dataclasses import dataclass, field
from typing import Any

Prompt = str | list[dict[str, str]]
Ranking = list[list[int]]

RANKED, TIE, BOTH_GOOD, BOTH_BAD = "ranked", "tie", "both_good", "both_bad"
SKIP, UNDONE = "skip", "undone"
VERDICTS = (RANKED, TIE, BOTH_GOOD, BOTH_BAD, SKIP)
STRENGTHS = ("slightly", "clearly", "much")
MOST_COMPLETIONS = 6


@dataclass(frozen=True)
class Verdict:
    """What a rater decided about an item.

    Attributes:
        verdict: `ranked`, `tie`, `both_good`, `both_bad` or `skip`. A thumb on a single answer is
            `both_good` or `both_bad`, too: all answers of its item are.
        ranking: for `ranked`, tiers of positions, the best first; answers that were not ranked are
            left out (`[[1], [0]]`: the second won; `[[2], [0, 1]]`: a tie behind the third).
        strength: `slightly`, `clearly`, `much`, or None.
        note: the rater's comment.
        edited: a better answer that the rater wrote.
    """

    verdict: str
    ranking: Ranking = field(default_factory=list)
    strength: str | None = None
    note: str | None = None
    edited: str | None = None


@dataclass(frozen=True)
class Presentation:
    """An item as one rater sees it: `shown` lists its positions in the order on the screen."""

    id: int
    token: str
    item_id: int
    shown: list[int]


@dataclass(frozen=True)
class Vote:
    """A current judgement with its prompt, its answers and how they were shown."""

    id: int
    rater: str
    presentation_id: int
    item_id: int
    purpose: str
    prompt: Prompt
    completions: list[str]  # by position
    sources: list[str]
    shown: list[int]
    verdict: Verdict
    milliseconds: int | None
    created_at: int  # of the vote; a correction does not change it
    sampling: list[dict[str, Any]]  # of each completion
    repeats: int | None
    origin: dict[str, Any]
    imported: bool = False  # from a file, and not cast on the pages
    key: str | None = None  # its name in the program that it was imported from


@dataclass(frozen=True)
class ImportedVote:
    """A vote from elsewhere, to be added to a store.

    Attributes:
        completions: (text, source) by position.
        item: votes with the same item name share an item; with None the vote gets its own.
        shown: positions in the order on the screen; None if that is not known.
        presentation, repeats: the file's own numbers of the presentation, and of the one that it
            asked again.
        key: the vote's name in the program that it comes from, if it has one there. A vote with a
            known key is not added again, whatever else has changed.
        changed_at: when it was last changed there, in milliseconds since 1970; a known vote that
            was changed there since is corrected here.
    """

    prompt: Prompt
    completions: tuple[tuple[str, str], ...]
    verdict: Verdict
    rater: str = "imported"
    item: str | None = None
    shown: tuple[int, ...] | None = None
    milliseconds: int | None = None
    created_at: int | None = None
    purpose: str = "train"
    origin: dict[str, Any] = field(default_factory=dict)
    sampling: tuple[dict[str, Any], ...] = ()
    presentation: int | None = None
    repeats: int | None = None
    key: str | None = None
    changed_at: int | None = None


@dataclass(frozen=True)
class Candidates:
    """Different answers to one prompt that nobody has judged, to be rated.

    Attributes:
        completions: (text, source) each, two or more; no text occurs twice.
        kept: the text with which the conversation went on; None if that is not known.
        origin: where they come from.
    """

    prompt: Prompt
    completions: tuple[tuple[str, str], ...]
    kept: str | None = None
    origin: dict[str, Any] = field(default_factory=dict)


def check_verdict(verdict: Verdict, count: int) -> None:
    """Check that a verdict fits an item with `count` answers.

    One answer alone is called good (`both_good`) or bad (`both_bad`), or is skipped.

    Raises:
        ValueError: an unknown verdict or strength, or a ranking that does not fit.
    """
    if verdict.verdict not in VERDICTS:
        raise ValueError(f"a verdict is one of {', '.join(VERDICTS)}, not {verdict.verdict!r}")
    if verdict.strength not in (None, *STRENGTHS):
        raise ValueError(f"strength is one of {', '.join(STRENGTHS)}, not {verdict.strength!r}")
    placed = [position for tier in verdict.ranking for position in tier]
    if count == 1 and verdict.verdict in (RANKED, TIE):
        raise ValueError("one answer alone is called good or bad, or skipped")
    if verdict.verdict != RANKED:
        if placed:
            raise ValueError(f"a ranking does not go with the verdict {verdict.verdict}")
        return
    if len(set(placed)) != len(placed) or not set(placed) <= set(range(count)):
        raise ValueError(f"a ranking names each of positions 0 to {count - 1} at most once")
    if not verdict.ranking or not all(verdict.ranking):
        raise ValueError("a ranking has at least one tier, and none is empty")
    if len(verdict.ranking) == 1 and len(placed) == count:
        raise ValueError("a ranking that prefers nothing is a tie: use the verdict tie")


def spellings(text: str) -> list[str]:
    """The text in Unicode's composed form (NFC), as it is, and decomposed (NFD); each once.

    They look the same and have the same meaning, and which one a person types depends on the
    keyboard and the system.
    """
    return list(
        dict.fromkeys(
            (unicodedata.normalize("NFC", text), text, unicodedata.normalize("NFD", text))
        )
    )


def is_name(name: Any) -> bool:
    """Whether a rater may have this name: one line without control characters or outer blanks."""
    return (
        isinstance(name, str)
        and bool(name)
        and name == name.strip()
        and not any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in name)
    )


def stable_order(rater: str, item_id: int, count: int) -> list[int]:
    """Positions 0 to `count` - 1 in an order that depends only on the rater and the item."""

    def rank(position: int) -> str:
        return hashlib.sha256(f"{rater}\0{item_id}\0{position}".encode()).hexdigest()

    return sorted(range(count), key=rank)
