"""Blind comparisons: what can be started, no names before the end, and results."""

import json
from typing import Any

import pytest

from lorarlhf.evaluation.win_rate import wilson_interval
from lorarlhf.preferences.settings import write_setting
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.compare import HELD_OUT
from tests.compare_steps import HELD, OpenBench, answers, held_out, ranked, start, vote_all
from tests.pages import FIRST, Bench, FakeEngine, add_run, pair

pytest_plugins = ("tests.pages",)


@pytest.fixture
def bench(open_bench: OpenBench, project: Project) -> Bench:
    """With two runs, six held-out prompts, and a fake engine that says which model it is."""
    for name in ("0001-sft", "0002-dpo"):
        add_run(project, name)
    held_out(project, HELD)
    engine = FakeEngine()
    engine.write = answers
    return open_bench(engine, prefetching=False)


# ---- starting


def test_both_models_answer_every_prompt_once(bench: Bench) -> None:
    test = start(bench)
    assert (test.first, test.second, test.wanted) == ("runs/0001-sft", "runs/0002-dpo", 6)
    assert {str(asked.prompt[0]["content"]) for asked in bench.engine.prefetched} == set(HELD)
    assert all(len(asked.models) == 2 for asked in bench.engine.prefetched)
    assert not any(asked.options.get("urgent") for asked in bench.engine.prefetched)
    rows = bench.store.rows("SELECT purpose, shared, taste_test FROM item")
    assert {tuple(row) for row in rows} == {("compare", 1, test.id)}


