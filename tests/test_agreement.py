"""Agreement between raters, disagreements and circles, by hand."""

import math
import time
from dataclasses import replace

import pytest

from lorarlhf.evaluation.agreement import (
    TIE,
    agreement_of,
    cycles_of_three,
    disagreements,
    krippendorff_alpha,
)
from lorarlhf.evaluation.rater_report import in_words, raters_report
from lorarlhf.preferences.records import Verdict, Vote
from tests.rated_votes import FIRST, SECOND, vote


def test_alpha_by_hand() -> None:
    """The coincidences of [0, 0], [0, 1], [1, 1], [1, 1]: 1 - 7 * 2 / (64 - 9 - 25)."""
    units = [[0, 0], [0, 1], [1, 1], [1, 1]]
    assert krippendorff_alpha(units) == pytest.approx(1 - 7 * 2 / 30)
    assert krippendorff_alpha([*units, [TIE]]) == krippendorff_alpha(units)
    assert krippendorff_alpha([[0, 0], [1, 1]]) == 1.0
    assert math.isnan(krippendorff_alpha([[0, 0], [0, 0]]))


def test_alpha_of_krippendorff_s_own_example() -> None:
    """Krippendorff 2011, part C: four observers, 12 units, alpha = 0.743."""
    rows = [
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    ]
    columns = zip(*(row.split() for row in rows), strict=True)
    units = [[int(value) for value in column if value != "."] for column in columns]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_agreement_needs_enough_pairs() -> None:
    def both(count: int) -> list[Vote]:
        verdicts = [FIRST if n % 2 else SECOND for n in range(count)]
        others = [SECOND if n % 4 == 0 else v for n, v in enumerate(verdicts)]
        ann = [vote(n, v, item=n) for n, v in enumerate(verdicts)]
        return ann + [vote(1000 + n, v, "bob", item=n) for n, v in enumerate(others)]

    few, enough = agreement_of(both(19)), agreement_of(both(40))
    assert few.items == 19 and few.raw is None and few.alpha is None
    assert enough.items == 40 and enough.raw == 1.0 and enough.alpha == 1.0
    mixed = [replace(v, verdict=FIRST) if v.id == 1000 else v for v in both(40)]
    found = agreement_of(mixed)
    assert found.raw == pytest.approx(39 / 40)
    assert found.low is not None and found.high is not None and found.alpha is not None
    assert found.low < found.alpha < found.high <= 1


def test_disagreements_are_the_newest_first() -> None:
    votes = [
        vote(1, FIRST, "ann", item=1),
        vote(2, SECOND, "bob", item=1),
        vote(3, FIRST, "ann", item=2),
        vote(4, Verdict("tie"), "bob", item=2),
        vote(5, SECOND, "ann", item=3),
        vote(6, FIRST, "bob", item=3),
    ]
    assert [[v.item_id for v in one.votes] for one in disagreements(votes)] == [[3, 3], [1, 1]]


def test_a_rater_does_not_disagree_with_themselves() -> None:
    twice = [vote(1, FIRST, item=1), vote(2, SECOND, item=1)]
    assert disagreements(twice) == [] and agreement_of(twice).items == 0
    repeat = [vote(1, FIRST, item=1), vote(3, SECOND, "bob", item=1, repeats=2)]
    assert disagreements(repeat) == []


def test_when_all_verdicts_are_the_same_alpha_has_no_value() -> None:
    tie = Verdict("tie")
    votes = [vote(n + 100 * k, tie, str(k), item=n) for n in range(25) for k in range(2)]
    found = agreement_of(votes)
    assert found.raw == 1.0 and found.alpha is None
    assert any("alpha has no value" in line for line in in_words(raters_report(votes)))


def test_circles_among_a_thousand_answers_take_no_time() -> None:
    votes = [
        vote(n, FIRST, completions=[f"a{n}", f"a{(n + step) % 1000}"])
        for step in (1, 2)
        for n in range(1000)
    ]
    started = time.perf_counter()
    assert cycles_of_three(votes) == (0, 1000)
    assert time.perf_counter() - started < 5


def test_circles_of_three() -> None:
    def prefers(number: int, better: str, worse: str, prompt: str = "Why?") -> Vote:
        return vote(number, FIRST, completions=[better, worse], prompt=prompt)

    circle = [prefers(1, "a", "b"), prefers(2, "b", "c"), prefers(3, "c", "a")]
    line = [
        prefers(4, "a", "b", "How?"),
        prefers(5, "b", "c", "How?"),
        prefers(6, "a", "c", "How?"),
    ]
    assert cycles_of_three(circle) == (1, 1)
    assert cycles_of_three(circle + line) == (1, 2)
    assert cycles_of_three(circle[:2]) == (0, 0)
    assert cycles_of_three([*circle[:2], vote(7, FIRST, "bob", completions=["c", "a"])]) == (0, 0)
