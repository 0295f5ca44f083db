"""The requests of the Rate page: votes in screen order, undo, bad requests, blindness, progress."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from lorarlhf.preferences.records import Verdict
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui import rate as pages
from lorarlhf_ui.models import AnswerSettings
from lorarlhf_ui.votes import LONGEST_TEXT
from tests.pages import Bench, FakeEngine, add_run, pair
from tests.rate_steps import LEFT, RANKED, RIGHT, begin, live, on_screen, only, vote

pytest_plugins = ("tests.pages",)


@pytest.fixture
def bench(open_bench: Callable[..., Bench]) -> Bench:
    """With a fake engine, and nothing prefetched."""
    return open_bench(FakeEngine(), prefetching=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing comes the test need not wait."""
    monkeypatch.setattr(pages, "STREAM_SECONDS", 0.05)


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
        ballot = LEFT if number % 3 else RIGHT
        wanted.append(on_screen(view)[ballot["ranking"][0][0]])  # type: ignore[index]
        view = vote(bench, view["token"], ballot)
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
        ballot = {"verdict": verdict, "strength": "", "note": "  why \ud800 ", "edited": " "}
        vote(bench, begin(bench)["token"], ballot)
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
    reply = vote(bench, first["token"])
    again = bench.ratings.undo("ann", reply["voted"])
    assert on_screen(again) == on_screen(first) and again["token"] != first["token"]
    assert again["progress"]["all"] == 0 and bench.store.votes() == []
    assert bench.ratings.undo("ann", reply["voted"])["token"] == again["token"]  # twice clicked
    assert again["last"] is None
    last = vote(bench, again["token"], RIGHT)["last"]
    for _ in range(2):  # the answer to the first was lost: it means the same vote
        assert bench.ratings.undo("ann", last)["progress"]["all"] == 0
    for nobody in ("ann", "bob"):
        with pytest.raises(UserError, match="no vote to undo"):
            bench.ratings.undo(nobody, None)
    with pytest.raises(UserError, match="no vote to undo"):
        bench.ratings.undo("ann", 9999)


def test_what_was_typed_comes_back_with_an_undone_vote(bench: Bench) -> None:
    for number in range(3):
        bench.store.add_item(f"Question {number}?", [("Yes.", "base"), ("No.", "base")])
    nothing = {"note": "", "edited": "", "strength": ""}
    view = begin(bench)
    assert view["draft"] == {}
    typed = {"note": "Hm.", "edited": "Perhaps.", "strength": "much"}
    after = vote(bench, view["token"], LEFT | typed)
    assert after["draft"] == {}
    for _ in range(2):  # the page repeats a request whose reply was lost
        assert bench.ratings.undo("ann", after["voted"])["draft"] == typed
    again = begin(bench)
    assert again["draft"] == typed and again["answers"] == view["answers"]
    after = vote(bench, again["token"], RIGHT)
    assert bench.ratings.undo("ann", after["voted"])["draft"] == nothing  # of the last vote


def test_another_vote_on_the_same_answers_is_told(bench: Bench) -> None:
    bench.store.add_item("Why?", [("Because.", "base"), ("No idea.", "base")])
    token = begin(bench)["token"]
    assert "notice" not in vote(bench, token, LEFT | {"note": "Mine."})
    assert "notice" not in vote(bench, token, LEFT | {"note": "Mine."})  # a lost reply
    notice = vote(bench, token, RIGHT | {"note": "Other.", "edited": "Better."})["notice"]
    assert "A is better. That vote stands" in notice
    assert "note is not saved: “Other.”" in notice and "answer is not saved: “Better.”" in notice
    assert "tie" not in notice and "Mine" not in notice
    assert only(bench).verdict.note == "Mine."


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
    "ballot",
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
def test_bad_votes_are_refused(bench: Bench, ballot: Any) -> None:
    pair(bench.store)
    token = begin(bench)["token"]
    with pytest.raises(UserError):
        vote(bench, token, ballot)
    assert bench.store.votes() == [] and begin(bench)["token"] == token


@pytest.mark.parametrize("strange", [7, None, "", "nothing", ["live"], {"a": 1}, "live-1"])
def test_unknown_tokens_are_refused(bench: Bench, strange: Any) -> None:
    pair(bench.store)
    begin(bench)
    with pytest.raises(UserError, match="Reload"):
        vote(bench, strange)


@pytest.mark.parametrize("strange", ["1", [1], -1, 2**70, 1.5, {}])
def test_undo_of_a_bad_number_is_refused(bench: Bench, strange: Any) -> None:
    with pytest.raises(UserError, match="Reload"):
        bench.ratings.undo("ann", strange)


@pytest.mark.parametrize("seen", [None, [], ["a"], "ab", [1, 2], {"0": "a"}, ["a", "b", "c"]])
def test_a_page_may_have_seen_anything(bench: Bench, seen: Any) -> None:
    live(bench, "One", "Two")
    assert sorted(on_screen(bench.ratings.watch("ann", seen))) == ["One", "Two"]


# ---- blindness, and states without answers


def test_no_name_of_a_model_reaches_a_page(bench: Bench, project: Project) -> None:
    add_run(project, "0001-dpo")
    bench.prefetch.change_settings(AnswerSettings("base", "0001-dpo", 3))
    sources = ("base", "runs/0001-dpo", "policy")
    bench.store.add_item("Why?", [(f"Answer {n}", name) for n, name in enumerate(sources)])
    reply = [begin(bench)]
    reply.append(vote(bench, reply[0]["token"], {"verdict": "both_bad"}))
    asked = bench.engine.live[0]
    assert len(asked.models) == 3
    asked.write("One", "Two", "Three")
    reply.append(bench.ratings.watch("ann", reply[1]["seen"]))
    asked.end("One", "Two", "Three")
    reply.append(bench.ratings.watch("ann", reply[2]["seen"]))
    reply.append(vote(bench, reply[3]["token"], RANKED | {"ranking": [[2], [0]]}))
    reply.append(bench.ratings.undo("ann", reply[4]["voted"]))
    reply.append(bench.ratings.progress("ann"))
    whole = json.dumps(reply)
    for name in ("base", "0001", "dpo", "policy", "runs/", "adapters", "source", "sampling"):
        assert name not in whole
    known = {
        "token",
        "prompt",
        "answers",
        "progress",
        "meter",
        "ready",
        "voted",
        "streaming",
        "goal",
        "rests",
    }
    assert {key for view in reply for key in view} == known | {*("seen", "was", "last", "draft")}


def test_the_reason_for_no_answers_is_shown(
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
    reply = vote(bench, token)  # the vote is kept, whatever is wrong with the next item
    assert reply["voted"] == only(bench).id and "prompts.jsonl" in reply["empty"]


def test_progress_counts_hours_and_days(bench: Bench) -> None:
    now = int(1000 * time.time())
    ages = (0, 30 * 60, 90 * 60, 3 * 86400)
    for number, age in enumerate(ages):
        token = bench.store.present(pair(bench.store, f"{number}?"), "ann").token
        bench.store.judge(token, Verdict("tie"), created_at=now - 1000 * age)
    reply = bench.ratings.progress("ann")["progress"]
    midnight = time.mktime((*time.localtime()[:3], 0, 0, 0, 0, 0, -1))
    today = sum(now / 1000 - age >= midnight for age in ages)
    assert reply == {"all": 4, "today": today, "hour": 2}
