"""Answers from a role: for many prompts at once, or streamed word by word."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.devices import give_back_memory
from lorarlhf.backbone.sampler import Sampler, row_seeds
from lorarlhf.backbone.tokenizer import Prompt, PromptEncoder
from lorarlhf.runtime.errors import UserError

HALF = "\ufffd"
"""What a character decodes to while some of its bytes are still to come."""


@dataclass(frozen=True)
class Completion:
    """One sampled answer: its text, its token ids (the stop token included) and how it ended."""

    text: str
    ids: list[int]
    ended: bool  # by a stop token, not by max_new_tokens
    sampled_logprobs: list[float] | None = None  # of each token, where another program sampled


def encode_prompts(
    reader: Backbone | PromptEncoder, prompts: Sequence[Prompt], max_prompt_tokens: int
) -> list[list[int]]:
    """Token ids of each prompt.

    Raises:
        UserError: prompts longer than `max_prompt_tokens` (never cut silently), or conversations
            for a base that has no chat template.
    """
    check_chat_template(reader, prompts)
    encoded = [reader.encode(prompt) for prompt in prompts]
    too_long = [i for i, ids in enumerate(encoded) if len(ids) > max_prompt_tokens]
    if too_long:
        first = too_long[0]
        raise UserError(
            f"{len(too_long)} of {len(prompts)} prompts are longer than max_prompt_tokens "
            f"({max_prompt_tokens}); the first is prompt {first + 1} with {len(encoded[first])} "
            f"tokens: {_excerpt(prompts[first])}. Shorten them, leave them out, or raise the limit "
            "with --set max_prompt_tokens=N."
        )
    return encoded


def check_chat_template(reader: Backbone | PromptEncoder, prompts: Sequence[Prompt]) -> None:
    """Raise a `UserError` for conversations on a base without a chat template."""
    if reader.tokenizer.chat_template is None and any(not isinstance(p, str) for p in prompts):
        raise UserError(
            f"The base {reader.base} brings no chat template, so it can't be given "
            "conversations. Name a Jinja file with --set chat_template=FILE, or use plain text "
            "prompts with --set plain=true."
        )


def _excerpt(prompt: Prompt) -> str:
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return repr(text[:60] + ("..." if len(text) > 60 else ""))


def generate_ids(
    backbone: Backbone,
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    seeds: Sequence[int] | None = None,
) -> list[list[int]]:
    """One batch from the active role: P prompts -> P lists of new ids, the stop token included.

    Each answer depends on its own seed (by default its place) and on nothing else.
    """
    sampler = Sampler(
        backbone,
        prompt_ids,
        seeds=range(len(prompt_ids)) if seeds is None else seeds,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
    )
    with backbone.ready():
        while not sampler.done:
            sampler.step()
    return sampler.ids


def generate(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    *,
    role: str = "policy",
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    batch_size: int = 16,
    seed: int = 0,
    max_prompt_tokens: int = 1024,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Completion]:
    """Sample one answer for each prompt from a role (or `base`).

    Prompts are batched by length, so that padding costs little, and come back in their own order.
    The same seed gives the same answers, whatever the batch; torch's random state is left alone.

    Args:
        prompts: plain texts, or conversations for the chat template.
        progress: called with the number of answers that are done.

    Raises:
        UserError: a prompt is too long, or the base has no chat template.
    """
    encoded = encode_prompts(backbone, prompts, max_prompt_tokens)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    results: dict[int, Completion] = {}
    with backbone.role(role):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            new = generate_ids(
                backbone,
                [encoded[i] for i in rows],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seeds=row_seeds(seed, rows),
            )
            results |= {i: completion(backbone, ids) for i, ids in zip(rows, new, strict=True)}
            give_back_memory()
            progress(len(results))
    return [results[i] for i in range(len(encoded))]


def completion(backbone: Backbone, ids: list[int]) -> Completion:
    """Decode new ids (cut after the stop token) into a `Completion`."""
    ended = bool(ids) and ids[-1] in backbone.stop_ids
    text = backbone.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
    return Completion(text=text.strip(), ids=ids, ended=ended)


def stream(
    backbone: Backbone,
    prompt: Prompt,
    *,
    role: str = "policy",
    max_new_tokens: int = 256,
    temperature: float = 0.7,
    seed: int | None = None,
    max_prompt_tokens: int = 4096,
) -> Iterator[str]:
    """Sample one answer and yield its text piece by piece; stop asking to end it early.

    The role is switched only while a token is written. Without a seed each call differs.
    """
    (ids,) = encode_prompts(backbone, [prompt], max_prompt_tokens)
    seed = secrets.randbits(32) if seed is None else seed
    sampler = Sampler(
        backbone,
        [ids],
        seeds=row_seeds(seed, [0]),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
    )
    written = ""
    while not sampler.done:
        with backbone.role(role):
            sampler.step()
        text = backbone.tokenizer.decode(sampler.ids[0], skip_special_tokens=True)
        whole = text if sampler.done else text.rstrip(HALF)
        if len(whole) > len(written):
            yield whole[len(written) :]
            written = whole


class Sampling:
    """One or more answers of one role to one prompt, each token asked for by `step`.

    The same seeds give the same answers as `generate_ids`. The prompt is run once for all answers,
    and an answer that has ended leaves the batch. Between steps the backbone is as it was, so other
    samplings and other roles can have their turn.

    Args:
        prompt: plain text, or a conversation for the chat template.
        role: who answers, `base` among them; its adapter must stay loaded until the end.
        seeds: one an answer.
        temperature: 0 takes the likeliest token.

    Raises:
        UserError: the prompt is too long, or the base has no chat template.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompt: Prompt,
        *,
        role: str,
        seeds: list[int],
        max_new_tokens: int,
        temperature: float,
        max_prompt_tokens: int = 4096,
    ) -> None:
        self.backbone, self.role = backbone, role
        (self.prompt_ids,) = encode_prompts(backbone, [prompt], max_prompt_tokens)
        self._sampler = Sampler(
            backbone,
            [self.prompt_ids] * len(seeds),
            seeds=seeds,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
        )

    @property
    def done(self) -> bool:
        """Whether all answers have ended."""
        return self._sampler.done

    @property
    def ids(self) -> list[list[int]]:
        """The tokens so far."""
        return self._sampler.ids

    def texts(self) -> list[str]:
        """What has been written so far."""
        return [completion(self.backbone, ids).text for ids in self.ids]

    def ended(self) -> list[bool]:
        """Which answers ended by themselves, not by `max_new_tokens` or by being stopped."""
        return [bool(ids) and ids[-1] in self.backbone.stop_ids for ids in self.ids]

    def step(self, tokens: int = 1) -> None:
        """Up to so many more tokens for each answer that has not ended.

        Switching the role costs about a third of a small base's token, so ask for several where
        nobody else is waiting.
        """
        with self.backbone.role(self.role):
            for _ in range(tokens):
                if self.done:
                    return
                self._sampler.step()
