"""The collect page's questions: votes in screen order, live answers, undo, blindness, progress."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorarlhf.data.readers import read_prompts
from lorarlhf.preferences import queue
from lorarlhf.preferences.records import Verdict, Vote
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui import rate as pages
from lorarlhf_ui.engine_client import Engine
from lorarlhf_ui.engine_worker import packed
from lorarlhf_ui.models import AnswerSettings
from lorarlhf_ui.rate import TOO_EARLY
from lorarlhf_ui.votes import LONGEST_TEXT
from tests.pages import PROMPTS, Bench, FakeEngine, Request, add_run, pair, until

pytest_plugins = ("tests.pages",)

View = dict[str, Any]
LEFT = {"verdict": "ranked", "ranking": [[0], [1]]}
RIGHT = {"verdict": "ranked", "ranking": [[1], [0]]}
RANKED = {"verdict": "ranked", "ranking": [[3], [0, 2], [1]]}


@pytest.fixture
def bench(open_bench: Callable[..., Bench]) -> Bench:
    """With a fake engine, and nothing made ahead."""
    return open_bench(FakeEngine(), prefetching=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing comes the test need not wait."""
    monkeypatch.setattr(pages, "STREAM_SECONDS", 0.05)


def begin(bench: Bench, rater: str = "ann") -> View:
    return bench.ratings.begin(rater)


def vote(bench: Bench, token: Any, said: Any = LEFT, rater: str = "ann", ms: Any = 900) -> View:
    return bench.ratings.vote(rater, token, said, ms)


def live(bench: Bench, *texts: str, rater: str = "ann") -> tuple[Request, View]:
    """Answers that are written just now, and what the page shows of them."""
    assert begin(bench, rater)["token"].startswith("live-")
    asked = bench.engine.live[-1]
    asked.write(*texts)
    return asked, bench.ratings.watch(rater, [""] * len(texts))


def only(bench: Bench) -> Vote:
    (kept,) = bench.store.votes()
    return kept


def on_screen(view: View) -> list[str]:
    return [answer["text"] for answer in view["answers"]]


# ---- what a page does


def test_a_vote_gives_the_next_item_and_counts(bench: Bench) -> None:
    for number in range(3):
        pair(bench.store, f"{number}?")
    view = begin(bench)
    assert view["ready"] == 2 and view["progress"] == {"all": 0, "today": 0, "hour": 0}
    assert "0?" in view["prompt"] and sorted(on_screen(view)) == ["A 0?", "B 0?"]
    after = vote(bench, view["token"])
    assert "1?" in after["prompt"] and after["voted"] == only(bench).id
    assert after["progress"] == {"all": 1, "today": 1, "hour": 1} and after["ready"] == 1
    assert bench.ratings.progress("bob")["progress"]["all"] == 0
    assert only(bench).milliseconds == 900


def test_the_first_on_the_screen_wins_whatever_its_position(bench: Bench) -> None:
    for number in range(10):
        pair(bench.store, f"{number}?")
    view, wanted = begin(bench), []
    for number in range(10):
        said = LEFT if number % 3 else RIGHT
        wanted.append(on_screen(view)[said["ranking"][0][0]])  # type: ignore[index]
        view = vote(bench, view["token"], said)
    votes = bench.store.votes()
    assert [v.completions[v.verdict.ranking[0][0]] for v in votes] == wanted
    assert {tuple(v.shown) for v in votes} == {(0, 1), (1, 0)}


def test_a_ranking_in_screen_order_lands_in_item_order(bench: Bench) -> None:
    item = bench.store.add_item("Why?", [(name, "base") for name in "abcd"])
    bench.store.present(item, "ann", shown=[2, 0, 3, 1])  # the screen shows c a d b
    view = begin(bench)
    assert on_screen(view) == ["c", "a", "d", "b"]
    vote(bench, view["token"], RANKED)  # b, then c and d, then a
    assert only(bench).verdict.ranking == [[1], [2, 3], [0]]


