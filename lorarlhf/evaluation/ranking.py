"""Votes as a ranking of the models whose answers were compared.

Pairs go through `evalica`: Bradley and Terry's model, in which a tie is half a win for each side,
and Newman's (2023, JMLR 24, 22-1086), which has a chance of ties of its own. Rankings of three or
more answers go through `choix`: Luce's choices, as Plackett and Luce order them (Maystre and
Grossglauser 2015, "Fast and accurate inference of Plackett-Luce models").

Strengths are scaled to a geometric mean of 1 and shown as chances: a model of strength s beats an
average one with the chance s / (s + 1).
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from lorarlhf.evaluation.agreement import TIE, verdict_on
from lorarlhf.preferences.records import RANKED, Vote
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.installer import install_command

RESAMPLES = 200
TOLERANCE, LIMIT = 1e-8, 10_000
SMOOTHING = 0.01
"""choix's regularisation, which keeps the strength of a model finite that is never chosen."""

Strengths = dict[str, float]


@dataclass(frozen=True)
class Battle:
    """Two models' answers compared: +1 if the first won, 0 for a tie, -1; `group` is the prompt."""

    first: str
    second: str
    outcome: int
    group: str


@dataclass(frozen=True)
class Choice:
    """One model's answer preferred to those of the others, as one step of a ranking."""

    winner: str
    losers: tuple[str, ...]
    group: str


@dataclass(frozen=True)
class Fit:
    """Strengths with a geometric mean of 1, and Newman's parameter of ties."""

    strengths: Strengths
    tie: float = 0.0


