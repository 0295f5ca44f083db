"""Answers from a role: for many prompts at once, as a stream of text, or token by token."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.devices import give_back_memory
from lorarlhf.backbone.graph_sampler import sampler_for
from lorarlhf.backbone.kernels.lora_linear import cast_adapters
from lorarlhf.backbone.kernels.merged import keep_merged
from lorarlhf.backbone.limits import DEQUANTISED_WEIGHTS
from lorarlhf.backbone.roles import lora_layers
from lorarlhf.backbone.sampler import Sampler, row_seeds
from lorarlhf.backbone.tokenizer import Prompt, PromptEncoder
from lorarlhf.runtime.errors import UserError

REPLACEMENT = "\ufffd"
"""Stands at the end of a decoded text while bytes of its last character are still missing."""


@dataclass(frozen=True)
class Completion:
    """One sampled answer.

    Attributes:
        ids: its tokens, the stop token included.
        ended: whether it ended in a stop token, not at `max_new_tokens`.
        sampled_logprobs: of each token, if another program sampled it.
    """

    text: str
    ids: list[int]
    ended: bool
    sampled_logprobs: list[float] | None = None


def completion(backbone: Backbone, ids: list[int]) -> Completion:
    """Decode new ids, which stop after the first stop token, into a `Completion`."""
    ended = bool(ids) and ids[-1] in backbone.stop_ids
    text = backbone.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
    return Completion(text=text.strip(), ids=ids, ended=ended)


# ---- prompts


def encode_prompts(
    encoder: Backbone | PromptEncoder, prompts: Sequence[Prompt], max_prompt_tokens: int
) -> list[list[int]]:
    """Token ids of each prompt.

    Raises:
        UserError: prompts are longer than `max_prompt_tokens` (they are never cut silently), or
            conversations for a base without a chat template.
    """
    check_chat_template(encoder, prompts)
    encoded = [encoder.encode(prompt) for prompt in prompts]
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


def check_chat_template(encoder: Backbone | PromptEncoder, prompts: Sequence[Prompt]) -> None:
    """Raise a `UserError` for conversations on a base without a chat template."""
    if encoder.tokenizer.chat_template is None and any(not isinstance(p, str) for p in prompts):
        raise UserError(
            f"The base {encoder.base} has no chat template, so it can't be given "
            "conversations. Name a Jinja file with --set chat_template=FILE, or use plain text "
            "prompts with --set plain=true."
        )


def _excerpt(prompt: Prompt) -> str:
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return repr(text[:60] + ("..." if len(text) > 60 else ""))


# ---- many prompts at once


@contextmanager
def weights_for_sampling(backbone: Backbone) -> Iterator[None]:
    """Keep weights ready for sampling many answers from the active role.

    On a CPU they are dequantised, and the role's adapter is merged into them.
    """
    layers = lora_layers(backbone.model)
    with (
        keep_merged(layers, DEQUANTISED_WEIGHTS) as left,
        backbone.dequantised(max_weights=left),
    ):
        yield


def generate_ids(
    backbone: Backbone,
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    seeds: Sequence[int] | None = None,
) -> list[list[int]]:
    """Sample one batch from the active role: new ids for each prompt, the stop token included.

    Args:
        seeds: one for each answer, its index by default. An answer depends only on its own seed.
    """
    sampler = sampler_for(backbone)(
        backbone,
        prompt_ids,
        seeds=range(len(prompt_ids)) if seeds is None else seeds,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
    )
    with cast_adapters(lora_layers(backbone.model), backbone.compute_dtype):
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
) -> list[Completion]:
    """Sample one answer for each prompt from a role (or `base`).

    Prompts of similar length share a batch, and the answers are returned in the order of the
    prompts. The same seed gives the same answers, whatever the batch size. torch's random state is
    left alone.

    Args:
        prompts: plain texts, or conversations for the chat template.

    Raises:
        UserError: a prompt is too long, or the base has no chat template.
    """
    encoded = encode_prompts(backbone, prompts, max_prompt_tokens)
    with backbone.role(role):
        return generate_encoded(
            backbone,
            encoded,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            batch_size=batch_size,
            seed=seed,
        )


def generate_encoded(
    backbone: Backbone,
    encoded: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Completion]:
    """`generate` for prompts given as token ids, from the active role.

    Args:
        progress: called after each batch with the number of answers so far.
    """
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    results: dict[int, Completion] = {}
    with weights_for_sampling(backbone):
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
    give_back_memory()
    return [results[i] for i in range(len(encoded))]


# ---- one prompt, token by token


class StepwiseSampling:
    """Answers of one role to one prompt, advanced by `step`.

    The same seeds give the same answers as `generate_ids`. The prompt is run once for all answers,
    and an answer that has ended leaves the batch. Between steps the backbone is as it was, so
    several of these and other roles can take turns.

    Args:
        prompt: plain text, or a conversation for the chat template.
        role: the role that answers, or `base`. Its adapter must stay loaded until the end.
        seeds: one for each answer.
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
        """The tokens of each answer so far."""
        return self._sampler.ids

    def texts(self) -> list[str]:
        """The text of each answer so far."""
        return [completion(self.backbone, ids).text for ids in self.ids]

    def ended(self) -> list[bool]:
        """Which answers have ended in a stop token."""
        return [bool(ids) and ids[-1] in self.backbone.stop_ids for ids in self.ids]

    def step(self, tokens: int = 1) -> None:
        """Sample up to `tokens` more tokens for each answer that has not ended.

        The role is switched and its adapter made ready for several tokens once, so ask for several
        when nothing else is waiting.
        """
        layers = lora_layers(self.backbone.model) if tokens > 1 else []
        with (
            torch.no_grad(),
            self.backbone.role(self.role),
            cast_adapters(layers, self.backbone.compute_dtype),
        ):
            for _ in range(tokens):
                if self.done:
                    return
                self._sampler.step()


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
    """Sample one answer and yield its text piece by piece; stop iterating to end it early.

    The role is active only while a token is sampled. Without a seed each call gives another answer.
    """
    sampling = StepwiseSampling(
        backbone,
        prompt,
        role=role,
        seeds=row_seeds(secrets.randbits(32) if seed is None else seed, [0]),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        max_prompt_tokens=max_prompt_tokens,
    )
    written = ""
    while not sampling.done:
        sampling.step()
        text = backbone.tokenizer.decode(sampling.ids[0], skip_special_tokens=True)
        complete = text if sampling.done else text.rstrip(REPLACEMENT)
        if len(complete) > len(written):
            yield complete[len(written) :]
            written = complete
