"""Pairs from edited answers: an edit above what the policies of each round wrote (DITTO).

An edited answer is better than every answer of a policy to its prompt, and a later policy is taken
to be better than an earlier one. So answers stand in an order, the edit first and the base last,
and any two levels of it give pairs (Shaikh et al. 2024, arXiv 2406.00888, algorithm 1).
"""

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Pair = tuple[str, str]  # the better and the worse answer

SHARES = {"online": 0.7, "replay": 0.2, "between": 0.1}
"""How much of a round each kind of pair is: `frac_expert`, `frac_replay` and `frac_noisy` in the
authors' configuration (github.com/SALT-NLP/demonstrated-feedback at 243de9f)."""


@dataclass(frozen=True)
class EditPairs:
    """The pairs of one prompt.

    Attributes:
        online: the edit over answers of the newest policy.
        replay: the edit over answers of earlier policies and of the base.
        between: an answer of a later policy over one of an earlier policy.
    """

    online: list[Pair]
    replay: list[Pair]
    between: list[Pair]


def edit_pairs(edit: str, levels: Sequence[Sequence[str]]) -> EditPairs:
    """All pairs of an edited answer and of the answers of each policy to its prompt.

    Blank answers, and pairs of equal ones, are left out; each pair is there once.

    Args:
        levels: the answers of each policy, the earliest (the base) first, one level or more.
    """
    *earlier, newest = levels
    return EditPairs(
        online=_usable((edit, answer) for answer in newest),
        replay=_usable((edit, answer) for level in earlier for answer in level),
        between=_usable(
            (better, worse)
            for before, after in itertools.combinations(levels, 2)
            for better in after
            for worse in before
        ),
    )


def _usable(pairs: Iterable[Pair]) -> list[Pair]:
    stripped = ((better.strip(), worse.strip()) for better, worse in pairs)
    return list(dict.fromkeys(pair for pair in stripped if all(pair) and pair[0] != pair[1]))


def draw_pairs(found: Sequence[EditPairs], count: int, seed: int) -> list[tuple[int, Pair]]:
    """Draw `count` pairs for one round, each with the place of its prompt, in random order.

    The kinds have the parts in `SHARES`; a kind without pairs leaves its part to the first kind
    that has some. Every pair of a kind is drawn once before one is drawn again. If there is no pair
    at all, nothing is drawn.
    """
    chance = random.Random(seed)
    pools = {
        kind: [(place, pair) for place, pairs in enumerate(found) for pair in getattr(pairs, kind)]
        for kind in SHARES
    }
    kinds = [kind for kind in SHARES if pools[kind]]
    if not kinds:
        return []
    wanted = {kind: round(count * SHARES[kind]) for kind in kinds}
    wanted[kinds[0]] += count - sum(wanted.values())
    drawn = [row for kind in kinds for row in _in_turns(pools[kind], wanted[kind], chance)]
    chance.shuffle(drawn)
    return drawn


def _in_turns(
    pool: list[tuple[int, Pair]], count: int, chance: random.Random
) -> list[tuple[int, Pair]]:
    drawn: list[tuple[int, Pair]] = []
    while len(drawn) < count:
        drawn += chance.sample(pool, min(len(pool), count - len(drawn)))
    return drawn
