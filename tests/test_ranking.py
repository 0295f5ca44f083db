"""Rankings of models: equal to the libraries called directly, and refused where there is none."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import choix
import evalica
import numpy as np
import pytest
from rated_votes import vote

from lorarlhf.cli.main import main
from lorarlhf.evaluation import ranking
from lorarlhf.evaluation.ranking import (
    Battle,
    Choice,
    battles_of,
    beaten_pairs,
    check_connected,
    choices_of,
    rank_choices,
    rank_pairs,
)
from lorarlhf.preferences.blind_comparisons import add_comparison
from lorarlhf.preferences.records import RANKED, SKIP, TIE, Verdict, Vote
from lorarlhf.project.project import create
from lorarlhf.runtime.errors import UserError

STRENGTHS = {"a": 4.0, "b": 2.0, "c": 1.0, "d": 0.5}


def crowd(count: int, seed: int = 0) -> list[Battle]:
    """Votes by Davidson's model of ties (Newman's), on twenty prompts."""
    rng, found = random.Random(seed), []
    for number in range(count):
        one, other = rng.sample(sorted(STRENGTHS), 2)
        x, y = STRENGTHS[one], STRENGTHS[other]
        tie = 2 * 0.5 * (x * y) ** 0.5
        outcome = rng.choices([1, 0, -1], [x, tie, y])[0]
        found.append(Battle(one, other, outcome, str(number % 20)))
    return found


def direct(method: Any, battles: list[Battle]) -> dict[str, float]:
    sides = {1: evalica.Winner.X, 0: evalica.Winner.Draw, -1: evalica.Winner.Y}
    found = method(
        [one.first for one in battles],
        [one.second for one in battles],
        [sides[one.outcome] for one in battles],
        tolerance=1e-10,
        limit=10_000,
    )
    scores = found.scores.to_dict()
    mean = np.exp(np.mean(np.log(list(scores.values()))))
    return {name: value / mean for name, value in scores.items()}


def test_pairs_are_ranked_as_by_evalica_itself() -> None:
    battles = crowd(600)
    terry, newman = rank_pairs(battles)
    assert terry.strengths == pytest.approx(direct(evalica.bradley_terry, battles), rel=1e-5)
    assert newman.strengths == pytest.approx(direct(evalica.newman, battles), rel=1e-5)
    assert list(terry.chances) == list(newman.chances) == ["a", "b", "c", "d"]
    assert newman.tie is not None and 0.3 < newman.tie < 0.7 and terry.tie is None
    assert terry.votes == {n: sum(n in (b.first, b.second) for b in battles) for n in STRENGTHS}


def test_chances_by_hand() -> None:
    # Three wins in four: strengths of 3 to 1, scaled to sqrt(3) and 1 / sqrt(3).
    battles = [Battle("a", "b", outcome, str(n)) for n, outcome in enumerate([1, 1, 1, -1])]
    (terry,) = rank_pairs(battles)  # without ties there is no other model
    assert terry.strengths["a"] == pytest.approx(3**0.5, rel=1e-4)
    assert terry.chances["a"].value == pytest.approx(3**0.5 / (1 + 3**0.5), rel=1e-4)
    tied = [Battle("a", "b", 0, "x"), Battle("a", "b", 1, "y"), Battle("b", "a", 1, "z")]
    _, newman = rank_pairs(tied)
    assert newman.strengths["a"] == pytest.approx(1.0)
    assert newman.tie == pytest.approx(0.5, rel=1e-3)  # one tie in three: v / (1 + v)
    assert newman.chances["a"].value == pytest.approx(0.5)


def test_few_ties_on_a_star_are_settled() -> None:
    """All against one, as runs against their base: evalica's usual 100 iterations are too few."""
    rng = random.Random(4)
    battles = [Battle("base", rng.choice("abc"), rng.choice([-1, 1]), str(n)) for n in range(200)]
    battles.append(Battle("base", "a", 0, "x"))
    terry, newman = rank_pairs(battles)
    assert newman.strengths == pytest.approx(terry.strengths, rel=0.03)
    assert all(one.low < one.value < one.high for one in newman.chances.values())


