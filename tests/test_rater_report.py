"""The report on raters: shares and tests by hand, and biases that were planted."""

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lorarlhf.cli import parser
from lorarlhf.cli.main import main
from lorarlhf.cli.report import KINDS
from lorarlhf.evaluation.rater_report import (
    Share,
    in_words,
    rater_report,
    raters_report,
    same_winner_again,
)
from lorarlhf.evaluation.vote_causes import CAUSES, HEDGES, LEFT, holm, vote_causes, words_in
from lorarlhf.evaluation.win_rate import binomial_test
from lorarlhf.preferences.records import SKIP, Verdict
from lorarlhf.project.project import Project, create
from tests.rated_votes import FIRST, SECOND, vote

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from planted_biases import alarms, simulated

# ---- tests and shares


@pytest.mark.parametrize(
    ("count", "of", "wanted"),
    [
        (5, 5, 2 / 32),
        (0, 5, 2 / 32),
        (4, 5, 12 / 32),
        (5, 10, 1.0),
        (0, 0, 1.0),
        (8, 10, 112 / 1024),
    ],
)
def test_the_binomial_test_by_hand(count: int, of: int, wanted: float) -> None:
    assert binomial_test(count, of) == pytest.approx(wanted)


def test_the_binomial_test_of_many_votes() -> None:
    """Near the normal approximation: z = 2.5 has a chance of 0.0124."""
    assert binomial_test(25_000 + 280, 50_000) == pytest.approx(0.0124, rel=0.02)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03], 0.05) == [True, False, False]  # 0.05/3, then 0.05/2
    assert holm([0.01, 0.04, 0.02], 0.05) == [True, True, True]  # 0.05/3, 0.05/2, 0.05/1
    assert holm([0.02, 0.02], 0.03) == [False, False]


@pytest.mark.parametrize(("count", "found"), [(3, False), (12, True), (20, True), (200, True)])
def test_the_strongest_bias_is_found(count: int, found: bool) -> None:
    """Every vote for the left answer: Wald's test would not find it."""
    (cause,) = vote_causes([vote(n, FIRST, completions=["a b", "c d"]) for n in range(count)])
    assert cause.found == found


def test_a_share_of_nothing() -> None:
    assert math.isnan(Share(0, 0).value) and Share(0, 0).interval == (0.0, 1.0)
    assert Share(3, 4).value == 0.75


# ---- causes


@pytest.mark.parametrize(
    ("name", "with_it", "without"),
    [
        ("a list", "So:\n- one\n- two", "So: - one - two"),
        ("a heading", "## Answer\nYes", "#1 in the list\n```\n# a comment\n```"),
        ("a list", "* one\n* two", "* * *\n- - -\n"),
        ("bold", "a **very** long", "2 ** 3 ** 4 * 5"),
        ("code", "run `ls` now", "don't"),
        ("an exclamation mark", "Great\uff01", "Great."),
        ("a hedging opening", "Well, I think so.", "So. " + "x " * 60 + "I think so."),
    ],
)
def test_what_has_a_form(name: str, with_it: str, without: str) -> None:
    assert (CAUSES[name](with_it), CAUSES[name](without)) == (1.0, 0.0)


def test_signs_of_chinese_count_as_half_a_word() -> None:
    assert words_in("今天下雨 and rain") == 4 and words_in("") == 0


@pytest.mark.parametrize("hedge", HEDGES)
def test_every_hedge_is_found_however_it_is_written(hedge: str) -> None:
    for text in (hedge, hedge.upper(), f"Well, {hedge}, no.", f"{hedge.capitalize()}..."):
        assert CAUSES["a hedging opening"](text) == 1.0
    for text in (f"x{hedge}", f"{hedge}x"):
        assert CAUSES["a hedging opening"](text) == 0.0


def test_the_length_counts_doublings() -> None:
    assert CAUSES["longer"]("a b c d e f g") - CAUSES["longer"]("a b c") == 1.0


def test_causes_are_told_apart() -> None:
    """Lists win; the answers with lists are longer, and length alone decides nothing."""
    votes = []
    for n in range(120):
        long, listed = n % 2, n % 4 < 2
        texts = [
            "word " * (40 if long else 10),
            "word " * 20 + ("\n- a b\n- c d" if listed else ""),
        ]
        prefers = 1 if listed and n % 5 else n // 2 % 2
        votes.append(
            vote(
                n, SECOND if prefers else FIRST, completions=texts, shown=[n % 3 % 2, 1 - n % 3 % 2]
            )
        )
    causes = {cause.name: cause for cause in vote_causes(votes)}
    assert causes["a list"].found and causes["a list"].low > 0
    assert not causes["longer"].found and causes["longer"].low < 0 < causes["longer"].high
    assert set(causes) == {"longer", "a list", LEFT}
    assert causes["a list"].pairs == 60


def test_weights_of_one_cause_by_hand() -> None:
    """Nine of twelve for the left one: odds of three to one, shrunk by the prior a little."""
    votes = [vote(n, FIRST if n < 9 else SECOND, completions=["a b", "c d"]) for n in range(12)]
    (cause,) = vote_causes(votes)
    assert (cause.name, cause.pairs, cause.chosen) == (LEFT, 12, 9)
    assert cause.weight == pytest.approx(math.log(3), rel=0.08)
    error = 1 / math.sqrt(12 * 0.75 * 0.25)
    assert cause.high - cause.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_votes_on_one_pair_count_once() -> None:
    """Five raters on the same forty pairs are forty pairs, and a repeat is none."""
    one = [vote(n, FIRST if n % 3 else SECOND, item=n) for n in range(40)]
    more = [replace(v, id=v.id + 100 * k, rater=str(k)) for k in range(1, 5) for v in one]
    repeats = [replace(v, id=v.id + 1000, repeats=v.id) for v in one]
    assert vote_causes([*one, *more, *repeats]) == vote_causes(one)