@pytest.mark.parametrize(
    ("first", "second", "wanted", "message"),
    [
        ("0001-sft", "0001-sft", 3, "Choose two different models"),
        ("base", "base", 3, "Choose two different models"),
        ("0002-dpo", "newest", 3, "Choose two different models"),
        ("base", "0009-ppo", 3, "no policy 0009-ppo"),
        ("base", "0001-sft", 0, "choose 1 to 6"),
        ("base", "0001-sft", 7, "choose 1 to 6"),
    ],
)
def test_bad_comparisons_are_refused(
    bench: Bench, first: str, second: str, wanted: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        bench.comparisons.start(first, second, wanted)
    assert (
        bench.comparisons.newest() is None
        and "No blind comparison" in bench.comparisons.begin("ann")["empty"]
    )
    assert bench.comparisons.progress("ann") == {}


def test_without_a_model_no_comparison_starts_and_an_old_one_gives_the_reason(
    bench: Bench, open_bench: OpenBench
) -> None:
    bench.engine.write = None
    bench.comparisons.start("base", "0001-sft", 2)
    assert "being generated: 0 of 2" in bench.comparisons.begin("ann")["wait"]
    off = open_bench(FakeEngine("off"), prefetching=False)
    with pytest.raises(UserError, match="without a model"):
        off.comparisons.start("base", "0001-sft", 2)
    views = off.comparisons.begin("ann")
    assert "without a model" in views["empty"] and "wait" not in views


def test_a_prompt_that_stands_twice_is_asked_once(bench: Bench, project: Project) -> None:
    held_out(project, [HELD[0]] * 3 + HELD[1:3])
    with pytest.raises(UserError, match="choose 1 to 3"):
        bench.comparisons.start("base", "0001-sft", 4)
    start(bench, wanted=3)
    assert {str(asked.prompt[0]["content"]) for asked in bench.engine.prefetched} == set(HELD[:3])


def test_the_prompts_that_come_along_are_used_where_there_are_no_own(
    bench: Bench, project: Project
) -> None:
    (project.folder / HELD_OUT).unlink()
    assert len(bench.comparisons.prompts()) >= 30


# ---- blind


def test_no_name_reaches_a_page_before_the_end(bench: Bench) -> None:
    start(bench, wanted=3)
    view = bench.comparisons.begin("ann")
    views = [view, bench.comparisons.progress("ann")]
    for _ in range(2):
        view = bench.comparisons.vote("ann", view["token"], ranked(view, "Red."))
        views.append(view)
    views.append(bench.comparisons.undo("ann", view["voted"]))
    whole = json.dumps(views)
    for name in ("0001", "0002", "sft", "dpo", "runs/", "base", "first", "second"):
        assert name not in whole
    assert views[3]["progress"] == "2 of 3 votes" and "win" not in whole  # nor who is ahead
    end = vote_all(bench, ["Red.", "Red."])
    assert "runs/0002-dpo against runs/0001-sft" in end["empty"]


def test_sides_change_and_stay_for_a_rater(bench: Bench) -> None:
    start(bench)
    left = set()
    for _ in range(6):
        view = bench.comparisons.begin("ann")
        assert bench.comparisons.begin("ann")["answers"] == view["answers"]
        left.add(view["answers"][0]["text"])
        bench.comparisons.vote("ann", view["token"], {"verdict": "tie"})
    assert left == {"Red.", "Blue."}


# ---- results by hand


def test_results_by_hand(bench: Bench) -> None:
    test = start(bench)
    end = vote_all(bench, ["Blue.", "Blue.", "Red.", "tie", "both_bad", "skip"])
    assert sorted(bench.comparisons.outcomes(test)) == [0.0, 0.5, 0.5, 1.0, 1.0]
    low, high = (round(100 * end) for end in wilson_interval(0.6, 5))
    assert end["empty"] == (
        f"runs/0002-dpo against runs/0001-sft: wins 60% of 5 ({low} to {high}%). "
        "Wins of runs/0002-dpo: 2, of runs/0001-sft: 1, ties: 2."
    )
    assert end["progress"] == "5 of 6 votes"


def test_a_ranking_of_the_best_alone_is_a_win(bench: Bench) -> None:
    test = start(bench, wanted=1)
    view = bench.comparisons.begin("ann")
    ballot = ranked(view, "Blue.")
    bench.comparisons.vote("ann", view["token"], ballot | {"ranking": ballot["ranking"][:1]})
    assert bench.comparisons.outcomes(test) == [1.0]


def test_every_rater_is_asked_all_and_has_results_of_their_own(bench: Bench) -> None:
    test = start(bench, wanted=3)
    vote_all(bench, ["Red."] * 3, "ann")
    end = vote_all(bench, ["Blue.", "Blue.", "Red."], "bob")
    assert "wins 67% of 3" in end["empty"]
    assert bench.comparisons.outcomes(test, "ann") == [0.0] * 3
    assert sum(bench.comparisons.outcomes(test)) == 2 and len(bench.comparisons.outcomes(test)) == 6
    assert "no votes yet" in bench.comparisons.result(test, "cem")


def test_undo_and_corrections_count(bench: Bench) -> None:
    test = start(bench, wanted=2)
    view = vote_all(bench, ["Red.", "Red."])
    back = bench.comparisons.undo("ann", view["voted"])
    assert back["progress"] == "1 of 2 votes" and len(back["answers"]) == 2
    assert bench.comparisons.undo("ann", view["voted"])["token"] == back["token"]  # clicked twice
    bench.comparisons.vote("ann", back["token"], ranked(back, "Blue."))
    assert sorted(bench.comparisons.outcomes(test)) == [0.0, 1.0]
    last = bench.comparisons.begin("ann")["last"]
    for _ in range(2):
        bench.comparisons.undo("ann", last)
        assert bench.comparisons.outcomes(test) == [0.0]
    with pytest.raises(UserError, match="no vote to undo"):
        bench.comparisons.undo("bob", None)
    with pytest.raises(UserError, match="Reload"):
        bench.comparisons.undo("ann", "1")


def test_undo_leaves_earlier_comparisons_and_other_votes_alone(bench: Bench) -> None:
    old = start(bench, wanted=1)
    before = vote_all(bench, ["Red."])["voted"]
    bench.store.judge(bench.store.present(pair(bench.store), "ann").token, FIRST)
    start(bench, "base", "0001-sft", 1)
    for expected in (None, before):
        with pytest.raises(UserError, match="no vote to undo"):
            bench.comparisons.undo("ann", expected)
    assert bench.comparisons.outcomes(old) == [0.0] and bench.store.count("ann") == 2


def test_bad_votes_are_refused(bench: Bench) -> None:
    start(bench, wanted=1)
    token = bench.comparisons.begin("ann")["token"]
    bad: list[Any] = [None, [], {"verdict": "X"}, {"verdict": "ranked", "ranking": [[5]]}]
    for ballot in bad:
        with pytest.raises(UserError):
            bench.comparisons.vote("ann", token, ballot)
    with pytest.raises(UserError, match="Reload"):
        bench.comparisons.vote("bob", token, {"verdict": "tie"})
    assert bench.store.votes() == []


def test_a_vote_that_is_sent_twice_is_one(bench: Bench) -> None:
    test = start(bench, wanted=2)
    view = bench.comparisons.begin("ann")
    first = bench.comparisons.vote("ann", view["token"], ranked(view, "Red."), 800)
    again = bench.comparisons.vote("ann", view["token"], ranked(view, "Red."), 800)
    assert first["token"] == again["token"] and first["voted"] == again["voted"]
    assert bench.comparisons.outcomes(test) == [0.0]


# ---- the best of several answers


def test_the_best_of_several_is_a_candidate(bench: Bench, project: Project) -> None:
    assert bench.comparisons.candidates() == ["base", "0002-dpo", "0001-sft"]
    add_run(project, "0003-reward", role="reward")
    best, policy_best = "base, best of 4 by 0003-reward", "0002-dpo, best of 4 by 0003-reward"
    assert bench.comparisons.candidates()[3:] == [best, policy_best]
    comparison = start(bench, best, "base", wanted=2)
    assert (comparison.first, comparison.second) == (best, "base")
    for asked in bench.engine.prefetched:
        assert asked.models == ["base", "base"] and asked.options["counts"] == [4, 1]
        assert asked.options["reward"].parts[-3:] == ("0003-reward", "adapters", "reward")
    rows = bench.store.rows("SELECT DISTINCT source, sampling FROM completion ORDER BY source")
    assert [row["source"] for row in rows] == ["base", best]
    assert [json.loads(row["sampling"]).get("best_of") for row in rows] == [None, 4]
    view = bench.comparisons.begin("ann")
    assert "best of" not in json.dumps(view)  # as blind as every comparison
    named = start(bench, policy_best, "0001-sft", wanted=1)
    assert named.first == "runs/0002-dpo, best of 4 by 0003-reward"


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("base, best of 4 by 0009-reward", "base", "reward role is not there"),
        ("base, best of 4 by ../0003-reward", "base", "reward role is not there"),
        ("base, best of 99 by 0003-reward", "base", "reward role is not there"),
        ("0009-dpo, best of 4 by 0003-reward", "base", "no policy 0009-dpo"),
        ("base, best of 4 by 0003-reward", "base, best of 4 by 0003-reward", "two different"),
        ("base, best of 4 by 0003-reward", "base, best of 4 by 0004-reward", "same reward role"),
    ],
)
def test_bad_picks_are_refused(
    bench: Bench, project: Project, first: str, second: str, message: str
) -> None:
    add_run(project, "0003-reward", role="reward")
    add_run(project, "0004-reward", role="reward")
    with pytest.raises(UserError, match=message):
        bench.comparisons.start(first, second, 2)
    assert bench.comparisons.newest() is None


def test_at_temperature_0_there_is_nothing_to_pick(bench: Bench, project: Project) -> None:
    add_run(project, "0003-reward", role="reward")
    write_setting(bench.store, "collect", {"temperature": 0.0})
    with pytest.raises(UserError, match="At temperature 0"):
        bench.comparisons.start("base", "base, best of 4 by 0003-reward", 2)
    assert bench.comparisons.start("base", "0001-sft", 2).wanted == 2