def test_intervals_hold_the_truth_and_shrink() -> None:
    mean = np.exp(np.mean(np.log(list(STRENGTHS.values()))))
    wide, narrow = rank_pairs(crowd(200))[1], rank_pairs(crowd(5000))[1]
    for name, strength in STRENGTHS.items():
        s, v = strength / mean, 0.5
        chance = (s + v * s**0.5) / (s + 1 + 2 * v * s**0.5)
        found = narrow.chances[name]
        assert found.low - 0.01 < chance < found.high + 0.01
        other = wide.chances[name]
        assert other.low < other.value < other.high
        assert found.high - found.low < other.high - other.low
    assert rank_pairs(crowd(200))[1].chances == wide.chances


def test_rankings_are_those_of_choix_itself() -> None:
    rng, names, choices = random.Random(1), sorted(STRENGTHS), []
    for number in range(300):
        left = rng.sample(names, 3)
        while len(left) > 1:
            best = rng.choices(left, [STRENGTHS[name] for name in left])[0]
            left.remove(best)
            choices.append(Choice(best, tuple(left), str(number % 30)))
    found = rank_choices(choices)
    data = [(names.index(c.winner), [names.index(n) for n in c.losers]) for c in choices]
    expected = np.exp(choix.ilsr_top1(4, data, alpha=0.01))
    expected /= np.exp(np.mean(np.log(expected)))
    assert [found.strengths[name] for name in names] == pytest.approx([*expected], rel=1e-6)
    assert list(found.chances) == ["a", "b", "c", "d"]
    assert all(one.low < one.value < one.high for one in found.chances.values())


# ---- from votes


def test_votes_become_battles() -> None:
    two = ["base", "runs/1"]
    votes = [
        vote(1, Verdict(RANKED, [[1], [0]]), sources=two),
        vote(2, Verdict(TIE), sources=two),
        vote(3, Verdict(SKIP), sources=two),
        vote(4, Verdict(RANKED, [[0], [1]]), sources=["base", "base"]),
    ]
    assert battles_of(votes) == [
        Battle("base", "runs/1", -1, "Why?"),
        Battle("base", "runs/1", 0, "Why?"),
    ]


def ranked(*tiers: list[int], count: int = 3) -> Vote:
    names = [f"m{n}" for n in range(count)]
    more = {"completions": names, "sources": names, "shown": [*range(count)]}
    return vote(1, Verdict(RANKED, [*tiers]), sampling=[{}] * count, **more)


def test_rankings_become_choices() -> None:
    def steps(*tiers: list[int]) -> list[tuple[str, tuple[str, ...]]]:
        return [(c.winner, c.losers) for c in choices_of([ranked(*tiers)])]

    assert steps([2], [0], [1]) == [("m2", ("m0", "m1")), ("m0", ("m1",))]
    assert steps([2], [0, 1]) == steps([2]) == [("m2", ("m0", "m1"))]
    assert steps([0, 1], [2]) == []  # nothing is known of the first choice
    assert choices_of([vote(1, Verdict(RANKED, [[0], [1]]), sources=["a", "b"])]) == []


@pytest.mark.parametrize(
    ("battles", "error"),
    [
        ([], "nothing to rank"),
        ([("a", "b", 0), ("c", "d", 0)], "a, b and c, d were never compared"),
        ([("a", "b", 1), ("b", "c", 0)], "a never lost or tied against b, c"),
        ([("a", "b", 1)], "a never lost or tied against b"),
    ],
)
def test_comparisons_without_a_ranking_are_refused(battles: list, error: str) -> None:
    with pytest.raises(UserError, match=error):
        check_connected(beaten_pairs([Battle(*one, "x") for one in battles], []))


def test_a_circle_is_connected() -> None:
    check_connected({("a", "b"), ("b", "c"), ("c", "a")})


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "evalica", None)
    with pytest.raises(
        UserError, match=r"evalica, which is not installed: .*install --upgrade evalica"
    ):
        rank_pairs(crowd(20))


# ---- the command