def test_votes_all_one_way_have_finite_weights() -> None:
    causes = vote_causes([vote(n, FIRST) for n in range(200)])
    assert all(math.isfinite(cause.weight) for cause in causes)
    assert vote_causes([vote(1, Verdict(SKIP))]) == []


# ---- the whole


def test_the_shares_of_a_rater() -> None:
    votes = [vote(n, FIRST, shown=[0, 1] if n < 6 else [1, 0]) for n in range(8)]
    votes += [vote(8, Verdict("tie")), vote(9, Verdict(SKIP)), vote(10, SECOND, milliseconds=100)]
    votes += [vote(11, FIRST, item=0, repeats=0), vote(12, SECOND, item=1, repeats=1)]
    votes.append(vote(13, SECOND, imported=True, milliseconds=None))
    found = rater_report(votes, "ann")
    assert found.votes == 14
    assert found.ties == Share(1, 13) and found.skips == Share(1, 14)
    assert found.left == Share(7, 11)  # six of eight, and one of three with a repeat
    assert found.left_p == pytest.approx(binomial_test(7, 11))
    assert found.same_again == Share(1, 2)
    assert found.too_fast == Share(1, 10)  # neither skips nor repeats nor imported votes
    assert found.seconds == 9.0 and not found.hurried and not found.contradictory


def test_asked_again_both_good_is_not_both_bad() -> None:
    votes = [vote(1, Verdict("both_good")), vote(2, Verdict("both_bad"), item=1, repeats=1)]
    three = [vote(3, FIRST, completions=["a", "b", "c"])]
    assert rater_report(votes + three, "ann").same_again == Share(0, 1)


def test_the_same_winner_again_leaves_out_ties() -> None:
    votes = [vote(n, FIRST) for n in range(3)] + [vote(3, Verdict("tie"))]
    votes += [vote(4, FIRST, item=0, repeats=0), vote(5, SECOND, item=1, repeats=1)]
    votes += [
        vote(6, Verdict("tie"), item=2, repeats=2),
        vote(7, Verdict("tie"), item=3, repeats=3),
    ]
    assert rater_report(votes, "ann").same_again == Share(2, 4)
    assert same_winner_again(votes) == Share(1, 2)  # neither a tie twice nor one against a winner


def test_fifty_thousand_votes_take_seconds() -> None:
    votes = [
        vote(n, FIRST if n % 3 else SECOND, f"rater {n % 700}", prompt=f"{n % 60}?")
        for n in range(50_000)
    ]
    started = time.perf_counter()
    lines = in_words(raters_report(votes))
    assert time.perf_counter() - started < 30  # 5 s on an idle machine
    assert "690 more raters with" in "\n".join(lines)


@pytest.mark.parametrize("bias", ["none", LEFT, "longer", "a list", "lazy", "contradictory"])
def test_planted_biases_are_found(bias: str) -> None:
    """Benchmarks measure the power; here it only has to be most of the time."""
    named = [alarms(rater_report(simulated(bias, 300, seed), "ann")) for seed in range(12)]
    assert bias == "none" or sum(bias in names for names in named) >= 9
    assert sum(bool(names - {bias}) for names in named) <= 2


# ---- the command


def test_the_kinds_are_those_of_the_parser() -> None:
    assert tuple(KINDS) == parser.REPORTS


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = create(tmp_path / "mine")
    store = made.store()
    for n in range(30):
        texts = [(f"answer {n}", "base"), (f"another answer {n}, longer", "base")]
        item = store.add_item([{"role": "user", "content": f"Question {n}?"}], texts)
        for rater in ("ann", "bob"):
            other = rater == "bob" and n < 3
            store.judge(store.present(item, rater).token, FIRST if other else SECOND)
    store.close()
    return made


def test_the_command_in_words_and_as_json(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "raters", str(project.folder)]) == 0
    text = capsys.readouterr().out
    assert "All raters: 60 votes" in text and "ann: 30 votes" in text
    assert "Agreement on 30 pairs: 90% of the verdicts are the same" in text
    assert "Raters prefer different answers in 3 pairs. Talk about these:" in text
    assert "bob: answer 2" in text and "ann: another answer 2, longer" in text
    assert "prefers answers of twice the length" in text
    assert main(["report", "raters", str(project.folder), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["agreement"]["items"] == 30 and len(data["disagreements"]) == 3
    assert data["together"]["votes"] == 60 and len(data["raters"]) == 2
    assert main(["report", "raters", str(project.folder), "--rater", "ann"]) == 0
    assert "bob" not in capsys.readouterr().out
    assert main(["report", "raters", str(project.folder), "--axis", "a", "b"]) == 2
    assert "--axis belongs to `lorarlhf report tastes`" in capsys.readouterr().err
    assert main(["report", "tastes", str(project.folder), "--rater", "ann"]) == 2
    assert "--rater belongs to `lorarlhf report raters`" in capsys.readouterr().err


def test_without_votes_it_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create(tmp_path / "mine")
    assert main(["report", "raters", str(tmp_path / "mine")]) == 2
    assert "has no votes to report on. Rate some answers with" in capsys.readouterr().err


def test_one_rater_alone_is_not_reported_twice() -> None:
    lines = in_words(raters_report([vote(n, FIRST) for n in range(5)]))
    assert sum("5 votes" in line for line in lines) == 1
    assert not any("Agreement" in line for line in lines)
