"""Conversations: what is refused, what an error leaves behind, and the real engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.chat import Conversation
from lorarlhf_ui.engine_client import Engine, Job
from lorarlhf_ui.votes import LONGEST_TEXT
from tests.chat_steps import BOTH, SHORT, Asking, OpenBench, say, turns
from tests.pages import Bench, FakeEngine, add_run, until

pytest_plugins = ("tests.pages",)


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
    ("text", "names", "message"),
    [
        ("", BOTH, "Type something"),
        (" \n", BOTH, "Type something"),
        (None, BOTH, "Type something"),
        ("\ud800", BOTH, "Type something"),
        ("x" * (LONGEST_TEXT + 1), BOTH, "up to 20000"),
        ("Hello?", ["base", "0009-ppo"], "no policy 0009-ppo"),
    ],
)
def test_bad_messages_are_refused(bench: Bench, text: Any, names: list[str], message: str) -> None:
    say(bench, "One?", "a", "b")
    for ask in (
        bench.conversations.send("ann", text, names),
        bench.conversations.edit("ann", 0, text, names),
    ):
        with pytest.raises(UserError, match=message):
            list(ask)
    assert turns(bench.conversations.of("ann")) == [("One?", ["a", "b"])]
    assert len(bench.engine.live) == 1


@pytest.mark.parametrize("number", [-1, 1, 99])
def test_an_edit_of_a_turn_that_is_gone_is_refused(bench: Bench, number: int) -> None:
    say(bench, "One?", "a", "b")
    with pytest.raises(UserError, match="Reload"):
        list(bench.conversations.edit("ann", number, "Other?", BOTH))
    assert len(bench.conversations.of("ann").turns) == 1


def test_without_a_model_there_is_an_error(open_bench: OpenBench) -> None:
    bench = open_bench(Engine(None), prefetching=False)
    with pytest.raises(UserError, match="without a model"):
        list(bench.conversations.send("ann", "Hello?", ["base"]))
    assert bench.conversations.of("ann").turns == []


class Busy(Job):
    def wait(self, seconds: float | None = None) -> Any:
        return super().wait(0.01)


def test_scores_that_take_too_long_are_an_error(
    bench: Bench, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(bench, "One?", "a", "b")
    bench.conversations.vote("ann", "left")  # no score is told before
    with pytest.raises(UserError, match="no reward model"):
        bench.conversations.score("ann")
    add_run(project, "0002-reward", role="reward")

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
        real.conversations.send("ann", "Hello?", BOTH, temperature=0.0, max_new_tokens=4000)
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
        assert sorted(vote.sources) == sorted(map(real.prefetch.models.label, places))