def test_all_verdicts_and_what_goes_with_them(bench: Bench) -> None:
    verdicts = ("tie", "both_good", "both_bad", "skip")
    for prompt in (*verdicts, "last"):
        pair(bench.store, prompt)
    for verdict in verdicts:
        said = {"verdict": verdict, "strength": "", "note": "  why \ud800 ", "edited": " "}
        vote(bench, begin(bench)["token"], said)
    more = {"strength": "much", "note": "", "edited": "Better."}
    vote(bench, begin(bench)["token"], LEFT | more, ms="soon")
    votes = bench.store.votes()
    assert [v.verdict for v in votes[:-1]] == [Verdict(name, note="why") for name in verdicts]
    said_last = votes[-1].verdict
    assert (said_last.strength, said_last.note, said_last.edited) == ("much", None, "Better.")
    assert votes[-1].milliseconds is None


def test_undo_of_live_answers_keeps_their_sides(bench: Bench) -> None:
    for number in range(8):  # each is drawn: a shuffle of its own would differ in half of them
        asked, view = live(bench, f"One {number}", f"Two {number}")
        last = vote(bench, view["token"], RIGHT)["last"]
        asked.end(f"One {number}", f"Two {number}")
        again = bench.ratings.undo("ann", last)
        assert on_screen(again) == on_screen(view)
        vote(bench, again["token"], RIGHT)
        (kept,) = bench.store.votes(newest=1)
        assert kept.completions[kept.verdict.ranking[0][0]] == on_screen(view)[1]


def test_an_answer_that_is_copied_and_left_is_no_better_one(bench: Bench) -> None:
    pair(bench.store, "1?")
    view = begin(bench)
    vote(bench, view["token"], LEFT | {"edited": f" {on_screen(view)[1]}\n"})
    assert only(bench).verdict.edited is None


def test_undo_shows_the_item_again_and_no_more(bench: Bench) -> None:
    pair(bench.store, "1?")
    pair(bench.store, "2?")
    first = begin(bench)
    told = vote(bench, first["token"])
    again = bench.ratings.undo("ann", told["voted"])
    assert on_screen(again) == on_screen(first) and again["token"] != first["token"]
    assert again["progress"]["all"] == 0 and bench.store.votes() == []
    assert bench.ratings.undo("ann", told["voted"])["token"] == again["token"]  # twice clicked
    assert again["last"] is None
    last = vote(bench, again["token"], RIGHT)["last"]
    for _ in range(2):  # the answer to the first was lost: it means the same vote
        assert bench.ratings.undo("ann", last)["progress"]["all"] == 0
    for nobody in ("ann", "bob"):
        with pytest.raises(UserError, match="no vote to undo"):
            bench.ratings.undo(nobody, None)
    with pytest.raises(UserError, match="no vote to undo"):
        bench.ratings.undo("ann", 9999)


def test_two_raters_have_their_own_items(bench: Bench) -> None:
    pair(bench.store, "1?")
    pair(bench.store, "2?")
    ann, bob = begin(bench), begin(bench, "bob")
    assert ann["token"] != bob["token"] and ann["prompt"] != bob["prompt"]
    with pytest.raises(UserError, match="Reload"):
        vote(bench, ann["token"], rater="bob")
    vote(bench, bob["token"], rater="bob")
    assert only(bench).rater == "bob" and begin(bench)["token"] == ann["token"]


# ---- what no page sends


def test_a_vote_that_is_sent_twice_is_one(bench: Bench) -> None:
    pair(bench.store, "1?")
    pair(bench.store, "2?")
    token = begin(bench)["token"]
    first, second = vote(bench, token), vote(bench, token, RIGHT)
    assert first["voted"] == second["voted"] and first["token"] == second["token"]
    assert only(bench).verdict.ranking[0] == [only(bench).shown[0]]


