"""Answers that are generated while a rater watches, and prompts that raters type."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorarlhf.data.readers import read_prompts
from lorarlhf.preferences import queue
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui import rate as pages
from lorarlhf_ui.engine_client import Engine
from lorarlhf_ui.engine_worker import packed
from lorarlhf_ui.models import AnswerSettings
from lorarlhf_ui.rate import TOO_EARLY
from lorarlhf_ui.votes import LONGEST_TEXT
from tests.pages import PROMPTS, Bench, FakeEngine, add_run, pair, until
from tests.rate_steps import LEFT, RIGHT, View, begin, live, on_screen, only, vote

pytest_plugins = ("tests.pages",)


@pytest.fixture
def bench(open_bench: Callable[..., Bench]) -> Bench:
    """With a fake engine, and nothing prefetched."""
    return open_bench(FakeEngine(), prefetching=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing comes the test need not wait."""
    monkeypatch.setattr(pages, "STREAM_SECONDS", 0.05)


# ---- live answers


def test_live_answers_grow_and_become_an_item(bench: Bench) -> None:
    begin(bench)
    asked = bench.engine.live[0]
    assert asked.options["features"] and asked.models == ["base", "base"]
    view = bench.ratings.watch("ann", ["", ""])
    assert view["streaming"] and on_screen(view) == ["", ""]
    asked.write("Yes", "No")
    view = bench.ratings.watch("ann", view["seen"])
    assert sorted(on_screen(view)) == ["No", "Yes"] and view["seen"] == on_screen(view)
    assert bench.ratings.begin("ann")["seen"] == view["seen"]  # a reload
    rows = [packed(np.ones(4)), packed(np.zeros(4))]
    asked.end("Yes!", "No!", features=rows)
    done = bench.ratings.watch("ann", view["seen"])
    assert on_screen(done) == [text + "!" for text in on_screen(view)]
    assert done["token"][:5] != "live-" and "streaming" not in done
    assert begin(bench)["token"] == done["token"]
    vote(bench, done["token"], RIGHT)
    kept = only(bench)
    assert kept.completions == ["Yes!", "No!"]
    assert kept.completions[kept.verdict.ranking[0][0]] == on_screen(done)[1]
    states = bench.states.get(kept.prompt, kept.completions)
    assert states is not None and states[0].sum() == 4 and states[1].sum() == 0


def test_a_vote_before_the_end_keeps_what_was_shown(bench: Bench) -> None:
    asked, view = live(bench, "A first answer", "A second")
    asked.write("A first answer that goes on", "A second that goes on")  # nobody has seen this
    vote(bench, view["token"], RIGHT)
    kept = only(bench)
    assert kept.completions == ["A first answer", "A second"]
    assert kept.completions[kept.verdict.ranking[0][0]] == on_screen(view)[1]
    assert [how["ended"] for how in kept.sampling] == [False, False]
    assert bench.engine.stopped == [asked.job]
    assert queue.waiting(bench.store) == 0


def test_a_vote_just_before_the_end_keeps_what_was_shown(bench: Bench) -> None:
    asked, view = live(bench, "One", "Two")
    asked.end("One is more", "Two is more", features=[packed(np.ones(4))] * 2)
    vote(bench, view["token"])
    kept = only(bench)
    assert sorted(kept.completions) == sorted(on_screen(view)) == ["One", "Two"]
    # The hidden states are those of longer texts.
    assert bench.states.get(kept.prompt, kept.completions) is None


def test_a_vote_that_meets_the_end_on_its_way_is_kept(bench: Bench) -> None:
    asked, view = live(bench, "One", "Two")
    asked.end("One", "Two")
    bench.ratings.watch("ann", view["seen"])  # its answer reaches the page too late
    vote(bench, view["token"], RIGHT)
    kept = only(bench)
    assert kept.completions[kept.verdict.ranking[0][0]] == on_screen(view)[1]


def test_a_live_vote_that_is_sent_twice_is_one(bench: Bench) -> None:
    _, view = live(bench, "One", "Two")
    first = vote(bench, view["token"], RIGHT, ms=1234)
    assert first["token"].startswith("live-") and first["token"] != view["token"]
    bench.engine.live[1].write("Three", "Four")
    bench.ratings.watch("ann", ["", ""])
    again = vote(bench, view["token"], dict(RIGHT), ms=1234)  # the answer to the first was lost
    assert again["voted"] == first["voted"] and len(bench.store.votes()) == 1
    assert vote(bench, again["token"], RIGHT)["voted"] != first["voted"]
    assert sorted(bench.store.votes()[1].completions) == ["Four", "Three"]


