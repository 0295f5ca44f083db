"""Conversations: the same one for both models, votes, edits, and answers that grow."""

import threading
from typing import Any

import gradio as gr
import pytest
from starlette.requests import Request

from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.chat_page import NOBODY, _ChatPage
from lorarlhf_ui.page_frame import Visitor, put_visitor
from tests.chat_steps import BOTH, Asking, OpenBench, say, turns
from tests.pages import Bench, FakeEngine, add_run, until

pytest_plugins = ("tests.pages",)


@pytest.fixture
def bench(open_bench: OpenBench, project: Project) -> Bench:
    """With a fake engine and one run."""
    add_run(project, "0001-dpo")
    return open_bench(FakeEngine(), prefetching=False)


# ---- one conversation for both


def test_both_sides_answer_the_same_conversation(bench: Bench) -> None:
    say(bench, "  Hello? ", "Hi.", "Good day.", system=" Be brief. ")
    bench.conversations.vote("ann", "right")
    conversation = say(bench, "Why?", "Because.", "So.", system="Something else")
    asked = bench.engine.live[-1]
    assert asked.prompt == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": "Why?"},
    ]
    assert asked.options["urgent"] and asked.options["features"]
    left, right = conversation.side(0), conversation.side(1)
    assert left[:3] == right[:3] and left[1]["content"] == "Good day."
    assert (left[3]["content"], right[3]["content"]) == ("Because.", "So.")


@pytest.mark.parametrize(
    ("which", "goes_on"),
    [("left", "Hi."), ("right", "Ho."), ("tie", "Hi."), ("both_good", "Hi."), ("both_bad", "Hi.")],
)
def test_the_better_answer_goes_on(bench: Bench, which: str, goes_on: str) -> None:
    say(bench, "Hello?", "Hi.", "Ho.")
    bench.conversations.vote("ann", which)
    say(bench, "And?", "x", "y")
    assert bench.engine.live[-1].prompt[1]["content"] == goes_on
    (kept,) = bench.store.votes()
    names = {"left": "ranked", "right": "ranked"}
    assert kept.verdict.verdict == names.get(which, which)


def test_one_model_alone_has_no_pair(bench: Bench) -> None:
    conversation = say(bench, "Hello?", "Hi.")
    assert bench.engine.live[0].options["features"] is False
    assert conversation.side(0) == conversation.side(1)
    with pytest.raises(UserError, match="no two finished answers"):
        bench.conversations.vote("ann", "left")
    with pytest.raises(UserError, match="no two finished answers"):
        bench.conversations.vote("bob", "left")


def test_a_vote_is_stored_with_the_whole_conversation(bench: Bench) -> None:
    say(bench, "Hello?", "Hi.", "Ho.", system="Be kind.")
    bench.conversations.vote("ann", "left")
    say(bench, "Why?", "Because.", "So.", temperature=0.3, max_new_tokens=9)
    models = bench.conversations.of("ann").turns[1].models
    conversation = bench.conversations.vote("ann", "right")
    votes = bench.store.votes()
    assert len(votes) == 2 and conversation.turns[1].vote == votes[1].id
    kept = votes[1]
    assert kept.prompt == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Why?"},
    ]
    assert kept.completions == ["Because.", "So."] and kept.verdict.ranking == [[1], [0]]
    assert kept.sources == [bench.prefetch.models.label(model) for model in models]
    assert sorted(kept.sources) == ["base", "runs/0001-dpo"] and kept.origin == {"page": "chat"}
    assert kept.sampling == [{"temperature": 0.3, "max_new_tokens": 9}] * 2
    assert kept.purpose == "train" and kept.rater == "ann" and kept.shown == [0, 1]


def test_the_sides_say_nothing_of_the_models(bench: Bench) -> None:
    left = set()
    for number in range(20):
        say(bench, f"Question {number}?", "Hi.", "Ho.")
        conversation = bench.conversations.of("ann")
        turn = conversation.turns[-1]
        left.add(bench.conversations.authors(turn)[0])
        assert sorted(bench.conversations.authors(turn)) == ["0001-dpo", "base"]
        assert sorted(conversation.models) == sorted(turn.models)
    assert left == {"base", "0001-dpo"}
    orders = {tuple(conversation.models) for conversation in [bench.conversations.of("ann")]}
    assert len(orders) == 1  # the fields keep the order that was chosen


