"""The reward role on the Chat page: it picks the best of several answers and says what it likes."""

from typing import Any

import pytest

from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.chat_html import about, thread_html
from lorarlhf_ui.chat_page import _ChatPage, _options, _settings
from lorarlhf_ui.conversation import Conversation, Picked, Turn
from tests.chat_steps import BOTH, Asking, OpenBench, say
from tests.pages import Bench, FakeEngine, Job, add_run, until

pytest_plugins = ("tests.pages",)


@pytest.fixture
def bench(open_bench: OpenBench, project: Project) -> Bench:
    """With a fake engine, a policy and a reward role."""
    add_run(project, "0001-dpo")
    add_run(project, "0002-reward", role="reward")
    return open_bench(FakeEngine(), prefetching=False)


def pick(bench: Bench, *answers: str, scores: list[float], best_of: int = 4) -> Conversation:
    """Ask for the best of several answers, and let the fake engine pick."""
    names = BOTH[: len(answers)]
    asking = Asking(bench.conversations.send("ann", "Hello?", names, best_of=best_of))
    until(lambda: bench.engine.live)
    value = {"texts": list(answers), "ended": [True] * len(answers), "features": None}
    value |= {"scores": scores, "bounds": [0.636] * len(answers)}
    bench.engine.live[-1].job.update(texts=list(answers), value=value, done=True)
    asking.end()
    return bench.conversations.of("ann")


def test_the_reward_role_picks_the_best_answer(bench: Bench, project: Project) -> None:
    conversation = pick(bench, "Hi.", scores=[0.5])
    asked = bench.engine.live[-1].options
    assert asked["counts"] == [4]
    assert asked["reward"] == project.folder / "runs" / "0002-reward" / "adapters" / "reward"
    turn = conversation.turns[-1]
    assert turn.picked == Picked(4, [0.5], 0.636)
    assert about(turn) == (
        "The best of 4 answers, picked by the reward role, with a score of 0.50. Picking moves the "
        "model by at most 0.64 nats (KL)."
    )
    assert _settings(conversation, picks=True)[3].value == 4


def test_a_pair_s_scores_are_not_told_before_the_vote(bench: Bench) -> None:
    turn = pick(bench, "Hi.", "Ho.", scores=[0.5, 0.7], best_of=8).turns[-1]
    assert bench.engine.live[-1].options["counts"] == [8, 8]
    assert about(turn) == "Each answer is the best of 8, picked by the reward role."
    bench.conversations.vote("ann", "left")
    (vote,) = bench.store.votes()
    assert vote.sampling[0]["best_of"] == 8