@pytest.mark.parametrize("texts", [("", ""), ("Yes", ""), ("Yes", "Yes"), (" ", "Yes")])
def test_answers_that_say_too_little_yet_go_on(bench: Bench, texts: tuple[str, str]) -> None:
    asked, view = live(bench, *texts)
    reply = vote(bench, view["token"])
    assert reply["error"] == TOO_EARLY and reply["reload"]["streaming"]
    assert bench.engine.stopped == [] and bench.store.votes() == []
    asked.write("Yes", "No")
    view = bench.ratings.watch("ann", reply["reload"]["seen"])
    assert sorted(on_screen(view)) == ["No", "Yes"]
    vote(bench, view["token"])
    assert len(bench.store.votes()) == 1


def test_answers_that_say_too_little_can_be_skipped(bench: Bench) -> None:
    asked, view = live(bench, "", "")
    reply = vote(bench, view["token"], {"verdict": "skip"})
    assert reply["token"].startswith("live-") and "voted" not in reply
    assert bench.engine.stopped == [asked.job] and len(bench.engine.live) == 2


def test_a_vote_with_too_long_a_note_may_be_sent_again(bench: Bench) -> None:
    _, view = live(bench, "One", "Two")
    with pytest.raises(UserError, match="up to 20000"):
        vote(bench, view["token"], LEFT | {"note": "x" * 20_001})
    vote(bench, view["token"], LEFT | {"note": "short"})
    assert only(bench).verdict.note == "short"


def test_live_answers_that_fail_are_an_error_and_the_page_continues(bench: Bench) -> None:
    asked, view = live(bench, "One", "Two")
    asked.fail("There is not enough memory for this.")
    reply = bench.ratings.watch("ann", view["seen"])
    assert reply["empty"] == "There is not enough memory for this." and "progress" in reply
    with pytest.raises(UserError, match="Reload"):
        vote(bench, view["token"])
    assert begin(bench)["token"].startswith("live-") and len(bench.engine.live) == 2
    assert bench.engine.live[1].prompt != asked.prompt


def test_a_vote_while_they_fail_keeps_what_was_shown(bench: Bench) -> None:
    asked, view = live(bench, "One", "Two")
    asked.fail("The model's process has ended.")
    vote(bench, view["token"])
    assert only(bench).completions == ["One", "Two"]


def test_alike_answers_are_passed_over(bench: Bench) -> None:
    asked, view = live(bench, "One", "Two")
    asked.end("Same", "Same")
    reply = bench.ratings.watch("ann", view["seen"])
    assert reply["token"].startswith("live-") and bench.engine.live[1].prompt != asked.prompt
    bench.ratings.ask("ann", "My own?")
    bench.engine.live[-1].end("", "x")
    assert "identical or empty" in bench.ratings.watch("ann", reply["seen"])["empty"]
    assert begin(bench)["token"].startswith("live-")


def test_undo_while_answers_are_written(bench: Bench) -> None:
    pair(bench.store, "1?")
    number = vote(bench, begin(bench)["token"])["voted"]
    asked = bench.engine.live[0]
    asked.write("One", "Two")
    back = bench.ratings.undo("ann", number)
    asked.end("One.", "Two.")  # while the rater looks at the other item
    assert "1?" in back["prompt"]
    assert sorted(on_screen(vote(bench, back["token"], RIGHT))) == ["One.", "Two."]
    assert len(bench.store.votes()) == 1