def llmfao(folder: Path, battles: list[Battle]) -> tuple[Path, Path]:
    """Files in the shape of LLMFAO's crowd comparisons: every vote with its pair of answers."""
    names = sorted(STRENGTHS)
    head = "id,prompt,model_x,model_y,worker,winner,left,right"
    rows, pairs = [head], []
    for number, one in enumerate(battles):
        winner = {1: "left", 0: "tie", -1: "right"}[one.outcome]
        x, y = names.index(one.first), names.index(one.second)
        rows.append(f"{number},{one.group},{x},{y},7,{winner},{one.first},{one.second}")
        pair = {"id": number, "text": f"Prompt {one.group}", "slug": "s"}
        pairs.append(pair | {"result_x": f"{one.first} says", "result_y": f"{one.second} says"})
    (folder / "crowd-comparisons.csv").write_text("\n".join(rows))
    (folder / "pairs-crowd.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return folder / "crowd-comparisons.csv", folder / "pairs-crowd.jsonl"


def test_the_command_on_crowd_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project, battles = create(tmp_path / "mine"), crowd(300)
    votes, answers = llmfao(tmp_path, battles)
    folder = str(project.folder)
    assert main(["votes", folder, "--import", str(votes), "--answers", str(answers)]) == 0
    capsys.readouterr()
    assert main(["report", "ranking", folder, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["votes"] == 300
    expected = {"bradley-terry": evalica.bradley_terry, "newman": evalica.newman}
    for found in told["rankings"]:
        strengths = {one["model"]: one["strength"] for one in found["models"]}
        assert strengths == pytest.approx(direct(expected[found["method"]], battles), rel=1e-4)
    assert main(["report", "ranking", folder]) == 0
    text = capsys.readouterr().out
    assert "by 300 votes on pairs" in text and "Bradley-Terry" in text and "on 20 prompts" in text
    assert "By Newman's model, two equal models tie in" in text
    assert main(["report", "ranking", str(create(tmp_path / "empty").folder)]) == 2
    assert "nothing to rank" in capsys.readouterr().err


def test_pairs_without_connection_are_told_beside_rankings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = create(tmp_path / "mine")
    store = project.store()
    item = store.add_item("Why?", [("x", "base"), ("y", "runs/1")])
    store.judge(store.present(item, "ann").token, Verdict(RANKED, [[0], [1]]))
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        item = store.add_item("Why?", [("x", "base"), ("y", "runs/1"), ("z", "runs/2")])
        store.judge(store.present(item, "ann").token, Verdict(RANKED, [[one] for one in order]))
    assert main(["report", "ranking", str(project.folder)]) == 0
    text = capsys.readouterr().out
    assert "Plackett-Luce" in text
    assert "From votes on pairs: The models can't be ranked yet: base never lost" in text


def test_votes_of_a_running_blind_comparison_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = create(tmp_path / "mine")
    store, folder = project.store(), str(project.folder)

    def vote_in(comparison: int, rater: str, verdict: Verdict) -> None:
        answers = [("x", "base"), ("y", "runs/1")]
        item = store.add_item("Why?", answers, purpose="compare", comparison=comparison)
        store.judge(store.present(item, rater).token, verdict)

    given_up = add_comparison(store, "base", "runs/1", 9).id
    vote_in(given_up, "ann", Verdict(TIE))
    newest = add_comparison(store, "base", "runs/1", 2).id  # ends the earlier one
    vote_in(newest, "ann", Verdict(TIE))
    vote_in(newest, "bob", Verdict(RANKED, [[0], [1]]))
    assert main(["report", "ranking", folder, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["votes"] == 1
    assert told["notes"] == ["2 votes of the blind comparison that still runs are left out."]
    vote_in(newest, "ann", Verdict(SKIP))  # she has seen all of it
    assert main(["report", "ranking", folder, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["votes"] == 2 and told["notes"][0].startswith("1 votes")


def test_a_method_that_does_not_settle_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "LIMIT", 1)
    project = create(tmp_path / "mine")
    votes, answers = llmfao(tmp_path, crowd(100))
    assert (
        main(["votes", str(project.folder), "--import", str(votes), "--answers", str(answers)]) == 0
    )
    capsys.readouterr()
    assert main(["report", "ranking", str(project.folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rankings"] == []
    assert told["notes"] == [
        f"{name}'s model has no ranking: its iteration did not settle on these votes."
        for name in ("Bradley-Terry", "Newman")
    ]


def test_rankings_without_connection_are_told_beside_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = create(tmp_path / "mine")
    store = project.store()
    for verdict in (Verdict(RANKED, [[0], [1]]), Verdict(TIE)):
        item = store.add_item("Why?", [("x", "base"), ("y", "runs/1")])
        store.judge(store.present(item, "ann").token, verdict)
    item = store.add_item("Why?", [("x", "base"), ("y", "runs/1"), ("z", "runs/2")])
    store.judge(store.present(item, "ann").token, Verdict(RANKED, [[0], [1], [2]]))
    assert main(["report", "ranking", str(project.folder)]) == 0
    text = capsys.readouterr().out
    assert "From rankings of three or more answers: The models can't be ranked yet" in text
