"""Blind comparisons: apart from training votes, over restarts, and with the real engine."""

from pathlib import Path

import numpy as np
import pytest

from lorarlhf.preferences.records import Vote
from lorarlhf.project.project import Project
from lorarlhf_ui.downloads import exported
from lorarlhf_ui.engine_client import Engine
from lorarlhf_ui.engine_worker import packed
from tests.compare_steps import HELD, OpenBench, answers, held_out, ranked, start, vote_all
from tests.pages import Bench, FakeEngine, add_run, until

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


def test_the_rate_page_does_not_show_them(bench: Bench) -> None:
    start(bench, wanted=2)
    assert bench.ratings.begin("ann")["token"].startswith("live-")


# ---- restarts and problems


def test_after_a_restart_a_comparison_continues(bench: Bench, open_bench: OpenBench) -> None:
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


def test_a_problem_is_shown_until_it_is_over(bench: Bench) -> None:
    bench.engine.write = None
    test = bench.comparisons.start("0001-sft", "0002-dpo", 1)
    until(lambda: bench.engine.prefetched)[0].fail("There is not enough memory for this.")
    until(lambda: bench.comparisons.problem)
    assert bench.comparisons.begin("ann")["empty"] == "There is not enough memory for this."
    bench.engine.write = answers
    bench.comparisons._wake.set()
    until(lambda: bench.comparisons.made(test) == 1)
    assert len(bench.comparisons.begin("ann")["answers"]) == 2


def test_no_model_is_named_if_one_is_gone(bench: Bench, project: Project) -> None:
    bench.engine.write = None
    add_run(project, "0003-reward", role="reward")
    picked = "0002-dpo, best of 4 by 0003-reward"
    test = bench.comparisons.start("0001-sft", picked, 2)
    until(lambda: bench.engine.prefetched)[0].end("Red.", "Blue.")
    until(lambda: bench.comparisons.made(test) == 1)
    until(lambda: bench.engine.prefetched[1:])
    for folder in (project.folder / "runs" / "0003-reward" / "adapters" / "reward").iterdir():
        folder.unlink()
    (project.folder / "runs" / "0003-reward" / "adapters" / "reward").rmdir()
    bench.engine.prefetched[1].fail("There is not enough memory for this.")
    bench.comparisons._wake.set()
    until(lambda: "no longer there" in bench.comparisons.problem)
    vote_all(bench, ["Red."])
    shown = str(bench.comparisons.begin("ann"))
    assert "no longer there" in shown
    assert not any(name in shown for name in ("0001", "0002", "0003", "best of"))


def test_answers_without_hidden_states_are_kept(bench: Bench) -> None:
    start(bench, wanted=1)
    assert len(bench.comparisons.begin("ann")["answers"]) == 2


def test_a_new_comparison_replaces_the_last(bench: Bench) -> None:
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
