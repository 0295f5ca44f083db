"""A conversation in the terminal: streamed, with any role of the backbone."""

import secrets
import sys
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, TextIO, cast

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import stream
from lorarlhf.backbone.tokenizer import Prompt
from lorarlhf.rewards.best_of import best_stream
from lorarlhf.runtime.errors import UserError

HELP = "/role NAME  /retry  /reset  /quit   Ctrl-C stops an answer, Ctrl-D ends"

Pieces = Generator[str, None, None]


class Conversation:
    """The messages so far, and how the next answer is sampled.

    Args:
        backbone: with `roles` loaded.
        roles: the roles that can answer, including `base`.
        system: the first message, if any.
        plain: join the messages' texts by line breaks, without the chat template.
        seed: makes the answers repeatable; None draws a new seed for each answer.
        best_of: how many answers are sampled, of which the reward role picks one.
        sampling: `temperature`, `max_new_tokens` and `max_prompt_tokens` of `stream`.
    """

    def __init__(
        self,
        backbone: Backbone,
        role: str,
        roles: list[str],
        *,
        system: str | None = None,
        plain: bool = False,
        seed: int | None = None,
        best_of: int = 1,
        **sampling: Any,
    ) -> None:
        self.best_of = best_of
        self.backbone, self.roles, self.role = backbone, roles, role
        self.plain, self.seed, self.drawn = plain, seed, 0
        self.sampling = sampling
        self.system = opening(system)
        self.messages: list[dict[str, str]] = list(self.system)

    def switch(self, role: str) -> str:
        """Change the role that answers from now on; returns a message."""
        if role not in self.roles:
            return f"There is no role {role or 'without a name'} here: {', '.join(self.roles)}."
        self.role = role
        return f"{role} answers now."

    def reset(self) -> str:
        """Forget the conversation, except the system message."""
        self.messages = list(self.system)
        return "A new conversation."

    def answer(self, text: str) -> Pieces:
        """Add the user's message and stream the answer, which becomes part of the conversation.

        Closing the iterator stops the answer and keeps the part that was written.

        Raises:
            UserError: the conversation has become longer than max_prompt_tokens; the user's
                message is removed again.
        """
        self.messages.append({"role": "user", "content": text})
        return self._stream()

    def retry(self) -> Pieces | None:
        """Another answer to the user's last message; None if there is none."""
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        return self._stream() if self.messages and self.messages[-1]["role"] == "user" else None

    def _stream(self) -> Pieces:
        seed = secrets.randbelow(2**31) if self.seed is None else self.seed + self.drawn
        self.drawn += 1
        prompt, written = as_prompt(self.messages, self.plain), ""
        how = self.sampling | {"role": self.role, "seed": seed}
        if self.best_of > 1:
            pieces = best_stream(self.backbone, prompt, self.best_of, **how)
        else:
            pieces = stream(self.backbone, prompt, **how)
        try:
            with closing(cast(Pieces, pieces)):
                for piece in pieces:
                    piece = piece if written else piece.lstrip()
                    written += piece
                    yield piece
        except UserError:
            self.messages.pop()
            raise
        except BaseException:
            self._keep(written)
            raise
        self._keep(written)

    def _keep(self, written: str) -> None:
        # An empty answer is kept too: many templates need user and assistant to alternate.
        self.messages.append({"role": "assistant", "content": written.strip()})


def opening(system: str | None) -> list[dict[str, str]]:
    """The messages that a conversation starts with."""
    return [{"role": "system", "content": system}] if system else []


def as_prompt(messages: list[dict[str, str]], plain: bool) -> Prompt:
    """The messages for the chat template, or their texts joined by line breaks."""
    return "\n".join(message["content"] for message in messages) if plain else list(messages)


def run(
    conversation: Conversation,
    read: Callable[[str], str] = input,
    out: TextIO | None = None,
) -> None:
    """Read lines and answer them until Ctrl-D or /quit."""
    out = out or sys.stdout
    print(f"{conversation.role} answers. {HELP}", file=out)
    while True:
        try:
            line = read("\nyou> ").strip()
        except EOFError:
            print(file=out)
            return
        except KeyboardInterrupt:
            print("\nCtrl-D or /quit ends.", file=out)
            continue
        if line == "/quit":
            return
        try:
            _handle_line(conversation, line, out)
        except UserError as error:
            print(f"{error} /reset starts a new conversation.", file=out)


def _handle_line(conversation: Conversation, line: str, out: TextIO) -> None:
    command, _, rest = line.partition(" ")
    if command == "/role":
        print(conversation.switch(rest.strip()), file=out)
    elif command == "/reset":
        print(conversation.reset(), file=out)
    elif command == "/retry":
        pieces = conversation.retry()
        if pieces is None:
            print("There is nothing to answer yet.", file=out)
        else:
            _show(conversation.role, pieces, out)
    elif command.startswith("/"):
        print(HELP, file=out)
    elif line:
        _show(conversation.role, conversation.answer(line), out)


def _show(role: str, pieces: Pieces, out: TextIO) -> None:
    """Print an answer as it is written; Ctrl-C stops only this answer."""
    print(f"{role}> ", end="", file=out, flush=True)
    with closing(pieces):
        try:
            for piece in pieces:
                print(piece, end="", file=out, flush=True)
        except KeyboardInterrupt:
            print(" ...", end="", file=out)
    print(file=out, flush=True)
