"""Answers that the engine's process writes, a few tokens at a time; each may be the best of n."""

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorarlhf.backbone.base import Backbone
    from lorarlhf.backbone.generation import StepwiseSampling

Request = dict[str, Any]


class AnswerJob:
    """One or more answers to one prompt, by one or more models.

    An answer that is the best of n has n candidates. Until one is picked, the first stands for it.

    Attributes:
        models: who writes, one for each candidate.
        counts: the number of candidates of each answer.
        reward: the folder of the reward role that picks, or "".
    """

    def __init__(self, number: int, request: Request) -> None:
        self.number = number
        self.prompt: Any = request["prompt"]
        self.counts: list[int] = request["counts"]
        self.models = [
            model
            for model, count in zip(request["models"], self.counts, strict=True)
            for _ in range(count)
        ]
        self.reward: str = request["reward"]
        self.seeds: list[int] = request["seeds"]  # one for each candidate
        self.urgent: bool = request["urgent"]
        self.wants_features: bool = request["features"]
        self.sampling = {name: request[name] for name in ("max_new_tokens", "temperature")}
        self.reported = 0.0
        self.samplings: list[StepwiseSampling] = []
        self._positions: list[list[int]] = []
        self._first = [0, *accumulate(self.counts)][:-1]
        self._picked = list(self._first)

    def begin(
        self, backbone: "Backbone", roles: dict[str, str], prompt: Any, max_prompt_tokens: int
    ) -> None:
        """Start sampling; the candidates of one model share a batch."""
        from lorarlhf.backbone.generation import StepwiseSampling

        models = list(dict.fromkeys(self.models))
        self._positions = [[n for n, m in enumerate(self.models) if m == model] for model in models]
        self.samplings = [
            StepwiseSampling(
                backbone,
                prompt,
                role=roles[model],
                seeds=[self.seeds[position] for position in positions],
                max_prompt_tokens=max_prompt_tokens,
                **self.sampling,
            )
            for model, positions in zip(models, self._positions, strict=True)
        ]

    def candidates(self) -> list[str]:
        """The text of each candidate so far, those of one answer after the other."""
        return self._by_position([sampling.texts() for sampling in self.samplings], "")

    def pick(self, scores: Sequence[float]) -> list[float]:
        """Let each answer be its candidate with the highest score; returns these scores."""
        places = [range(at, at + n) for at, n in zip(self._first, self.counts, strict=True)]
        self._picked = [max(some, key=lambda place: scores[place]) for some in places]
        return [scores[place] for place in self._picked]

    def texts(self) -> list[str]:
        """The text of each answer so far."""
        candidates = self.candidates()
        return [candidates[place] for place in self._picked]

    def ended(self) -> list[bool]:
        """Which answers have ended with an end token."""
        ended = self._by_position([sampling.ended() for sampling in self.samplings], False)
        return [ended[place] for place in self._picked]

    def _by_position(self, batches: list[list[Any]], missing: Any) -> list[Any]:
        values = [missing] * len(self.models)
        for positions, batch in zip(self._positions, batches, strict=False):
            for position, value in zip(positions, batch, strict=True):
                values[position] = value
        return values
