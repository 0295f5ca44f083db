"""Judges of `eval`: each compares a candidate's answers with the base's and keeps ties.

A verdict is +1 (the candidate's answer is better), 0 (tie), -1 (the base's is), or None where the
judge has no opinion. Nothing here loads a model; `model_judge` does.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import Any

from lorarlhf.evaluation.agreement import TIE, verdict_on
from lorarlhf.evaluation.candidates import BASE, Candidate
from lorarlhf.evaluation.length_control import length_controlled
from lorarlhf.evaluation.vote_causes import words_in
from lorarlhf.evaluation.win_rate import (
    SIMILAR,
    bootstrap_interval,
    length_matched_win_rate,
    length_only_rate,
    win_rate,
)
from lorarlhf.preferences.records import Vote
from lorarlhf.rewards.functions import RewardFunction, call_reward_function
from lorarlhf.rewards.raters import Rater

Row = dict[str, Any]
Scores = list[float | None]
PEOPLE = "people"


@dataclass(frozen=True)
class Comparisons:
    """The comparisons of one candidate with the base by one judge; lists of the same length.

    Attributes:
        outcomes: +1, 0, -1, or None for no opinion.
        lengths, base_lengths: of both answers, in the same unit.
        groups: which prompt each belongs to.
    """

    outcomes: list[int | None]
    lengths: list[float]
    base_lengths: list[float]
    groups: list[Any]

    @property
    def known(self) -> "Comparisons":
        """Those on which the judge has an opinion."""
        kept = [i for i, outcome in enumerate(self.outcomes) if outcome is not None]
        columns = (self.outcomes, self.lengths, self.base_lengths, self.groups)
        return Comparisons(*([column[i] for i in kept] for column in columns))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Verdicts:
    """What one judge says of each candidate.

    Attributes:
        judge: its name in the tables.
        comparisons: by the candidate's name.
        scores: the mean score of each candidate and of the base, where the judge gives scores.
        independent: False if candidates were made with it, or could have been.
        note: a sentence about that, or about how the judge decides; "" if there is nothing to say.
    """

    judge: str
    comparisons: dict[str, Comparisons]
    scores: dict[str, float] = field(default_factory=dict)
    independent: bool = True
    note: str = ""


# ---- the judges


def by_rater(
    name: str, candidates: Sequence[Candidate], base: Candidate, groups: Sequence[Any]
) -> Verdicts:
    """The verdicts of a simulated rater's rule, without noise, with its own width of ties."""
    rater = Rater.named(name, noise=0.0)
    found = {}
    for one in candidates:
        pairs = zip(one.answers, base.answers, strict=True)
        found[one.name] = _paired([rater.judge(a, b) for a, b in pairs], one, base, groups)
    means = {one.name: fmean(map(rater.score, one.answers)) for one in (base, *candidates)}
    return Verdicts(f"rater {name}", found, means, note=rater.sentence)


def by_scores(
    judge: str,
    score: Callable[[Candidate], Scores],
    candidates: Sequence[Candidate],
    base: Candidate,
    groups: Sequence[Any],
    **about: Any,
) -> Verdicts:
    """The verdicts of a judge that scores single answers: the higher score wins, equal ones tie.

    Args:
        score: the scores of a candidate's answers, None for no opinion.
        about: `independent` and `note` of the verdicts.
    """
    scores = {one.name: score(one) for one in (base, *candidates)}
    found = {
        one.name: _paired(compare_scores(scores[one.name], scores[BASE]), one, base, groups)
        for one in candidates
    }
    known = {name: [x for x in values if x is not None] for name, values in scores.items()}
    means = {name: fmean(values) for name, values in known.items() if values}
    return Verdicts(judge, found, means, **about)


def compare_scores(
    ours: Sequence[float | None], theirs: Sequence[float | None]
) -> list[int | None]:
    """The sign of each difference; None where one of the two scores is missing."""
    return [
        None if a is None or b is None else (a > b) - (a < b)
        for a, b in zip(ours, theirs, strict=True)
    ]


def function_scores(function: RewardFunction, rows: Sequence[Row], candidate: Candidate) -> Scores:
    """The scores of a function of TRL's signature, which also gets the columns of the prompts.

    Args:
        rows: n rows, each with the `prompt` as it was answered, and further columns.

    Raises:
        UserError: the function raised, or returned something else than numbers.
    """
    completions = [
        answer.text
        if isinstance(row["prompt"], str)
        else [{"role": "assistant", "content": answer.text}]
        for row, answer in zip(rows, candidate.answers, strict=True)
    ]
    own = ("prompt", "completion", "completion_ids", "ended")
    columns: Row = {name: [row.get(name) for row in rows] for name in rows[0] if name not in own}
    columns |= {"completion_ids": candidate.ids, "ended": [a.ended for a in candidate.answers]}
    return call_reward_function(function, [row["prompt"] for row in rows], completions, **columns)


