"""Votes with every field, for the tests of reports."""

from lorarlhf.preferences.records import RANKED, Verdict, Vote

FIRST, SECOND = Verdict(RANKED, [[0], [1]]), Verdict(RANKED, [[1], [0]])


def vote(
    number: int, verdict: Verdict, rater: str = "ann", item: int | None = None, **more
) -> Vote:
    fields = {
        "id": number,
        "rater": rater,
        "presentation_id": number,
        "item_id": number if item is None else item,
        "purpose": "train",
        "prompt": "Why?",
        "completions": ["one answer", "another one here"],
        "sources": ["base", "base"],
        "shown": [0, 1],
        "verdict": verdict,
        "milliseconds": 9000,
        "created_at": number,
        "sampling": [{}, {}],
        "repeats": None,
        "origin": {},
    }
    return Vote(**fields | more)