@pytest.mark.parametrize(
    "said",
    [
        {},
        None,
        "ranked",
        [1],
        {"verdict": "best"},
        {"verdict": "undone"},
        {"verdict": ["tie"]},
        {"verdict": "ranked"},
        {"verdict": "ranked", "ranking": [[0, 1]]},
        {"verdict": "ranked", "ranking": [[0], [2]]},
        {"verdict": "ranked", "ranking": [[-1], [0]]},
        {"verdict": "ranked", "ranking": [[0], [0]]},
        {"verdict": "ranked", "ranking": [0, 1]},
        {"verdict": "ranked", "ranking": [[None]]},
        {"verdict": "ranked", "ranking": [[float("inf")]]},
        {"verdict": "ranked", "ranking": 7},
        {"verdict": "tie", "strength": "very"},
        {"verdict": "tie", "strength": ["much"]},
        {"verdict": "tie", "note": "x" * (LONGEST_TEXT + 1)},
        {"verdict": "tie", "edited": "x" * (LONGEST_TEXT + 1)},
    ],
)
def test_votes_that_mean_nothing_are_refused_in_words(bench: Bench, said: Any) -> None:
    pair(bench.store)
    token = begin(bench)["token"]
    with pytest.raises(UserError):
        vote(bench, token, said)
    assert bench.store.votes() == [] and begin(bench)["token"] == token


@pytest.mark.parametrize("strange", [7, None, "", "nothing", ["live"], {"a": 1}, "live-1"])
def test_tokens_that_are_not_known_are_refused_in_words(bench: Bench, strange: Any) -> None:
    pair(bench.store)
    begin(bench)
    with pytest.raises(UserError, match="Reload"):
        vote(bench, strange)


@pytest.mark.parametrize("strange", ["1", [1], -1, 2**70, 1.5, {}])
def test_undo_of_what_is_no_vote_is_refused_in_words(bench: Bench, strange: Any) -> None:
    with pytest.raises(UserError, match="Reload"):
        bench.ratings.undo("ann", strange)


@pytest.mark.parametrize("seen", [None, [], ["a"], "ab", [1, 2], {"0": "a"}, ["a", "b", "c"]])
def test_a_page_may_have_seen_anything(bench: Bench, seen: Any) -> None:
    live(bench, "One", "Two")
    assert sorted(on_screen(bench.ratings.watch("ann", seen))) == ["One", "Two"]


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
    told = vote(bench, view["token"])
    assert told["error"] == TOO_EARLY and told["reload"]["streaming"]
    assert bench.engine.stopped == [] and bench.store.votes() == []
    asked.write("Yes", "No")
    view = bench.ratings.watch("ann", told["reload"]["seen"])
    assert sorted(on_screen(view)) == ["No", "Yes"]
    vote(bench, view["token"])
    assert len(bench.store.votes()) == 1


def test_answers_that_say_too_little_can_be_skipped(bench: Bench) -> None:
    asked, view = live(bench, "", "")
    told = vote(bench, view["token"], {"verdict": "skip"})
    assert told["token"].startswith("live-") and "voted" not in told
    assert bench.engine.stopped == [asked.job] and len(bench.engine.live) == 2


def test_a_vote_with_too_long_a_note_may_be_sent_again(bench: Bench) -> None:
    _, view = live(bench, "One", "Two")
    with pytest.raises(UserError, match="up to 20000"):
        vote(bench, view["token"], LEFT | {"note": "x" * 20_001})
    vote(bench, view["token"], LEFT | {"note": "short"})
    assert only(bench).verdict.note == "short"


def test_live_answers_that_fail_are_told_and_the_page_goes_on(bench: Bench) -> None:
    asked, view = live(bench, "One", "Two")
    asked.fail("There is not enough memory for this.")
    told = bench.ratings.watch("ann", view["seen"])
    assert told["empty"] == "There is not enough memory for this." and "progress" in told
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
    told = bench.ratings.watch("ann", view["seen"])
    assert told["token"].startswith("live-") and bench.engine.live[1].prompt != asked.prompt
    bench.ratings.ask("ann", "My own?")
    bench.engine.live[-1].end("", "x")
    assert "identical or empty" in bench.ratings.watch("ann", told["seen"])["empty"]
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
def test_prompts_that_can_not_be_are_refused_in_words(
    bench: Bench, project: Project, text: Any
) -> None:
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


# ---- blindness, and states without answers


