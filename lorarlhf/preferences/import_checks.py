"""What an imported vote has to be, so that the store can take it and give it back unchanged."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lorarlhf.data.validation import BROKEN_TEXT, LONE_SURROGATE
from lorarlhf.preferences.fields import RowFault
from lorarlhf.preferences.records import (
    BOTH_BAD,
    BOTH_GOOD,
    MOST_COMPLETIONS,
    SKIP,
    Candidates,
    ImportedVote,
    check_verdict,
    is_name,
)

MAX_INTEGER = 2**53
"""All readers of the exports can hold the integers below it, also those that use floats."""


def check_vote(vote: ImportedVote) -> None:
    """Check that the store can take the vote, and give it back unchanged.

    Raises:
        RowFault: it can't.
    """
    _check_answers(vote)
    if vote.purpose not in ("train", "compare"):
        raise RowFault('field "purpose": expected train or compare')
    if not is_name(vote.rater):
        raise RowFault('field "rater": expected a name in one line')
    for name in ("created_at", "milliseconds", "presentation", "repeats", "changed_at"):
        value = getattr(vote, name)
        if value is not None and (type(value) is not int or not 0 <= value < MAX_INTEGER):
            raise RowFault(f'field "{name}": expected a whole number or null, found {value!r}')
    try:
        check_verdict(vote.verdict, len(vote.completions))
    except ValueError as error:
        raise RowFault(f'field "verdict": {error}') from error
    _check_text({**vars(vote), **vars(vote.verdict), "verdict": vote.verdict.verdict})


def check_candidates(candidates: Candidates) -> None:
    """Check that the store can take answers to be rated.

    Raises:
        RowFault: it can't.
    """
    texts = [text for text, _ in candidates.completions]
    if len(texts) < 2 or len(set(texts)) < len(texts):
        raise RowFault('field "completions": expected two or more different answers')
    _check_text(vars(candidates))


def _check_text(fields: Mapping[str, Any]) -> None:
    """Check that all texts and values can be written as JSON in UTF-8. Raises `RowFault`."""
    for name, value in fields.items():
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError):
            raise RowFault(f'field "{name}": expected values that JSON has') from None
        if LONE_SURROGATE.search(text):
            raise RowFault(f'field "{name}": found {BROKEN_TEXT}')


def _check_answers(vote: ImportedVote) -> None:
    texts = [text for text, _ in vote.completions]
    fewest = 1 if vote.verdict.verdict in (BOTH_GOOD, BOTH_BAD, SKIP) else 2
    if not fewest <= len(texts) <= MOST_COMPLETIONS:
        raise RowFault(f'field "completions": expected 2 to {MOST_COMPLETIONS}, found {len(texts)}')
    if not isinstance(vote.origin, dict) or not all(isinstance(s, dict) for s in vote.sampling):
        raise RowFault('fields "origin" and "sampling": expected objects')
    if vote.shown is not None and not _is_order(vote.shown, len(texts)):
        raise RowFault(f'field "shown": expected the positions 0 to {len(texts) - 1} in some order')


def _is_order(shown: Sequence[Any], count: int) -> bool:
    return all(type(place) is int for place in shown) and sorted(shown) == list(range(count))
