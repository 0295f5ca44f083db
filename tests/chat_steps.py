"""What the tests of conversations share: answers that are followed in a thread, as by a page."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

from lorarlhf_ui.conversation import Conversation
from tests.pages import Bench, until

OpenBench = Callable[..., Bench]
BOTH = ["base", "0001-dpo"]
SHORT: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 8}
"""Likeliest tokens: with others, a random base now and then ends before its first letter."""


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