@dataclass(frozen=True)
class Chance:
    """The chance of a model to beat an average one, ties as half, with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Ranking:
    """Models by a model of strengths, the best first.

    Attributes:
        method: `bradley-terry`, `newman` or `plackett-luce`.
        chances: by the model's name, in order.
        strengths: with a geometric mean of 1.
        tie: Newman's parameter: two equal models tie with the chance v / (1 + v).
    """

    method: str
    chances: dict[str, Chance]
    strengths: Strengths
    tie: float | None = None
    votes: dict[str, int] = field(default_factory=dict)


# ---- what was compared


def battles_of(votes: Iterable[Vote]) -> list[Battle]:
    """The votes on two answers of different models; skips have no winner and are left out."""
    found = []
    for vote in votes:
        verdict = verdict_on(vote)
        if verdict is None or vote.sources[0] == vote.sources[1]:
            continue
        outcome = 0 if verdict == TIE else 1 if verdict == 0 else -1
        found.append(Battle(vote.sources[0], vote.sources[1], outcome, str(vote.prompt)))
    return found


def choices_of(votes: Iterable[Vote]) -> list[Choice]:
    """The steps of rankings of three or more answers of different models.

    Each best answer was chosen among those that are left. A tier of several answers orders nothing
    inside and ends the steps, except for the last one, which only loses.
    """
    found = []
    for vote in votes:
        sources, ranked = vote.sources, vote.verdict.verdict == RANKED
        if not ranked or len(sources) < 3 or len(set(sources)) < len(sources):
            continue
        left = set(range(len(sources)))
        for tier in vote.verdict.ranking:
            if len(tier) > 1 or len(left) == 1:
                break
            left -= set(tier)
            losers = tuple(sources[place] for place in sorted(left))
            found.append(Choice(sources[tier[0]], losers, str(vote.prompt)))
    return found


def beaten_pairs(battles: Iterable[Battle], choices: Iterable[Choice]) -> set[tuple[str, str]]:
    """(better, worse) names; both ways for a tie."""
    pairs = {(one.winner, loser) for one in choices for loser in one.losers}
    for battle in battles:
        if battle.outcome >= 0:
            pairs.add((battle.first, battle.second))
        if battle.outcome <= 0:
            pairs.add((battle.second, battle.first))
    return pairs


def check_connected(pairs: set[tuple[str, str]]) -> None:
    """Refuse comparisons that give no ranking.

    Strengths exist if and only if, however the models are split in two, one of each part has won
    or tied against one of the other (Ford 1957).

    Raises:
        UserError: there is nothing to rank, models were never compared, not even through others, or
            some never lost against the rest.
    """
    names = sorted({name for pair in pairs for name in pair})
    if not names:
        raise UserError(
            "There are no votes on answers of different models, so there is nothing to rank. "
            "Compare two models on the Compare page of `lorarlhf ui`."
        )
    apart = _reached(names[0], pairs | {(b, a) for a, b in pairs})
    if rest := [name for name in names if name not in apart]:
        raise UserError(
            f"The models can't be ranked together: {_listed(sorted(apart))} and {_listed(rest)} "
            "were never compared with each other, not even through a third model. Compare one of "
            "each side."
        )
    for name in names:
        below = _reached(name, pairs)  # what it has beaten, at least through others
        above = [other for other in names if other not in below]
        if above:
            raise UserError(
                f"The models can't be ranked yet: {_listed(above)} never lost or tied against "
                f"{_listed(sorted(below))}, so how much stronger they are can't be told. More "
                "votes on these will settle it."
            )


def _reached(start: str, pairs: set[tuple[str, str]]) -> set[str]:
    following: dict[str, list[str]] = {}
    for one, other in pairs:
        following.setdefault(one, []).append(other)
    seen, left = {start}, [start]
    while left:
        new = [name for name in following.get(left.pop(), []) if name not in seen]
        seen |= set(new)
        left += new
    return seen


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# ---- rankings


def rank_pairs(battles: Sequence[Battle], seed: int = 0) -> list[Ranking]:
    """By Bradley and Terry's model and by Newman's, each with intervals.

    The intervals are Bayesian bootstraps over prompts (Rubin 1981): each prompt's votes get a
    random weight with mean 1. Unlike drawing prompts, that never takes a comparison away, so the
    models stay connected.

    Without a tie Newman's model is that of Bradley and Terry, and evalica's iteration for it need
    not settle, so it is left out.

    Raises:
        UserError: evalica is not installed, or the comparisons give no ranking.
    """
    evalica = _library("evalica")
    check_connected(beaten_pairs(battles, []))
    cells = list(dict.fromkeys((one.first, one.second, one.outcome) for one in battles))
    counts = _counts([(one.first, one.second, one.outcome) for one in battles], cells, battles)
    firsts, seconds, outcomes = zip(*cells, strict=True)
    winners = [
        {1: evalica.Winner.X, 0: evalica.Winner.Draw, -1: evalica.Winner.Y}[outcome]
        for outcome in outcomes
    ]
    how = {"tolerance": TOLERANCE, "limit": LIMIT}

    def strengths(method: Callable[..., Any], weights: np.ndarray) -> Fit | None:
        found = method(firsts, seconds, winners, weights=weights, **how)
        settled = found.iterations < LIMIT
        return Fit(_scaled(found.scores.to_dict()), getattr(found, "v", 0.0)) if settled else None

    methods = {"bradley-terry": evalica.bradley_terry}
    if any(outcome == 0 for outcome in outcomes):
        methods["newman"] = evalica.newman
    votes = _votes_of((one.first, one.second) for one in battles)
    found = []
    for name, method in methods.items():
        rng = np.random.default_rng(seed)
        fit = strengths(method, counts.sum(1))
        draws = (counts @ rng.exponential(size=counts.shape[1]) for _ in range(RESAMPLES))
        resampled = [one for weights in draws if (one := strengths(method, weights)) is not None]
        if fit is not None and resampled:
            found.append(_in_order(name, fit, resampled, votes))
    return found


def rank_choices(choices: Sequence[Choice], seed: int = 0) -> Ranking:
    """By Plackett and Luce's model, with intervals by a bootstrap over prompts.

    Raises:
        UserError: choix is not installed, or the rankings give no ranking of models.
    """
    choix = _library("choix")
    check_connected(beaten_pairs([], choices))
    names = sorted({name for one in choices for name in (one.winner, *one.losers)})
    places = {name: place for place, name in enumerate(names)}
    data = [(places[one.winner], [places[name] for name in one.losers]) for one in choices]
    groups = {group: row for row, group in enumerate(dict.fromkeys(c.group for c in choices))}
    rows = np.array([groups[one.group] for one in choices])

    def strengths(counts: np.ndarray) -> Fit:
        """choix takes no weights, so each choice is repeated as often as it was drawn."""
        drawn = [one for one, times in zip(data, counts, strict=True) for _ in range(int(times))]
        found = choix.ilsr_top1(len(names), drawn, alpha=SMOOTHING)
        return Fit(_scaled(dict(zip(names, np.exp(found).tolist(), strict=True))))

    rng = np.random.default_rng(seed)
    share = np.full(len(groups), 1 / len(groups))
    draws = (rng.multinomial(len(groups), share)[rows] for _ in range(RESAMPLES))
    votes = _votes_of((one.winner, *one.losers) for one in choices)
    fit = strengths(np.ones(len(data)))
    return _in_order("plackett-luce", fit, [strengths(times) for times in draws], votes)


def _in_order(method: str, fit: Fit, resampled: Sequence[Fit], votes: dict[str, int]) -> Ranking:
    chances = {}
    for name in sorted(fit.strengths, key=lambda name: -fit.strengths[name]):
        values = [_chance(one.strengths[name], one.tie) for one in resampled]
        low, high = np.percentile(values, [2.5, 97.5])
        chances[name] = Chance(_chance(fit.strengths[name], fit.tie), float(low), float(high))
    ordered = {name: fit.strengths[name] for name in chances}
    return Ranking(method, chances, ordered, fit.tie if method == "newman" else None, votes)


def _chance(strength: float, tie: float) -> float:
    """To beat a model of strength 1, ties as half; `tie` is Newman's parameter, 0 for no ties."""
    drawn = tie * strength**0.5
    return (strength + drawn) / (strength + 1 + 2 * drawn)


def _scaled(strengths: Strengths) -> Strengths:
    """Strengths with a geometric mean of 1."""
    mean = np.exp(np.mean(np.log(list(strengths.values()))))
    return {name: float(value / mean) for name, value in strengths.items()}


def _counts(keys: Sequence[Any], cells: Sequence[Any], battles: Sequence[Battle]) -> np.ndarray:
    """How often each cell occurs in each group: (cells, groups)."""
    places = {cell: place for place, cell in enumerate(cells)}
    groups = {group: place for place, group in enumerate(dict.fromkeys(b.group for b in battles))}
    table = np.zeros((len(cells), len(groups)))
    for key, battle in zip(keys, battles, strict=True):
        table[places[key], groups[battle.group]] += 1
    return table


def _votes_of(named: Iterable[Iterable[str]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in itertools.chain.from_iterable(named):
        found[name] = found.get(name, 0) + 1
    return found


def _library(name: str) -> ModuleType:
    """evalica or choix, which only rankings need."""
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"Rankings need {error.name}, which is not installed: {install_command(name)}"
        ) from error
