"""Conversations side by side: one conversation for both models, votes, edits, stops, errors."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.chat import Conversation
from lorarlhf_ui.engine_client import Engine, Job
from lorarlhf_ui.votes import LONGEST_TEXT
from tests.pages import Bench, FakeEngine, add_run, until

pytest_plugins = ("tests.pages",)

OpenBench = Callable[..., Bench]
BOTH = ["base", "0001-dpo"]
SHORT: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 8}


@pytest.fixture
def bench(open_bench: OpenBench, project: Project) -> Bench:
    """With a fake engine and one run."""
    add_run(project, "0001-dpo")
    return open_bench(FakeEngine(), prefetching=False)


@pytest.fixture
def real(
    open_bench: OpenBench, project: Project, engine: Engine, policies: list[Path]
) -> Iterator[Bench]:
    """With the real engine, two policies and a reward; it ends with one copy of the base."""
    add_run(project, "0001-dpo", policies[0])
    add_run(project, "0002-dpo", policies[1])
    yield open_bench(engine, prefetching=False)
    assert engine.inspect().wait(60)["copies"] == 1


class Asking:
    """A question that is being answered, as a page follows it in a thread of its own."""

    def __init__(self, updates: Iterator[Conversation]) -> None:
        self.seen: list[list[str]] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._follow, args=(updates,), daemon=True)
        self.thread.start()

    def _follow(self, updates: Iterator[Conversation]) -> None:
        try:
            for conversation in updates:
                self.seen.append(list(conversation.turns[-1].answers))
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        self.thread.join(600)
        assert not self.thread.is_alive()
        if self.error:
            raise self.error


def say(bench: Bench, text: str, *answers: str, rater: str = "ann", **more: Any) -> Conversation:
    """Ask the fake engine, which answers."""
    names = BOTH[: len(answers)]
    before = len(bench.engine.live)
    asking = Asking(bench.conversations.send(rater, text, names, **more))
    until(lambda: bench.engine.live[before:])[0].end(*answers)
    asking.end()
    return bench.conversations.of(rater)


def turns(conversation: Conversation) -> list[tuple[str, list[str]]]:
    return [(turn.message, turn.answers) for turn in conversation.turns]


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


def test_a_vote_lands_with_the_whole_conversation(bench: Bench) -> None:
    say(bench, "Hello?", "Hi.", "Ho.", system="Be kind.")
    bench.conversations.vote("ann", "left")
    say(bench, "Why?", "Because.", "So.", temperature=0.3, max_new_tokens=9)
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
    assert kept.sources == ["base", "runs/0001-dpo"] and kept.origin == {"page": "chat"}
    assert kept.sampling == [{"temperature": 0.3, "max_new_tokens": 9}] * 2
    assert kept.purpose == "train" and kept.rater == "ann" and kept.shown == [0, 1]


def test_one_vote_a_turn(bench: Bench) -> None:
    say(bench, "Hello?", "Hi.", "Ho.")
    start, told = threading.Barrier(5), []

    def click() -> None:
        start.wait()
        try:
            bench.conversations.vote("ann", "left")
        except UserError as error:
            told.append(str(error))

    threads = [threading.Thread(target=click) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bench.store.votes()) == 1 and len(told) == 4 and "You have voted" in told[0]


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


def test_a_page_that_goes_away_stops_its_answers(bench: Bench) -> None:
    updates = bench.conversations.send("ann", "Hello?", BOTH)
    next(updates)
    asked = bench.engine.live[0]
    asked.write("Hi", "Ho")
    next(updates)
    updates.close()
    assert bench.engine.stopped == [asked.job]
    assert turns(bench.conversations.of("ann")) == [("Hello?", ["Hi", "Ho"])]
    say(bench, "And?", "x", "y")


def test_two_tabs_can_not_ask_at_once(bench: Bench) -> None:
    askings = [Asking(bench.conversations.send("ann", "Hello?", BOTH)) for _ in range(5)]
    until(lambda: sum(asking.error is not None for asking in askings) == 4)
    assert len(bench.engine.live) == 1
    bench.engine.live[0].end("a", "b")
    (good,) = [asking for asking in askings if asking.error is None]
    good.end()
    assert len(bench.conversations.of("ann").turns) == 1


# ---- errors


def test_an_error_leaves_the_conversation_as_it_was(bench: Bench) -> None:
    say(bench, "One?", "a", "b", system="Be brief.", temperature=0.4)
    say(bench, "Two?", "c", "d", temperature=0.4)
    conversation = bench.conversations.of("ann")
    before = (conversation.system, turns(conversation), dict(conversation.options))

    def fails(updates: Iterator[Conversation]) -> None:
        number = len(bench.engine.live)
        asking = Asking(updates)
        asked = until(lambda: bench.engine.live[number:])[0]
        asked.write("half", "an answer")
        asked.fail("There is not enough memory for this.")
        with pytest.raises(UserError, match="not enough memory"):
            asking.end()
        assert (conversation.system, turns(conversation), conversation.options) == before

    fails(bench.conversations.send("ann", "Three?", BOTH, temperature=1.5))
    fails(bench.conversations.retry("ann", ["base"], temperature=1.5))
    fails(bench.conversations.edit("ann", 0, "Other?", BOTH, system="Something else"))
    bench.conversations.vote("ann", "left")
    assert bench.store.votes()[0].sampling[0]["temperature"] == 0.4
    assert len(say(bench, "Three?", "e", "f").turns) == 3


@pytest.mark.parametrize(
    ("text", "names", "said"),
    [
        ("", BOTH, "Type something"),
        (" \n", BOTH, "Type something"),
        (None, BOTH, "Type something"),
        ("\ud800", BOTH, "Type something"),
        ("x" * (LONGEST_TEXT + 1), BOTH, "up to 20000"),
        ("Hello?", ["base", "0009-ppo"], "no policy 0009-ppo"),
    ],
)
def test_what_can_not_be_asked_is_refused_in_words(
    bench: Bench, text: Any, names: list[str], said: str
) -> None:
    say(bench, "One?", "a", "b")
    for ask in (
        bench.conversations.send("ann", text, names),
        bench.conversations.edit("ann", 0, text, names),
    ):
        with pytest.raises(UserError, match=said):
            list(ask)
    assert turns(bench.conversations.of("ann")) == [("One?", ["a", "b"])]
    assert len(bench.engine.live) == 1


@pytest.mark.parametrize("number", [-1, 1, 99])
def test_an_edit_of_a_turn_that_is_gone_is_refused(bench: Bench, number: int) -> None:
    say(bench, "One?", "a", "b")
    with pytest.raises(UserError, match="Reload"):
        list(bench.conversations.edit("ann", number, "Other?", BOTH))
    assert len(bench.conversations.of("ann").turns) == 1


def test_without_a_model_it_is_told(open_bench: OpenBench) -> None:
    bench = open_bench(Engine(None), prefetching=False)
    with pytest.raises(UserError, match="without a model"):
        list(bench.conversations.send("ann", "Hello?", ["base"]))
    assert bench.conversations.of("ann").turns == []


def test_scores_that_take_too_long_are_told(
    bench: Bench, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(bench, "One?", "a", "b")
    with pytest.raises(UserError, match="no reward role"):
        bench.conversations.score("ann")
    add_run(project, "0002-reward", role="reward")

    class Busy(Job):
        def wait(self, seconds: float | None = None) -> Any:
            return super().wait(0.01)

    monkeypatch.setattr(bench.engine, "scores", lambda *_: Busy(), raising=False)
    with pytest.raises(UserError, match="The model is busy"):
        bench.conversations.score("ann")


# ---- with the real engine


def test_two_models_talk_with_the_real_engine(
    real: Bench, project: Project, policies: list[Path]
) -> None:
    names = ["0001-dpo", "0002-dpo"]
    for number, which in enumerate(("left", "right", "tie")):
        for conversation in real.conversations.send("ann", f"Question {number}?", names, **SHORT):
            assert len(conversation.turns) == number + 1
        assert len(set(conversation.turns[-1].answers)) == 2
        real.conversations.vote("ann", which)
    assert real.meter.wait()
    votes = real.store.votes()
    assert [len(vote.prompt) for vote in votes] == [1, 3, 5]
    assert votes[2].prompt[3]["content"] == votes[1].completions[1]  # type: ignore[index]
    # The first two order answers; all three have hidden states for the meter.
    assert real.meter._heads["ann"].votes == {votes[0].id, votes[1].id}
    assert all(real.states.get(vote.prompt, vote.completions) for vote in votes)

    add_run(project, "0003-reward", policies[2], role="reward")
    scores = real.conversations.score("ann").turns[-1].scores
    assert scores is not None and len(set(scores)) == 2


def test_stop_and_errors_with_the_real_engine(real: Bench) -> None:
    asking = Asking(
        real.conversations.send("ann", "Hello?", BOTH, temperature=1.0, max_new_tokens=4000)
    )
    until(lambda: any(all(seen) for seen in asking.seen))
    real.conversations.stop("ann")
    asking.end()
    (turn,) = real.conversations.of("ann").turns
    assert all(turn.answers) and turn.answers == asking.seen[-1]
    with pytest.raises(UserError, match="longer than|max_prompt_tokens"):
        list(real.conversations.send("ann", "many words " * 1800, ["base"], **SHORT))
    assert len(real.conversations.of("ann").turns) == 1
    list(real.conversations.retry("ann", ["base"], **SHORT))
    assert len(real.conversations.of("ann").turns[0].answers) == 1


def test_three_people_talk_at_once(real: Bench) -> None:
    names = [["base", "0001-dpo"], ["0002-dpo", "0001-dpo"], ["base", "0002-dpo"]]
    askings = [
        Asking(real.conversations.send(f"r{n}", f"I am r{n}.", names[n], **SHORT)) for n in range(3)
    ]
    for number, asking in enumerate(askings):
        asking.end()
        real.conversations.vote(f"r{number}", "left")
    found = {vote.rater: vote for vote in real.store.votes()}
    for number in range(3):
        vote = found[f"r{number}"]
        assert vote.prompt == [{"role": "user", "content": f"I am r{number}."}]
        places = [real.prefetch.models.place(name) for name in names[number]]
        assert vote.sources == [real.prefetch.models.label(place) for place in places]