def test_a_page_is_told_no_name_of_a_model(bench: Bench, project: Project) -> None:
    add_run(project, "0001-dpo")
    bench.prefetch.change_settings(AnswerSettings("base", "0001-dpo", 3))
    sources = ("base", "runs/0001-dpo", "policy")
    bench.store.add_item("Why?", [(f"Answer {n}", name) for n, name in enumerate(sources)])
    told = [begin(bench)]
    told.append(vote(bench, told[0]["token"], {"verdict": "both_bad"}))
    asked = bench.engine.live[0]
    assert len(asked.models) == 3
    asked.write("One", "Two", "Three")
    told.append(bench.ratings.watch("ann", told[1]["seen"]))
    asked.end("One", "Two", "Three")
    told.append(bench.ratings.watch("ann", told[2]["seen"]))
    told.append(vote(bench, told[3]["token"], RANKED | {"ranking": [[2], [0]]}))
    told.append(bench.ratings.undo("ann", told[4]["voted"]))
    told.append(bench.ratings.progress("ann"))
    whole = json.dumps(told)
    for name in ("base", "0001", "dpo", "policy", "runs/", "adapters", "source", "sampling"):
        assert name not in whole
    known = {"token", "prompt", "answers", "progress", "meter", "ready", "voted", "streaming"}
    assert {key for view in told for key in view} == known | {"seen", "was", "last"}


def test_states_without_answers_are_told_in_words(
    bench: Bench, open_bench: Callable[..., Bench], project: Project
) -> None:
    off = open_bench(FakeEngine("off"), prefetching=False)
    assert "run without a model" in begin(off)["empty"]
    off.engine.state, off.engine.message = "failed", "The base can't be read."
    assert begin(off)["empty"] == "The base can't be read."
    starting = open_bench(FakeEngine("starting"), prefetching=False)
    assert "is loading" in begin(starting)["wait"]
    bench.prefetch.problem = "Something is wrong."
    assert begin(bench)["empty"] == begin(bench)["wait"] == "Something is wrong."
    bench.prefetch.problem = ""
    pair(bench.store)
    token = begin(bench)["token"]
    project.prompts.write_text("broken\n", "utf-8")
    told = vote(bench, token)  # the vote is kept, whatever is wrong with the next item
    assert told["voted"] == only(bench).id and "prompts.jsonl" in told["empty"]


def test_progress_counts_hours_and_days(bench: Bench) -> None:
    now = int(1000 * time.time())
    ages = (0, 30 * 60, 90 * 60, 3 * 86400)
    for number, age in enumerate(ages):
        token = bench.store.present(pair(bench.store, f"{number}?"), "ann").token
        bench.store.judge(token, Verdict("tie"), created_at=now - 1000 * age)
    told = bench.ratings.progress("ann")["progress"]
    midnight = time.mktime((*time.localtime()[:3], 0, 0, 0, 0, 0, -1))
    today = sum(now / 1000 - age >= midnight for age in ages)
    assert told == {"all": 4, "today": today, "hour": 2}


# ---- with the real engine


def test_people_vote_at_once_with_the_real_engine(
    open_bench: Callable[..., Bench], engine: Engine, project: Project, policies: list[Path]
) -> None:
    add_run(project, "0001-dpo", policies[0])
    open_bench(engine, prefetching=False).prefetch.change_settings(
        AnswerSettings("base", "0001-dpo", 2, 1.0, 10, 0.0)
    )
    bench = open_bench(engine)
    trouble: list[BaseException] = []

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
            trouble.append(error)

    threads = [threading.Thread(target=work, args=(f"r{n}", n % 2 == 0)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert trouble == []
    assert bench.meter.wait()
    votes = bench.store.votes()
    assert len(votes) >= 18 and all(len(vote.completions) == 2 for vote in votes)
    unshared = bench.store.rows(
        "SELECT item_id FROM presentation GROUP BY item_id HAVING count(DISTINCT rater_id) > 1"
    )
    assert unshared == []
    # Of who waits for whole answers the hidden states are known.
    assert len(bench.meter._heads["r1"].votes) == bench.store.count("r1") == 8


def test_an_engine_that_dies_is_told(
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
    told = bench.ratings.watch("ann", view["seen"])
    assert "Votes are kept" in told["empty"] and "Votes are kept" in begin(bench)["empty"]
    assert bench.engine.state == "failed"
    engine.close()
