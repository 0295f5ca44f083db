"""Single answers that were called good or bad, such as by a thumb, as votes on two answers."""

import json
from collections.abc import Iterable
from dataclasses import replace

from lorarlhf.preferences.records import BOTH_BAD, BOTH_GOOD, RANKED, Verdict, Vote

SINGLE = "single answers called good or bad, without one of the other kind on their prompt"
SINGLES = "single answers called good or bad, which this format can't express"


def in_pairs(votes: Iterable[Vote]) -> list[Vote]:
    """The votes, with single answers that a rater called good and bad as votes on two answers.

    On each prompt every good answer is paired with a bad one, as long as there are both. The pair
    stands at the later of the two; answers that remain stay as they are.
    """
    votes = list(votes)
    waiting: dict[tuple[str, str, str], list[int]] = {}
    for place, vote in enumerate(votes):
        if len(vote.completions) == 1:
            group = json.dumps(vote.prompt), vote.rater
            others = waiting.get((*group, _opposite(vote.verdict.verdict)), [])
            if others and votes[others[0]].completions != vote.completions:
                other = others.pop(0)
                votes[place] = _paired(votes[other], vote)
                votes[other] = replace(vote, id=-1)
            else:
                waiting.setdefault((*group, vote.verdict.verdict), []).append(place)
    return [vote for vote in votes if vote.id != -1]


def _opposite(verdict: str) -> str:
    return BOTH_BAD if verdict == BOTH_GOOD else BOTH_GOOD


def _paired(one: Vote, other: Vote) -> Vote:
    """Two single answers as a vote on both, with the better one where it stood."""
    better = 0 if one.verdict.verdict == BOTH_GOOD else 1
    return replace(
        other,
        completions=[*one.completions, *other.completions],
        sources=[*one.sources, *other.sources],
        sampling=[*one.sampling, *other.sampling],
        shown=[0, 1],
        verdict=Verdict(RANKED, [[better], [1 - better]]),
    )