def test_one_vote_a_turn(bench: Bench) -> None:
    say(bench, "Hello?", "Hi.", "Ho.")
    start, errors = threading.Barrier(5), []

    def click() -> None:
        start.wait()
        try:
            bench.conversations.vote("ann", "left")
        except UserError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=click) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bench.store.votes()) == 1 and len(errors) == 4 and "You have voted" in errors[0]


def test_a_vote_that_is_not_kept_can_be_cast_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise UserError("The disk is full.")

    say(bench, "Hello?", "Hi.", "Ho.")
    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "judge", full)
        with pytest.raises(UserError, match="disk is full"):
            bench.conversations.vote("ann", "right")
    assert bench.store.rows("SELECT count(*) FROM item")[0][0] == 0
    turn = bench.conversations.of("ann").turns[-1]
    assert turn.vote is None and turn.chosen == 0
    bench.conversations.vote("ann", "right")
    assert len(bench.store.votes()) == 1


def test_an_empty_answer_is_no_pair(bench: Bench) -> None:
    say(bench, "Hello?", "Hi.", "  ")
    with pytest.raises(UserError, match="is empty. Answer again"):
        bench.conversations.vote("ann", "left")


# ---- editing, retrying, forgetting


def test_an_edit_drops_what_came_after(bench: Bench) -> None:
    for text in ("One?", "Two?", "Three?"):
        say(bench, text, text + " left", text + " right")
    asking = Asking(bench.conversations.edit("ann", 1, "Other?", BOTH))
    until(lambda: bench.engine.live[3:])[0].end("a", "b")
    asking.end()
    conversation = bench.conversations.of("ann")
    assert turns(conversation) == [("One?", ["One? left", "One? right"]), ("Other?", ["a", "b"])]
    assert [m["content"] for m in bench.engine.live[3].prompt] == ["One?", "One? left", "Other?"]


def test_a_retry_answers_the_last_question_again(bench: Bench) -> None:
    say(bench, "One?", "a", "b")
    bench.conversations.vote("ann", "left")
    asking = Asking(bench.conversations.retry("ann", ["0001-dpo"], temperature=0.2))
    until(lambda: bench.engine.live[1:])[0].end("c")
    asking.end()
    conversation = bench.conversations.of("ann")
    assert turns(conversation) == [("One?", ["c"])] and conversation.turns[0].vote is None
    assert bench.engine.live[1].options["temperature"] == 0.2
    assert len(bench.store.votes()) == 1  # what was voted stays
    with pytest.raises(UserError, match="nothing to answer"):
        list(bench.conversations.retry("bob", BOTH))


def test_a_new_conversation_is_not_drawn_over_by_the_old(bench: Bench) -> None:
    asking = Asking(bench.conversations.send("ann", "Hello?", BOTH))
    asked = until(lambda: bench.engine.live)[0]
    asked.write("Hi", "Ho")
    until(lambda: ["Hi", "Ho"] in asking.seen)
    before = len(asking.seen)
    assert bench.conversations.restart("ann").turns == []
    asking.end()
    assert bench.engine.stopped == [asked.job] and len(asking.seen) == before
    assert bench.conversations.of("ann").turns == []


def test_two_raters_do_not_share(bench: Bench) -> None:
    say(bench, "Ann's?", "a", "b")
    say(bench, "Bob's?", "c", "d", rater="bob")
    assert turns(bench.conversations.of("ann")) == [("Ann's?", ["a", "b"])]
    assert len(bench.engine.live[1].prompt) == 1
    bench.conversations.vote("bob", "left")
    assert bench.conversations.of("ann").turns[0].vote is None
    assert bench.store.votes()[0].rater == "bob"


# ---- while answers are written


