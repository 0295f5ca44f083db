"""Single answers that were called good or bad, such as by a thumb, as votes on two answers."""

import json
from collections.abc import Iterable
from dataclasses import replace

from lorarlhf.preferences.records import BOTH_BAD, BOTH_GOOD, RANKED, Verdict, Vote

OPPOSITE = {BOTH_GOOD: BOTH_BAD, BOTH_BAD: BOTH_GOOD}
SINGLE = "single answers called good or bad, without one of the other kind on their prompt"
SINGLES = "single answers called good or bad, which this format can't express"


def in_pairs(votes: Iterable[Vote]) -> list[Vote]:
    """The votes, with single answers that a rater called good and bad as votes on two answers.

    On each prompt every good answer is paired with a bad one, as long as there are both. The pair
    stands at the later of the two; answers that remain stay as they are. So do those beside which
    the rater wrote a better one, since they give a pair with it.
    """
    votes = list(votes)
    waiting: dict[tuple[str, str, str], list[int]] = {}
    for place, vote in enumerate(votes):
        verdict = vote.verdict.verdict
        if len(vote.completions) != 1 or verdict not in OPPOSITE or vote.verdict.edited:
            continue
        group = json.dumps(vote.prompt), vote.rater
        others = waiting.get((*group, OPPOSITE[verdict]), [])
        other = next((n for n in others if votes[n].completions != vote.completions), None)
        if other is None:
            waiting.setdefault((*group, verdict), []).append(place)
        else:
            others.remove(other)
            votes[place] = _paired(votes[other], vote)
            votes[other] = replace(vote, id=-1)
    return [vote for vote in votes if vote.id != -1]


def _paired(one: Vote, other: Vote) -> Vote:
    """Two single answers as a vote on both, with the better one where it stood."""
    better = 0 if one.verdict.verdict == BOTH_GOOD else 1
    notes = [vote.verdict.note for vote in (one, other) if vote.verdict.note]
    return replace(
        other,
        completions=[*one.completions, *other.completions],
        sources=[*one.sources, *other.sources],
        sampling=[*one.sampling, *other.sampling],
        shown=[0, 1],
        verdict=Verdict(RANKED, [[better], [1 - better]], note="\n".join(notes) or None),
    )
