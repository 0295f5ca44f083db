"""One request in the model's process: its answers, their texts, and what is sent of them."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import encode_prompts
from lorarlhf.backbone.open_batch import OpenAnswer
from lorarlhf.backbone.sampler import row_seeds
from lorarlhf.backbone.tokenizer import Prompt
from lorarlhf.rewards.best_of import best_places
from lorarlhf.runtime.errors import UserError
from lorarlhf.serve.errors import ApiError
from lorarlhf.serve.text import AnswerText

MOST_TOKENS = 1024
"""The longest answer if the request names no length."""
STOP, LENGTH = "stop", "length"

Wanted = dict[str, Any]


class Work:
    """The answers to one request.

    `n` answers were asked for, and each may be the best of `best_of` candidates.

    Args:
        number: of the request.
        wanted: `prompt`, `model` (a folder, or `base`), `n`, `best_of`, `reward`, `seed`,
            `temperature`, `top_p`, `max_tokens`, `stops`.
        limit: the longest prompt, in tokens.

    Raises:
        ApiError: the prompt is too long, or prompt and answer do not fit into the context.
        UserError: the base has no chat template, or it refuses the conversation.
    """

    def __init__(self, backbone: Backbone, number: int, wanted: Wanted, limit: int) -> None:
        self.backbone, self.number = backbone, number
        self.prompt: Prompt = wanted["prompt"]
        self.model: str = wanted["model"]
        self.reward: str = wanted["reward"]
        self.n, self.best_of = int(wanted["n"]), int(wanted["best_of"])
        self.prompt_ids = _encoded(backbone, self.prompt, limit)
        longest = longest_answer(backbone.encoder.context, len(self.prompt_ids), wanted)
        self.answers = [
            OpenAnswer(
                self.prompt_ids,
                seed,
                longest,
                temperature=wanted["temperature"],
                top_p=wanted["top_p"],
            )
            for seed in row_seeds(wanted["seed"], range(self.n * self.best_of))
        ]
        self.texts = [AnswerText(self._decode, wanted["stops"]) for _ in self.answers]
        self._seen = [0] * len(self.answers)
        self._ended = [False] * len(self.answers)
        self.scores: list[float] | None = None
        self._picked: Sequence[int] = range(0, len(self.answers), self.best_of)

    @property
    def done(self) -> bool:
        """Whether all answers are written."""
        return all(self._ended)

    def look(self) -> list[str]:
        """Read what was sampled since the last time, and end answers at their stop texts.

        Returns:
            The new piece of the text of each of the `n` answers; nothing while there is a best one
            to pick.
        """
        pieces = [self._look_at(place) for place in range(len(self.answers))]
        return pieces if self.best_of == 1 else [""] * self.n

    def _look_at(self, place: int) -> str:
        answer, text = self.answers[place], self.texts[place]
        if self._ended[place] or (len(answer.ids) == self._seen[place] and not answer.done):
            return ""
        self._seen[place] = len(answer.ids)
        piece = "" if answer.done else text.more(self._plain(answer))
        if answer.done or text.stopped:
            answer.done = self._ended[place] = True
            piece += text.end(self._plain(answer))
        return piece

    def stop(self) -> None:
        """End all answers as they are: nobody waits for them."""
        for answer in self.answers:
            answer.done = True

    def candidates(self) -> list[str]:
        """The text of each candidate, those of one answer after the other."""
        return [text.text for text in self.texts]

    def pick(self, scores: Sequence[float]) -> None:
        """Let each answer be its candidate with the highest score."""
        places = best_places(scores, self.best_of)
        self._picked = [n * self.best_of + place for n, place in enumerate(places)]
        self.scores = [scores[place] for place in self._picked]

    def result(self) -> Wanted:
        """What is sent at the end: `texts`, `finish`, and the numbers of tokens."""
        return {
            "texts": [self.texts[place].text for place in self._picked],
            "finish": [self._finish(place) for place in self._picked],
            "prompt_tokens": len(self.prompt_ids),
            "completion_tokens": sum(len(self.answers[place].ids) for place in self._picked),
            "scores": self.scores,
        }

    def _finish(self, place: int) -> str:
        ids = self.answers[place].ids
        ended = bool(ids) and ids[-1] in self.backbone.stop_ids
        return STOP if ended or self.texts[place].stopped else LENGTH

    def _plain(self, answer: OpenAnswer) -> list[int]:
        """The tokens of an answer without the stop token."""
        ended = bool(answer.ids) and answer.ids[-1] in self.backbone.stop_ids
        return answer.ids[:-1] if ended else answer.ids

    def _decode(self, ids: Sequence[int]) -> str:
        return self.backbone.tokenizer.decode(list(ids), skip_special_tokens=True)


def _encoded(backbone: Backbone, prompt: Prompt, limit: int) -> list[int]:
    """The prompt as token ids; at least one."""
    (ids,) = encode_prompts(backbone, [prompt], 2**62)
    if len(ids) > limit:
        raise ApiError(
            400,
            f"The messages have {len(ids)} tokens, and this server takes up to {limit}. Shorten "
            "the conversation, or start the server with --set max_prompt_tokens=N.",
            "messages",
            "context_length_exceeded",
        )
    if not ids:
        raise UserError("The messages are empty, so there is nothing to answer.")
    return ids


def longest_answer(context: int | None, prompt: int, wanted: Wanted) -> int:
    """How many tokens an answer may have.

    Args:
        context: the most tokens that the base reads; None if that is not known.
        prompt: tokens of the prompt.
        wanted: its `max_tokens` is what was asked for, or None.

    Raises:
        ApiError: it does not fit into the context.
    """
    asked = wanted["max_tokens"]
    if context is None:
        return asked or MOST_TOKENS
    room = context - prompt
    if room < (asked or 1):
        wish = "which leaves no room for an answer"
        if asked and room > 0:
            wish = f"and {asked} were asked for as the answer"
        raise ApiError(
            400,
            f"This model reads up to {context} tokens. The messages have {prompt}, {wish}. "
            "Shorten the conversation, or ask for a shorter answer with max_tokens.",
            "messages",
            "context_length_exceeded",
        )
    return asked or min(MOST_TOKENS, room)


def rows_of(works: Sequence[Work]) -> int:
    """How many answers are still being written."""
    return sum(not answer.done for answer in chain.from_iterable(work.answers for work in works))
