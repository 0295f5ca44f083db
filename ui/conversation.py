"""A rater's conversation as plain data: its turns, and what each side of the page shows of it."""

from dataclasses import dataclass, field
from typing import Any

from lorarlhf_ui.engine_client import Job

Message = dict[str, str]


@dataclass(frozen=True)
class Picked:
    """How the reward role picked the answers of a turn.

    Attributes:
        count: from how many it picked each.
        scores: of the answers.
        bound: the most nats by which picking moves a model (`best_of.kl_bound`).
    """

    count: int
    scores: list[float]
    bound: float


@dataclass
class Turn:
    """A message of the rater and the answers of one or two models.

    Attributes:
        message: what the rater wrote.
        models: who answers, as the engine names them, in the order of the screen.
        answers: one for each model.
        chosen: the position of the answer that the conversation continues with.
        vote: the number of the vote on the answers, if there is one.
        scores: the reward role's scores of the answers, if they were requested.
        picked: how the reward role picked them; None if there was nothing to pick from.
    """

    message: str
    models: list[str]
    answers: list[str]
    chosen: int = 0
    vote: int | None = None
    scores: list[float] | None = None
    picked: Picked | None = None

    @property
    def open(self) -> bool:
        """Whether it has two answers without a vote, which an opinion would sway."""
        return len(self.answers) > 1 and self.vote is None


@dataclass
class Conversation:
    """A rater's conversation.

    Attributes:
        system: the system prompt, or "".
        job: the answers that are being generated, or the last ones.
        options: temperature, max_new_tokens and perhaps best_of of the last answers.
        models: who answers, in the order in which the rater chose them.
        before: system, turns and options before the last message, for the case that it fails.
        settled: whether the result of `job` is taken over.
    """

    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    job: Job | None = None
    options: dict[str, Any] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    before: tuple[str, list[Turn], dict[str, Any]] | None = None
    settled: bool = True

    @property
    def busy(self) -> bool:
        """Whether answers are being generated that nobody has stopped."""
        return self.job is not None and not self.job.done and not self.job.stopping

    def prompt(self, number: int) -> list[Message]:
        """The messages that a turn answers, the last one being the rater's."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns[:number]:
            messages.append({"role": "user", "content": turn.message})
            messages.append({"role": "assistant", "content": turn.answers[turn.chosen]})
        return [*messages, {"role": "user", "content": self.turns[number].message}]

    def side(self, side: int) -> list[Message]:
        """The messages on one side (0 or 1): the sides differ in the last answer only."""
        messages: list[Message] = []
        for number, turn in enumerate(self.turns):
            messages.append({"role": "user", "content": turn.message})
            messages.append({"role": "assistant", "content": self.answer(number, side)})
        return messages

    def answer(self, number: int, side: int) -> str:
        """The answer of a turn on one side."""
        turn = self.turns[number]
        last = number == len(self.turns) - 1
        return turn.answers[min(side, len(turn.answers) - 1) if last else turn.chosen]

    @property
    def judgeable(self) -> int:
        """How many turns the reward role may be asked about, so that no vote is swayed."""
        last = self.turns[-1] if self.turns else None
        return len(self.turns) - (last is not None and (self.busy or last.open))