def test_a_pair_that_was_asked_for_its_scores_gets_them_after_the_vote(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def scores(adapter: Any, prompt: Any, answers: list[str]) -> Job:
        asked.append(answers)
        job = Job()
        job.update(value=[0.125, 0.8], done=True)
        return job

    monkeypatch.setattr(bench.engine, "scores", scores, raising=False)
    turn = say(bench, "Hello?", "Hi.", "Ho.").turns[-1]
    bench.conversations.score("ann")
    assert asked == [] and turn.scores is None
    turn.scores = [0.125, 0.8]  # whoever computed them
    assert about(turn) == ""
    turn.scores = None
    page: Any = object.__new__(_ChatPage)
    page.conversations = bench.conversations
    monkeypatch.setattr("lorarlhf_ui.chat_page.rater_of", lambda request: "ann")
    first, second = [shown[2] for shown in page._voting("left")(None, True)]
    assert "Saved." in first and "score" not in first
    assert "Saved." in second and "score: 0.12 and 0.80." in second and asked == [["Hi.", "Ho."]]
    say(bench, "And?", "Yes.", "No.")
    (only,) = page._voting("right")(None, False)  # without the tick nobody is asked
    assert "Saved." in only[2] and len(asked) == 1


def test_stopped_answers_were_not_picked(bench: Bench) -> None:
    asking = Asking(bench.conversations.send("ann", "Hello?", BOTH, best_of=4))
    until(lambda: bench.engine.live)[-1].write("Hi.", "Ho.")
    until(lambda: bench.conversations.of("ann").turns[-1].answers == ["Hi.", "Ho."])
    bench.conversations.stop("ann")
    asking.end()
    bench.conversations.vote("ann", "left")
    (vote,) = bench.store.votes()
    assert "best_of" not in vote.sampling[0] and vote.sampling[0]["max_new_tokens"] == 256


def test_answers_are_open_until_the_vote(bench: Bench) -> None:
    assert bench.conversations.open_answers("ann") == []
    say(bench, "Hello?", "Hi.", "Ho.")
    assert bench.conversations.open_answers("ann") == ["Hi.", "Ho."]
    bench.conversations.vote("ann", "tie")
    assert bench.conversations.open_answers("ann") == []


def test_one_answer_is_asked_for_as_before(bench: Bench) -> None:
    conversation = say(bench, "Hello?", "Hi.")
    asked = bench.engine.live[-1].options
    assert "counts" not in asked and "reward" not in asked
    assert conversation.turns[-1].picked is None and about(conversation.turns[-1]) == ""


def test_what_cannot_be_picked(bench: Bench, open_bench: OpenBench, project: Project) -> None:
    def send(**more: Any) -> None:
        list(bench.conversations.send("ann", "Hello?", ["base"], **more))

    with pytest.raises(UserError, match="At temperature 0"):
        send(best_of=4, temperature=0.0)
    with pytest.raises(UserError, match="best of 1, 4, 8"):
        send(best_of=1000)
    (project.folder / "runs" / "0002-reward" / "run.json").write_text("{}")
    with pytest.raises(UserError, match="no reward model"):
        send(best_of=4)
    assert not bench.engine.live and not bench.conversations.of("ann").turns


def test_what_the_reward_role_likes_is_told_after_the_vote(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, list[str]]] = []

    def shares(adapter: Any, prompt: Any, answers: list[str]) -> Job:
        from lorarlhf.evaluation.heat_map import WordShares

        seen.append((prompt, answers))
        job = Job()
        job.update(value=[WordShares(1.0, [(answers[0], 1.0)], 0.0, True)], done=True)
        return job

    monkeypatch.setattr(bench.engine, "shares", shares, raising=False)
    conversations = bench.conversations
    say(bench, "Hello?", "Hi.", "Ho.")
    with pytest.raises(UserError, match="Vote first"):
        conversations.shares("ann", {"turn": 0, "side": 1})
    conversation = conversations.vote("ann", "right")
    assert "Ho." in conversations.shares("ann", {"turn": 0, "side": 1})["html"]
    say(bench, "And?", "Well.")
    assert "Well." in conversations.shares("ann", {"turn": 1, "side": 0})["html"]
    assert seen == [(conversation.prompt(0), ["Ho."]), (conversation.prompt(1), ["Well."])]
    for wrong in ({"turn": 2, "side": 0}, {"turn": -1, "side": 0}, {"turn": 0, "side": 2}, {}):
        with pytest.raises(UserError, match="Vote first"):
            conversations.shares("ann", wrong)
    with pytest.raises(UserError, match="Vote first"):
        conversations.shares("bob", {"turn": 0, "side": 0})  # who has no conversation


def test_the_button_is_where_it_can_be_asked() -> None:
    conversation = Conversation(
        turns=[Turn("One?", ["base"], ["a"]), Turn("Two?", ["base"], ["b"])]
    )
    assert thread_html(conversation.side(0), conversation.judgeable).count("likes</button>") == 2
    conversation.turns[-1].answers.append("c")
    assert thread_html(conversation.side(0), conversation.judgeable).count("likes</button>") == 1
    assert "likes" not in thread_html(conversation.side(0))


def test_the_fields_of_the_page() -> None:
    names, more, scored = _options(("base", "nobody", "", 0.7, 64, 8, False))
    assert names == ["base"] and more["best_of"] == 8 and not scored
    assert _options(("base", None, "", 0.7, 64, None, True))[1]["best_of"] == 1
    assert _settings(Conversation(), picks=False)[3].visible is False
