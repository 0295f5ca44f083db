"""Taste tests: two models, blind, counted by hand; kept apart from training and the meter."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorarlhf.evaluation.win_rate import wilson_interval
from lorarlhf.preferences.records import Vote
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_jsonl
from lorarlhf_ui.compare import HELD_OUT, BlindComparison
from lorarlhf_ui.downloads import exported
from lorarlhf_ui.engine_client import Engine
from lorarlhf_ui.engine_worker import packed
from tests.pages import FIRST, Bench, FakeEngine, Request, add_run, pair, until

pytest_plugins = ("tests.pages",)

OpenBench = Callable[..., Bench]
HELD = [f"Held out {number}?" for number in range(6)]


def held_out(project: Project, prompts: list[str]) -> None:
    write_jsonl(project.folder / HELD_OUT, [{"prompt": prompt} for prompt in prompts])


@pytest.fixture
def bench(open_bench: OpenBench, project: Project) -> Bench:
    """With two runs, six held-out prompts, and a fake engine that says which model it is."""
    for name in ("0001-sft", "0002-dpo"):
        add_run(project, name)
    held_out(project, HELD)
    engine = FakeEngine()
    engine.write = answers
    return open_bench(engine, prefetching=False)


def answers(asked: Request) -> list[str]:
    names = {"0001-sft": "Red.", "0002-dpo": "Blue.", "base": "Green."}
    return [text for model in asked.models for name, text in names.items() if name in model]


def start(bench: Bench, first: str = "0001-sft", second: str = "0002-dpo", wanted: int = 6) -> Any:
    """A test whose answers are all written."""
    test = bench.comparisons.start(first, second, wanted)
    until(lambda: bench.comparisons.made(test) == wanted)
    return test


def ranked(view: dict[str, Any], best: str) -> dict[str, Any]:
    """The verdict that an answer is the better one, by its place on the screen."""
    place = [answer["text"] for answer in view["answers"]].index(best)
    return {"verdict": "ranked", "ranking": [[place], [1 - place]]}


def vote_all(bench: Bench, says: list[str], rater: str = "ann") -> dict[str, Any]:
    """Votes on the next items: a text that is better, or a verdict."""
    view = bench.comparisons.begin(rater)
    for said in says:
        whole = ranked(view, said) if said.endswith(".") else {"verdict": said}
        view = bench.comparisons.vote(rater, view["token"], whole, 800)
    return view


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
    ("first", "second", "wanted", "said"),
    [
        ("0001-sft", "0001-sft", 3, "Choose two different models"),
        ("base", "base", 3, "Choose two different models"),
        ("0002-dpo", "newest", 3, "Choose two different models"),
        ("base", "0009-ppo", 3, "no policy 0009-ppo"),
        ("base", "0001-sft", 0, "choose 1 to 6"),
        ("base", "0001-sft", 7, "choose 1 to 6"),
    ],
)
def test_tests_that_can_not_be_are_refused(
    bench: Bench, first: str, second: str, wanted: int, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        bench.comparisons.start(first, second, wanted)
    assert (
        bench.comparisons.newest() is None
        and "No blind comparison" in bench.comparisons.begin("ann")["empty"]
    )
    assert bench.comparisons.progress("ann") == {}


def test_without_a_model_no_test_begins_and_an_old_one_says_why(
    bench: Bench, open_bench: OpenBench
) -> None:
    bench.engine.write = None
    bench.comparisons.start("base", "0001-sft", 2)
    assert "being generated: 0 of 2" in bench.comparisons.begin("ann")["wait"]
    off = open_bench(FakeEngine("off"), prefetching=False)
    with pytest.raises(UserError, match="without a model"):
        off.comparisons.start("base", "0001-sft", 2)
    told = off.comparisons.begin("ann")
    assert "without a model" in told["empty"] and "wait" not in told


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


def test_a_page_is_told_no_name_before_the_end(bench: Bench) -> None:
    start(bench, wanted=3)
    view = bench.comparisons.begin("ann")
    told = [view, bench.comparisons.progress("ann")]
    for _ in range(2):
        view = bench.comparisons.vote("ann", view["token"], ranked(view, "Red."))
        told.append(view)
    told.append(bench.comparisons.undo("ann", view["voted"]))
    whole = json.dumps(told)
    for name in ("0001", "0002", "sft", "dpo", "runs/", "base", "first", "second"):
        assert name not in whole
    assert re.search(r"[XY] against [XY]: wins (100|0)% of 2", json.dumps(told[3]))
    end = vote_all(bench, ["Red.", "Red."])
    assert "runs/0002-dpo against runs/0001-sft" in end["empty"]


def test_blind_names_are_stable_and_not_always_in_one_order(bench: Bench) -> None:
    tests = [BlindComparison(number, "base", "runs/1", 3) for number in range(1, 60)]
    names = [test.blind_names for test in tests]
    assert names == [BlindComparison(t.id, "other", "models", 9).blind_names for t in tests]
    assert 15 < names.count(("X", "Y")) < 45 and set(names) == {("X", "Y"), ("Y", "X")}


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
    said = ranked(view, "Blue.")
    bench.comparisons.vote("ann", view["token"], said | {"ranking": said["ranking"][:1]})
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


def test_undo_leaves_earlier_tests_and_other_votes_alone(bench: Bench) -> None:
    old = start(bench, wanted=1)
    before = vote_all(bench, ["Red."])["voted"]
    bench.store.judge(bench.store.present(pair(bench.store), "ann").token, FIRST)
    start(bench, "base", "0001-sft", 1)
    for expected in (None, before):
        with pytest.raises(UserError, match="no vote to undo"):
            bench.comparisons.undo("ann", expected)
    assert bench.comparisons.outcomes(old) == [0.0] and bench.store.count("ann") == 2


def test_votes_that_mean_nothing_are_refused_in_words(bench: Bench) -> None:
    start(bench, wanted=1)
    token = bench.comparisons.begin("ann")["token"]
    bad: list[Any] = [None, [], {"verdict": "X"}, {"verdict": "ranked", "ranking": [[5]]}]
    for said in bad:
        with pytest.raises(UserError):
            bench.comparisons.vote("ann", token, said)
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


# ---- apart from everything else


def test_votes_are_not_trained_on_and_not_learned(bench: Bench) -> None:
    bench.engine.write = None
    test = bench.comparisons.start("0001-sft", "0002-dpo", 6)
    for number in range(6):
        asked = until(lambda n=number: bench.engine.prefetched[n:])[0]
        rows = [packed(np.full(4, 1.0)), packed(np.full(4, -1.0))]
        asked.end(*answers(asked), features=rows)
    until(lambda: bench.comparisons.made(test) == 6)
    view = bench.comparisons.begin("ann")
    for number in range(6):  # half of them by way of the other page
        page = bench.ratings if number % 2 else bench.comparisons
        page.vote("ann", view["token"], ranked(view, "Red."), 700)
        view = bench.comparisons.begin("ann")
    assert bench.meter.wait() and bench.meter._heads == {}
    assert bench.meter.report("ann") == {"guesses": 0}
    votes = bench.store.votes()
    assert len(votes) == 6 and {vote.purpose for vote in votes} == {"compare"}
    assert bench.store.votes(purpose="train") == []
    kept, export = exported(bench.store, "ann", "trl", "train")
    assert kept == 0 and export.rows == []
    assert known_states(bench, votes[0])


def known_states(bench: Bench, vote: Vote) -> bool:
    return bench.states.get(vote.prompt, vote.completions) is not None


def test_the_collect_page_does_not_show_them(bench: Bench) -> None:
    start(bench, wanted=2)
    assert bench.ratings.begin("ann")["token"].startswith("live-")


# ---- restarts and trouble


def test_after_a_restart_a_test_goes_on(bench: Bench, open_bench: OpenBench) -> None:
    bench.engine.write = None
    test = bench.comparisons.start("0001-sft", "0002-dpo", 6)
    until(lambda: bench.engine.prefetched)[0].end("Red.", "Blue.")
    until(lambda: bench.comparisons.made(test) == 1)
    vote_all(bench, ["Blue."])
    bench.comparisons.close()
    engine = FakeEngine()
    engine.write = answers
    again = open_bench(engine, prefetching=False)
    assert again.comparisons.newest() == test
    until(lambda: again.comparisons.made(test) == 6)
    asked = {str(one.prompt[0]["content"]) for one in engine.prefetched}
    assert len(asked) == len(engine.prefetched) == 5
    assert "of 6 votes" in vote_all(again, ["Red."] * 5)["progress"]
    assert sorted(again.comparisons.outcomes(test)) == [0.0] * 5 + [1.0]


def test_prompts_that_change_on_the_way_are_asked_once_each(bench: Bench, project: Project) -> None:
    bench.engine.write = None
    test = bench.comparisons.start("0001-sft", "0002-dpo", 4)
    until(lambda: bench.engine.prefetched)[0].end("Red.", "Blue.")
    until(lambda: bench.engine.prefetched[1:])
    asked = [str(one.prompt[0]["content"]) for one in bench.engine.prefetched]
    held_out(project, [*asked, "New?"])
    bench.engine.write = answers
    bench.engine.prefetched[1].end("Red.", "Blue.")
    until(lambda: "this comparison needs 4" in bench.comparisons.problem)
    assert bench.comparisons.made(test) == 3
    view = vote_all(bench, ["Red."] * 3)
    assert "this comparison needs 4" in view["empty"] and "this comparison needs 4" in view["wait"]
    held_out(project, [*asked, "New?", "Newer?"])
    bench.comparisons._wake.set()
    until(lambda: bench.comparisons.made(test) == 4)
    assert len({str(one.prompt) for one in bench.engine.prefetched}) == 4


def test_trouble_is_told_and_passes(bench: Bench) -> None:
    bench.engine.write = None
    test = bench.comparisons.start("0001-sft", "0002-dpo", 1)
    until(lambda: bench.engine.prefetched)[0].fail("There is not enough memory for this.")
    until(lambda: bench.comparisons.problem)
    assert bench.comparisons.begin("ann")["empty"] == "There is not enough memory for this."
    bench.engine.write = answers
    bench.comparisons._wake.set()
    until(lambda: bench.comparisons.made(test) == 1)
    assert len(bench.comparisons.begin("ann")["answers"]) == 2


def test_answers_without_hidden_states_are_kept(bench: Bench) -> None:
    start(bench, wanted=1)
    assert len(bench.comparisons.begin("ann")["answers"]) == 2


def test_a_new_test_takes_the_place_of_the_last(bench: Bench) -> None:
    old = start(bench, wanted=2)
    vote_all(bench, ["Red."])
    new = start(bench, "base", "0002-dpo", 2)
    end = vote_all(bench, ["Green.", "Blue."])
    assert "runs/0002-dpo against base: wins 50% of 2" in end["empty"]
    assert bench.comparisons.all() == [new, old] and bench.comparisons.newest() == new
    assert "wins 0% of 1" in bench.comparisons.result(old, "ann")


# ---- with the real engine


def test_with_the_real_engine(
    open_bench: OpenBench, engine: Engine, project: Project, policies: list[Path]
) -> None:
    add_run(project, "0001-dpo", policies[0])
    add_run(project, "0002-dpo", policies[1])
    held_out(project, HELD)
    bench = open_bench(engine, prefetching=False)
    from lorarlhf_ui.models import AnswerSettings

    bench.prefetch.change_settings(AnswerSettings(temperature=1.0, max_new_tokens=8))
    test = start(bench, "0001-dpo", "0002-dpo", 3)
    for _ in range(3):
        token = bench.comparisons.begin("ann")["token"]
        bench.comparisons.vote("ann", token, {"verdict": "ranked", "ranking": [[0], [1]]})
    votes = bench.store.votes(purpose="compare")
    by_hand = [float(vote.verdict.ranking[0][0]) for vote in votes]
    assert bench.comparisons.outcomes(test) == by_hand and len(by_hand) == 3
    assert all(vote.sources == ["runs/0001-dpo", "runs/0002-dpo"] for vote in votes)
    assert engine.inspect().wait(60)["copies"] == 1