def test_two_tabs_watch_the_same_answers(bench: Bench) -> None:
    views: list[View] = []

    def both(work: Callable[[], View]) -> None:
        threads = [threading.Thread(target=lambda: views.append(work())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    both(lambda: begin(bench))
    assert len(bench.engine.live) == 1
    bench.engine.live[0].end("One", "Two")
    views.clear()
    both(lambda: bench.ratings.watch("ann", ["", ""]))
    assert len({view["token"] for view in views}) == 1 and len(views) == 4
    assert bench.store.rows("SELECT count(*) FROM item")[0][0] == 1


def test_live_answers_are_of_one_rater(bench: Bench) -> None:
    _, view = live(bench, "One", "Two")
    other, _ = live(bench, "Three", "Four", rater="bob")
    with pytest.raises(UserError, match="Reload"):
        vote(bench, view["token"], rater="bob")
    vote(bench, view["token"])
    assert only(bench).rater == "ann" and only(bench).completions == ["One", "Two"]
    other.end("Three", "Four")
    bench.ratings.watch("bob", ["", ""])
    bench.engine.live[-1].fail("x")
    assert begin(bench, "cem")["token"].startswith("live-")  # bob's item is bob's


def test_sides_of_live_answers_are_drawn(bench: Bench) -> None:
    bench.prefetch.change_settings(AnswerSettings(answers=3))
    orders = set()
    for number in range(60):
        begin(bench, f"rater {number}")
        orders.add(tuple(bench.ratings._live[f"rater {number}"].order))
    assert len(orders) == 6


# ---- own prompts


def test_a_typed_prompt_is_kept_once_and_answered(bench: Bench, project: Project) -> None:
    for _ in range(2):
        view = bench.ratings.ask("ann", "  Why is the sea salty? \ud800 ")
        assert (
            view["token"].startswith("live-") and "salty" in view["prompt"] and "progress" in view
        )
    kept = [row["prompt"] for row in read_prompts(project.prompts)]
    assert kept == [*PROMPTS, "Why is the sea salty?"]
    assert bench.engine.stopped == [bench.engine.live[0].job]
    source = bench.store.rows("SELECT source FROM prompt")
    assert [row["source"] for row in source] == ["typed by ann"]


@pytest.mark.parametrize("text", [None, "", "  \n ", 7, ["a"], "x" * (LONGEST_TEXT + 1), "\ud800"])
def test_bad_prompts_are_refused(bench: Bench, project: Project, text: Any) -> None:
    with pytest.raises(UserError, match="Type a prompt|up to 20000"):
        bench.ratings.ask("ann", text)
    assert len(read_prompts(project.prompts)) == len(PROMPTS)


def test_what_was_open_comes_again_after_an_own_prompt(bench: Bench) -> None:
    pair(bench.store, "1?")
    before = begin(bench)
    view = bench.ratings.ask("ann", "My own?")
    bench.engine.live[0].write("One", "Two")
    bench.ratings.watch("ann", ["", ""])
    assert vote(bench, view["token"])["token"] == before["token"]


# ---- with the real engine


def test_people_vote_at_once_with_the_real_engine(
    open_bench: Callable[..., Bench], engine: Engine, project: Project, policies: list[Path]
) -> None:
    add_run(project, "0001-dpo", policies[0])
    open_bench(engine, prefetching=False).prefetch.change_settings(
        AnswerSettings("base", "0001-dpo", 2, 1.0, 10, 0.0)
    )
    bench = open_bench(engine)
    errors: list[BaseException] = []

    def work(rater: str, early: bool) -> None:
        try:
            view = begin(bench, rater)
            for number in range(8):
                if number == 3:
                    view = bench.ratings.ask(rater, f"Who is {rater}?")
                while view.get("streaming") and not (early and all(view["seen"])):
                    view = bench.ratings.watch(rater, view["seen"])
                before = set(on_screen(view))
                view = vote(bench, view["token"], RIGHT, rater, 1000 + number)
                if "error" in view:
                    view = view["reload"]
                    continue
                kept = bench.store.vote(view["voted"])
                assert kept is not None
                assert {text.strip() for text in before} == set(kept.completions)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"r{n}", n % 2 == 0)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []
    assert bench.meter.wait()
    votes = bench.store.votes()
    assert len(votes) >= 18 and all(len(vote.completions) == 2 for vote in votes)
    unshared = bench.store.rows(
        "SELECT item_id FROM presentation GROUP BY item_id HAVING count(DISTINCT rater_id) > 1"
    )
    assert unshared == []
    # Of who waits for whole answers the hidden states are known.
    assert len(bench.meter._heads["r1"].votes) == bench.store.count("r1") == 8


def test_an_engine_that_dies_is_an_error(
    open_bench: Callable[..., Bench], tiny_base: Path, project: Project
) -> None:
    from functools import partial

    from lorarlhf.project.settings import resolve
    from tests.pages import FAST

    engine = Engine(partial(resolve, "chat", sets=FAST, flags={"base": str(tiny_base)}))
    engine.inspect().wait(600)
    bench = open_bench(engine, prefetching=False)
    bench.prefetch.change_settings(AnswerSettings(max_new_tokens=4000))
    view = begin(bench)
    while not all(view["seen"]):
        view = bench.ratings.watch("ann", view["seen"])
    engine.process.kill()
    until(lambda: engine.state == "failed")
    reply = bench.ratings.watch("ann", view["seen"])
    assert "Votes are kept" in reply["empty"] and "Votes are kept" in begin(bench)["empty"]
    assert bench.engine.state == "failed"
    engine.close()
