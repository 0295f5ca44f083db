"""The conversation in the terminal, with a model whose words are given."""

import io
from collections.abc import Iterator
from typing import Any

import pytest

from lorarlhf.cli import conversation as chat
from lorarlhf.runtime.errors import UserError


class Spoken:
    """Stands in for `generation.stream`: says given pieces and remembers what it was asked."""

    def __init__(self, *answers: list[Any]) -> None:
        self.answers, self.closed = list(answers), 0
        self.asked: list[tuple[Any, dict[str, Any]]] = []

    def __call__(self, backbone: Any, prompt: Any, **how: Any) -> Iterator[str]:
        self.asked.append((prompt, how))
        return self._say(self.answers.pop(0))

    def _say(self, pieces: list[Any]) -> Iterator[str]:
        try:
            for piece in pieces:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            self.closed += 1


def conversation(
    monkeypatch: pytest.MonkeyPatch, *answers: list[Any], **settings: Any
) -> tuple[chat.Conversation, Spoken]:
    spoken = Spoken(*answers)
    monkeypatch.setattr(chat, "stream", spoken)
    backbone: Any = None
    return chat.Conversation(backbone, "policy", ["base", "policy"], **settings), spoken


def talk(one: chat.Conversation, *lines: Any) -> str:
    """What the terminal shows; an exception among the lines is raised where one would be read."""
    left, out = list(lines), io.StringIO()

    def read(prompt: str) -> str:
        line = left.pop(0) if left else EOFError()
        if isinstance(line, BaseException):
            raise line
        return line

    chat.run(one, read, out)
    return out.getvalue()


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_each_turn_sees_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    one, spoken = conversation(monkeypatch, [" Hel", "lo. "], ["Yes."], system="Be kind.", seed=7)
    shown = talk(one, "Hi", "Sure?")
    assert "policy> Hello. \n" in shown and "policy> Yes.\n" in shown
    system = {"role": "system", "content": "Be kind."}
    assert spoken.asked[0][0] == [system, user("Hi")]
    assert spoken.asked[1][0] == [system, user("Hi"), assistant("Hello."), user("Sure?")]
    assert [how["seed"] for _, how in spoken.asked] == [7, 8]
    assert spoken.asked[0][1]["role"] == "policy"


def test_answers_differ_without_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    one, spoken = conversation(monkeypatch, ["a"], ["b"])
    talk(one, "Hi", "/retry")
    first, second = (how["seed"] for _, how in spoken.asked)
    assert first != second


def test_plain_texts_stand_one_below_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    one, spoken = conversation(monkeypatch, ["two"], ["four"], plain=True)
    talk(one, "one", "three")
    assert spoken.asked[1][0] == "one\ntwo\nthree"


def test_retry_answers_the_same_words_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    one, spoken = conversation(monkeypatch, ["a"], ["b"])
    talk(one, "Hi", "/retry")
    assert spoken.asked[0][0] == spoken.asked[1][0] == [user("Hi")]
    assert one.messages == [user("Hi"), assistant("b")]


def test_reset_keeps_the_system_message(monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = conversation(monkeypatch, ["a"], system="Be kind.")
    talk(one, "Hi", "/reset")
    assert one.messages == [{"role": "system", "content": "Be kind."}]


def test_role_switches_who_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    one, spoken = conversation(monkeypatch, ["a"])
    shown = talk(one, "/role base", "Hi", "/role", "/role reward")
    assert "base answers now." in shown and "base> a" in shown
    assert spoken.asked[0][1]["role"] == "base"
    assert "There is no role without a name here: base, policy." in shown
    assert "There is no role reward here" in shown and one.role == "base"


def test_ctrl_c_stops_the_answer_and_only_it(monkeypatch: pytest.MonkeyPatch) -> None:
    one, spoken = conversation(monkeypatch, ["Once ", KeyboardInterrupt()], ["Yes."])
    shown = talk(one, "Tell me", "Go on")
    assert "policy> Once  ...\n" in shown and "policy> Yes." in shown
    assert spoken.closed == 2  # the sampling has ended, too
    assert one.messages[1] == assistant("Once")  # what was said stays said


def test_an_answer_that_is_closed_early_ends_the_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    one, spoken = conversation(monkeypatch, ["a ", "b"])
    pieces = one.answer("Hi")
    assert next(pieces) == "a "
    pieces.close()
    assert spoken.closed == 1 and one.messages[-1] == assistant("a")


def test_ctrl_c_at_the_prompt_says_how_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = conversation(monkeypatch, ["a"])
    shown = talk(one, KeyboardInterrupt(), "Hi")
    assert "Ctrl-D or /quit ends." in shown and "policy> a" in shown


def test_quit_ends_before_the_next_line(monkeypatch: pytest.MonkeyPatch) -> None:
    one, spoken = conversation(monkeypatch)
    talk(one, "/quit", "Hi")
    assert spoken.asked == []


def test_a_conversation_that_is_too_long_takes_the_last_words_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, _ = conversation(monkeypatch, ["a"], [UserError("Too long.")])
    shown = talk(one, "Hi", "More", "/help")
    assert "Too long. /reset starts a new conversation." in shown
    assert one.messages == [user("Hi"), assistant("a")]
    assert shown.count(chat.HELP) == 2


def test_an_answer_without_words_keeps_the_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = conversation(monkeypatch, [" "])
    talk(one, "Hi", "")
    assert one.messages == [user("Hi"), assistant("")]
