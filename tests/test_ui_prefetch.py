"""Prefetched answers: how many, to which prompts, by which models; problems and settings."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lorarlhf.data.readers import read_prompts
from lorarlhf.preferences import queue
from lorarlhf.preferences.queue import is_shared
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.engine_client import Engine
from lorarlhf_ui.information_order import MOST_COMPARED
from lorarlhf_ui.models import AnswerSettings
from lorarlhf_ui.prefetch import MAX_FAILED_IN_A_ROW, READY_ITEMS
from tests.pages import FIRST, PROMPTS, Bench, FakeEngine, Request, add_run, until, write_prompts

pytest_plugins = ("tests.pages",)

OpenBench = Callable[..., Bench]


def text_of(asked: Request) -> list[str]:
    return [f"{model} {n}" for n, model in enumerate(asked.models)]


def writing(write: Callable[[Request], list[str]] = text_of) -> FakeEngine:
    engine = FakeEngine()
    engine.write = write
    return engine


def vote(bench: Bench) -> None:
    shown = queue.next_shown(bench.store, "ann", repeat_share=0)
    assert shown is not None
    bench.store.judge(shown.presentation.token, FIRST)
    bench.prefetch.wake()


def questions(bench: Bench) -> list[str]:
    """What was asked, in order."""
    rows = bench.store.rows(
        "SELECT q.messages FROM item i JOIN prompt q ON q.id = i.prompt_id ORDER BY i.id"
    )
    return [row["messages"] for row in rows]


# ---- how many


def test_six_items_are_kept_ready(open_bench: OpenBench) -> None:
    bench = open_bench(writing())
    until(lambda: queue.waiting(bench.store) == READY_ITEMS)
    for _ in range(4):
        vote(bench)
        until(lambda: queue.waiting(bench.store) == READY_ITEMS)
    assert len(bench.engine.prefetched) == READY_ITEMS + 4
    assert all(asked.options["features"] for asked in bench.engine.prefetched)


def test_more_are_ready_where_the_best_is_chosen(open_bench: OpenBench) -> None:
    bench = open_bench(writing())
    bench.prefetch.change_settings(AnswerSettings(order="information"))
    until(lambda: queue.waiting(bench.store) == MOST_COMPARED)
    bench.prefetch.change_settings(AnswerSettings())
    vote(bench)
    assert queue.waiting(bench.store) == MOST_COMPARED - 1


def test_each_prompt_has_its_turn_before_one_comes_again(open_bench: OpenBench) -> None:
    bench = open_bench(writing())
    for _ in range(len(PROMPTS) * 2):
        until(lambda: queue.waiting(bench.store) == READY_ITEMS)
        vote(bench)
    asked = questions(bench)[: 2 * len(PROMPTS)]
    assert len(set(asked[: len(PROMPTS)])) == len(set(asked[len(PROMPTS) :])) == len(PROMPTS)


def test_what_the_store_knows_counts_after_a_restart(open_bench: OpenBench) -> None:
    first = open_bench(writing())
    until(lambda: queue.waiting(first.store) == READY_ITEMS)
    first.close()
    again = open_bench(FakeEngine(), prefetching=False)
    known = set(questions(first))
    assert len(known) == READY_ITEMS
    drawn = {str(again.prefetch.next_prompt()[0]["content"]) for _ in range(60)}  # type: ignore[index]
    assert len(drawn) == 2 and not any(prompt in row for prompt in drawn for row in known)


# ---- answers that can not be compared


def test_alike_and_empty_answers_are_dropped(open_bench: OpenBench) -> None:
    bad = [["same", " same "], ["", "x"], ["x", "  "]]
    engine = writing(lambda asked: bad.pop() if bad else text_of(asked))
    bench = open_bench(engine)
    until(lambda: queue.waiting(bench.store) == READY_ITEMS)
    assert len(engine.prefetched) == READY_ITEMS + 3 and bench.prefetch.problem == ""
    assert {row["text"] for row in bench.store.rows("SELECT text FROM completion")} == {
        "base 0",
        "base 1",
    }


def test_a_prompt_that_gives_nothing_does_not_stand_in_the_way(open_bench: OpenBench) -> None:
    def write(asked: Request) -> list[str]:
        return ["same", "same"] if PROMPTS[0] in str(asked.prompt) else text_of(asked)

    bench = open_bench(writing(write))
    for _ in range(2 * len(PROMPTS)):
        until(lambda: queue.waiting(bench.store) == READY_ITEMS)
        vote(bench)
    assert sum(PROMPTS[0] in str(asked.prompt) for asked in bench.engine.prefetched) <= 5


def test_a_prompt_that_fails_does_not_stand_in_the_way(
    open_bench: OpenBench, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_prompts(project, PROMPTS[:3])
    bench = open_bench(FakeEngine(), prefetching=False)
    for _ in range(6):  # each of the three twice
        prompt = bench.prefetch.next_prompt()
        failing = PROMPTS[0] in str(prompt)
        monkeypatch.setattr(bench.prefetch, "next_prompt", lambda prompt=prompt: prompt)
        bench.engine.prefetched.clear()
        one = threading.Thread(target=run_one, args=(bench, failing))
        one.start()
        asked = until(lambda: bench.engine.prefetched)[0]
        asked.fail("it is too long") if failing else asked.end("a", "b")
        one.join()
        monkeypatch.undo()
    assert len(set(questions(bench))) == 2 and len(questions(bench)) == 4


def run_one(bench: Bench, failing: bool) -> None:
    if failing:
        with pytest.raises(UserError, match="too long"):
            bench.prefetch._make_item()
    else:
        bench.prefetch._make_item()


def test_answers_that_never_differ_are_a_problem(open_bench: OpenBench) -> None:
    bench = open_bench(writing(lambda asked: ["same", "same"]))
    until(lambda: "identical or empty" in bench.prefetch.problem)
    assert len(bench.engine.prefetched) == MAX_FAILED_IN_A_ROW  # and not again at once
    bench.engine.write = text_of
    bench.prefetch.wake()
    until(lambda: queue.waiting(bench.store) == READY_ITEMS)
    until(lambda: bench.prefetch.problem == "")


# ---- problems


def test_a_problem_is_shown_until_it_is_over(open_bench: OpenBench, project: Project) -> None:
    add_run(project, "0001-dpo")
    bench = open_bench(FakeEngine(), prefetching=False)
    bench.prefetch.change_settings(AnswerSettings("0001-dpo"))
    (project.folder / "runs" / "0001-dpo").rename(project.folder / "gone")
    second = open_bench(writing())
    until(lambda: "model that should answer no longer exists" in second.prefetch.problem)
    assert "dpo" not in second.prefetch.problem  # the page that shows it is blind
    (project.folder / "gone").rename(project.folder / "runs" / "0001-dpo")
    second.prefetch.wake()
    until(lambda: queue.waiting(second.store) == READY_ITEMS)


def test_without_a_model_nothing_is_asked(open_bench: OpenBench) -> None:
    bench = open_bench(FakeEngine("off"))
    bench.prefetch.wake()
    job, _, _ = open_bench(Engine(None), prefetching=False).prefetch.start("Why?", urgent=True)
    assert job.done and "without a model" in str(job.error)
    assert bench.engine.prefetched == [] and bench.prefetch.problem == ""


def test_a_damaged_file_of_prompts_is_a_problem(open_bench: OpenBench, project: Project) -> None:
    project.prompts.write_text('{"prompt": \n', "utf-8")
    bench = open_bench(writing())
    until(lambda: "prompts.jsonl" in bench.prefetch.problem)
    write_prompts(project, PROMPTS)
    bench.prefetch.wake()
    until(lambda: queue.waiting(bench.store) == READY_ITEMS)


# ---- settings


def test_settings_are_kept_over_a_restart(open_bench: OpenBench, project: Project) -> None:
    add_run(project, "0001-dpo")
    bench = open_bench(FakeEngine(), prefetching=False)
    assert bench.prefetch.settings() == AnswerSettings()
    wanted = AnswerSettings("base", "0001-dpo", 3, 0.5, 64, 0.25, "information", 0.1)
    bench.prefetch.change_settings(wanted)
    assert open_bench(FakeEngine(), prefetching=False).prefetch.settings() == wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (AnswerSettings("0009-dpo"), "no policy 0009-dpo"),
        (AnswerSettings("base", "nothing"), "no policy nothing"),
        (AnswerSettings(answers=1), "2 to 6"),
        (AnswerSettings(answers=7), "2 to 6"),
        (AnswerSettings(temperature=-0.1), "0 to 5"),
        (AnswerSettings(temperature=float("nan")), "0 to 5"),
        (AnswerSettings(max_new_tokens=0), "1 to 4096"),
        (AnswerSettings(overlap=1.1), "overlap"),
        (AnswerSettings(repeats=0.6), "repeats 0 to 0.5"),
        (AnswerSettings(repeats=-0.1), "repeats"),
        (AnswerSettings(order="best"), "no order 'best'. Choose random or information"),
        (AnswerSettings(temperature=0.0), "At temperature 0"),
        (AnswerSettings("base", "0001-dpo", answers=3, temperature=0.0), "At temperature 0"),
    ],
)
def test_bad_settings_are_refused(
    open_bench: OpenBench, project: Project, settings: AnswerSettings, message: str
) -> None:
    add_run(project, "0001-dpo")
    bench = open_bench(FakeEngine(), prefetching=False)
    with pytest.raises(UserError, match=message):
        bench.prefetch.change_settings(settings)
    assert bench.prefetch.settings() == AnswerSettings()
    bench.prefetch.change_settings(
        AnswerSettings("base", "0001-dpo", temperature=0.0)
    )  # two models differ at 0, too


def test_a_change_takes_hold_at_once(open_bench: OpenBench, project: Project) -> None:
    add_run(project, "0001-dpo")
    bench = open_bench()
    first = until(lambda: bench.engine.prefetched)[0]
    bench.prefetch.change_settings(AnswerSettings("base", "0001-dpo", 4, 0.5, 32, 1.0))
    first.end("a", "b")  # nobody wants these any more
    second = until(lambda: bench.engine.prefetched[1:])[0]
    policy = str(project.folder / "runs" / "0001-dpo" / "adapters" / "policy")
    assert second.models == ["base", policy, "base", "base"]
    assert second.options["temperature"] == 0.5 and second.options["max_new_tokens"] == 32
    second.end("a", "b", "c", "d")
    until(lambda: queue.waiting(bench.store))
    rows = bench.store.rows("SELECT source, sampling FROM completion ORDER BY id")
    assert [row["source"] for row in rows] == ["base", "runs/0001-dpo", "base", "base"]
    assert '"temperature": 0.5' in rows[0]["sampling"] and '"ended": true' in rows[0]["sampling"]
    assert bench.store.rows("SELECT shared FROM item")[0][0] == 1


def test_the_newest_policy_answers_unless_another_is_named(
    open_bench: OpenBench, project: Project
) -> None:
    models = open_bench(FakeEngine(), prefetching=False).prefetch.models
    assert models.place("newest") == "base" and models.names() == ["base"]
    for name in ("0001-sft", "0002-dpo", "0003-reward"):
        add_run(project, name, role="reward" if "reward" in name else "policy")
    (project.folder / "runs" / "0004-ppo" / "adapters" / "policy").mkdir(parents=True)
    assert models.names() == ["base", "0004-ppo", "0002-dpo", "0001-sft"]
    assert "0002-dpo" in models.place("newest")  # the one after it has not ended
    assert models.label(models.place("0001-sft")) == "runs/0001-sft"
    for name in ("0003-reward", "../0001-sft", "0001-sft/adapters", ""):
        with pytest.raises(UserError, match="has no policy"):
            models.place(name)


def test_the_overlap_is_by_prompt(open_bench: OpenBench, project: Project) -> None:
    write_prompts(project, [f"Prompt {n}?" for n in range(120)])
    bench = open_bench(FakeEngine(), prefetching=False)
    bench.prefetch.change_settings(AnswerSettings(overlap=0.3))
    bench.engine.write = text_of
    for _ in range(120):
        bench.prefetch._make_item()
    shared = bench.store.rows("SELECT sum(shared) FROM item")[0][0]
    assert 18 <= shared <= 54 and len(set(questions(bench))) == 120
    assert sum(is_shared(f"{n}", 0.3) for n in range(1000)) == pytest.approx(300, abs=50)


# ---- typed prompts


def test_prompts_that_two_people_type_at_once_are_kept_once(
    open_bench: OpenBench, project: Project
) -> None:
    bench = open_bench(FakeEngine(), prefetching=False)
    start = threading.Barrier(6)

    def add() -> None:
        start.wait()
        bench.prefetch.add_prompt("Ünusual?", "ann")

    threads = [threading.Thread(target=add) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [row["prompt"] for row in read_prompts(project.prompts)]
    assert kept == [*PROMPTS, "Ünusual?"]
    bench.prefetch.add_prompt(PROMPTS[0], "bob")
    assert len(read_prompts(project.prompts)) == len(PROMPTS) + 1


# ---- with the real engine


def test_the_engine_writes_answers_with_hidden_states(
    open_bench: OpenBench, engine: Engine, project: Project, policies: list[Path]
) -> None:
    add_run(project, "0001-dpo", policies[0])
    quiet = open_bench(engine, prefetching=False)
    quiet.prefetch.change_settings(AnswerSettings("base", "0001-dpo", 2, 1.0, 8, 0.0))
    bench = open_bench(engine)
    until(lambda: queue.waiting(bench.store) == READY_ITEMS)
    for _ in range(READY_ITEMS):
        vote(quiet)
    votes = bench.store.votes()
    assert {source for vote in votes for source in vote.sources} == {"base", "runs/0001-dpo"}
    for vote_ in votes:
        rows = bench.states.get(vote_.prompt, vote_.completions)
        assert rows is not None and len(rows) == 2 and (rows[0] != rows[1]).any()