def test_answers_are_seen_as_they_grow(bench: Bench) -> None:
    asking = Asking(bench.conversations.send("ann", "Hello?", BOTH))
    asked = until(lambda: bench.engine.live)[0]
    for texts in (("H", ""), ("Hi", "Ho")):
        asked.write(*texts)
        until(lambda want=list(texts): want in asking.seen)
    with pytest.raises(UserError, match="no two finished answers"):
        bench.conversations.vote("ann", "left")
    with pytest.raises(UserError, match="Still answering"):
        next(bench.conversations.send("ann", "More?", BOTH))
    with pytest.raises(UserError, match="Still answering"):
        next(bench.conversations.edit("ann", 0, "Other?", BOTH))
    asked.end("Hi.", "Ho.")
    asking.end()
    assert asking.seen[-1] == ["Hi.", "Ho."] and len(bench.engine.live) == 1


def test_stop_keeps_what_is_there(bench: Bench) -> None:
    asking = Asking(bench.conversations.send("ann", "Hello?", BOTH))
    asked = until(lambda: bench.engine.live)[0]
    asked.write("Hi, I", "Ho")
    until(lambda: ["Hi, I", "Ho"] in asking.seen)
    bench.conversations.stop("ann")
    asking.end()
    assert bench.conversations.of("ann").turns[0].answers == ["Hi, I", "Ho"]
    bench.conversations.vote("ann", "left")
    assert bench.store.votes()[0].completions == ["Hi, I", "Ho"]
    bench.conversations.stop("ann")  # nothing to stop
    bench.conversations.stop("bob")
    assert bench.engine.stopped == [asked.job]


def test_answers_go_on_while_a_page_is_reloaded(bench: Bench) -> None:
    updates = bench.conversations.send("ann", "Hello?", BOTH)
    next(updates)
    asked = bench.engine.live[0]
    asked.write("Hi", "Ho")
    next(updates)
    updates.close()
    assert bench.engine.stopped == [] and bench.conversations.of("ann").busy
    asked.write("Hi, I", "Ho")
    again = Asking(bench.conversations.watch("ann"))
    until(lambda: ["Hi, I", "Ho"] in again.seen)
    asked.end("Hi, I am.", "Ho.")
    again.end()
    assert again.seen[-1] == ["Hi, I am.", "Ho."]
    assert turns(bench.conversations.of("ann")) == [("Hello?", ["Hi, I am.", "Ho."])]
    bench.conversations.vote("ann", "left")


def test_answers_that_nobody_watches_are_kept_whole(bench: Bench) -> None:
    for text in ("Hello?", "And?"):
        updates = bench.conversations.send("ann", text, BOTH)
        next(updates)
        updates.close()
        bench.engine.live[-1].end("Hi.", "Ho.")
    assert turns(bench.conversations.of("ann"))[-1] == ("And?", ["Hi.", "Ho."])
    updates = bench.conversations.send("ann", "More?", BOTH)
    next(updates)
    updates.close()
    bench.engine.live[-1].fail("There is not enough memory.")
    assert len(bench.conversations.of("ann").turns) == 2
    with pytest.raises(UserError, match="not enough memory"):
        list(bench.conversations.watch("ann"))


def test_a_message_that_fails_late_is_said_with_its_text(bench: Bench) -> None:
    page = _ChatPage.__new__(_ChatPage)  # its handlers alone, without components
    page.conversations = bench.conversations
    options = ("base", NOBODY, "", 0.7, 16, 1, False)
    scope: dict[str, Any] = {"type": "http"}
    put_visitor(scope, Visitor("ann", owner=False))
    events = page.on_send(gr.Request(Request(scope)), "Why <think> {{x}}?", *options)
    assert next(events)[0] == ""  # the field is empty, and may hold the next message
    bench.engine.live[-1].fail("There is not enough memory.")
    shown = [event[3] for event in events]
    assert "not enough memory. Your message is not answered: “Why &lt;think&gt; &#123;" in shown[-1]
    assert bench.conversations.of("ann").turns == []


def test_two_tabs_can_not_ask_at_once(bench: Bench) -> None:
    askings = [Asking(bench.conversations.send("ann", "Hello?", BOTH)) for _ in range(5)]
    until(lambda: sum(asking.error is not None for asking in askings) == 4)
    assert len(bench.engine.live) == 1
    bench.engine.live[0].end("a", "b")
    (good,) = [asking for asking in askings if asking.error is None]
    good.end()
    assert len(bench.conversations.of("ann").turns) == 1