def by_people(votes: Iterable[Vote], sources: dict[str, str], base: str = BASE) -> Verdicts | None:
    """The votes of blind comparisons between the base and the candidates; None if there are none.

    The answers are those that were voted on, not those of this evaluation; lengths are in words.

    Args:
        sources: the candidate of each source of answers, such as `runs/0003-ppo`.
    """
    rows: dict[str, Comparisons] = {}
    for vote in votes:
        verdict = verdict_on(vote)
        named = [sources.get(source) for source in vote.sources]
        if verdict is None or base not in vote.sources or not any(named):
            continue
        ours = 0 if named[0] else 1
        lengths = [float(words_in(text)) for text in vote.completions]
        one = rows.setdefault(str(named[ours]), Comparisons([], [], [], []))
        one.outcomes.append(0 if verdict == TIE else 1 if verdict == ours else -1)
        one.lengths.append(lengths[ours])
        one.base_lengths.append(lengths[1 - ours])
        one.groups.append(str(vote.prompt))
    note = "Votes of the blind comparisons, on the answers that were shown there."
    return Verdicts(PEOPLE, rows, note=note) if rows else None


def _paired(
    outcomes: Sequence[int | None], one: Candidate, base: Candidate, groups: Sequence[Any]
) -> Comparisons:
    return Comparisons(list(outcomes), one.lengths, base.lengths, list(groups))


# ---- figures


def compared(comparisons: Comparisons, seed: int) -> Row | None:
    """The figures of one row of the table, as plain values; None without any opinion.

    `rate` is the win rate with ties as half. Its interval `ci95`, and those of the rates that take
    length into account, are bootstraps over prompts, each of which has both answers: they are
    paired. `length_controlled` is None where the comparisons can't tell it. `longer_wins` is the
    rate that a judge of length alone would give.
    """
    known = comparisons.known
    outcomes = [int(x) for x in known.outcomes if x is not None]
    if not outcomes:
        return None
    sides = (outcomes, known.lengths, known.base_lengths)
    controlled = length_controlled(*sides, known.groups, seed)
    similar = length_matched_win_rate(*sides, SIMILAR, known.groups, seed)
    return win_rate(outcomes, known.groups, seed).to_dict() | {
        "length_controlled": None if controlled is None else controlled.to_dict(),
        "similar_length": None if similar is None else similar.to_dict(),
        "longer_wins": length_only_rate(known.lengths, known.base_lengths),
    }


def between(verdicts: Verdicts, seed: int) -> list[Row]:
    """How much more often one candidate wins against the base than another, for each two.

    `difference` of the win rates, from -1 to 1, with `ci95` by a bootstrap over prompts, each of
    which has the answers of both. Votes of people are left out: they saw other answers.
    """
    rows = []
    pairs = combinations(verdicts.comparisons, 2) if verdicts.judge != PEOPLE else ()
    for one, other in pairs:
        ours, theirs = verdicts.comparisons[one], verdicts.comparisons[other]
        columns = zip(ours.outcomes, theirs.outcomes, ours.groups, strict=True)
        known = [(a - b, g) for a, b, g in columns if a is not None and b is not None]
        if not known:
            continue
        values, groups = [(gap / 2 + 1) / 2 for gap, _ in known], [group for _, group in known]
        low, high = bootstrap_interval(values, groups, seed)
        difference = 2 * fmean(values) - 1
        ci95 = [2 * low - 1, 2 * high - 1]
        rows.append({"candidate": one, "other": other, "difference": difference, "ci95": ci95})
    return rows


def verdict_rows(verdicts: Sequence[Verdicts], seed: int) -> list[Row]:
    """All judges with their figures of each candidate, as plain values for JSON."""
    return [
        {
            "judge": one.judge,
            "independent": one.independent,
            "note": one.note,
            "scores": {k: v for k, v in one.scores.items() if math.isfinite(v)},
            "results": [
                {"candidate": name} | figures
                for name, comparisons in one.comparisons.items()
                if (figures := compared(comparisons, seed)) is not None
            ],
            "between": between(one, seed),
        }
        for one in verdicts
    ]
