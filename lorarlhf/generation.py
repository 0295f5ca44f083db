"""Sample answers from a role: batched, or streamed token by token.

Sampling is exactly the softmax at the given temperature: no top-p, no top-k, no repetition penalty,
and nothing of the base's own generation config, or PPO's KL would go negative
(trl issues 1005 and 925).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from lorarlhf.backbone.base import Backbone, Prompt
from lorarlhf.backbone.devices import give_back_memory
from lorarlhf.errors import UserError


@dataclass(frozen=True)
class Completion:
    """One sampled answer: its text, its token ids (the stop token included) and how it ended."""

    text: str
    ids: list[int]
    ended: bool  # by a stop token, not by max_new_tokens


def encode_prompts(
    backbone: Backbone, prompts: Sequence[Prompt], max_prompt_tokens: int
) -> list[list[int]]:
    """Token ids of each prompt.

    Raises:
        UserError: prompts longer than `max_prompt_tokens` (never cut silently), or conversations
            for a base that has no chat template.
    """
    check_chat_template(backbone, prompts)
    encoded = [backbone.encode(prompt) for prompt in prompts]
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


def check_chat_template(backbone: Backbone, prompts: Sequence[Prompt]) -> None:
    """Raise a `UserError` for conversations on a base without a chat template."""
    if backbone.tokenizer.chat_template is None and any(not isinstance(p, str) for p in prompts):
        raise UserError(
            f"The base {backbone.base} brings no chat template, so it can't be given "
            "conversations. Name a Jinja file with --set chat_template=FILE, or use plain text "
            "prompts with --set plain=true."
        )


def _excerpt(prompt: Prompt) -> str:
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return repr(text[:60] + ("..." if len(text) > 60 else ""))


def sampling_config(backbone: Backbone, max_new_tokens: int, temperature: float) -> Any:
    """Plain sampling at `temperature` (0: greedy) until a stop token or `max_new_tokens`."""
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        top_k=0 if temperature > 0 else None,
        top_p=1.0 if temperature > 0 else None,
        eos_token_id=backbone.stop_ids,
        pad_token_id=backbone.pad_id,
        use_cache=True,
        **({"do_sample": False} | sampling),
    )


@contextmanager
def _own_generation_config(backbone: Backbone, config: Any) -> Iterator[None]:
    """Put the base's generation config aside, so that none of it leaks into the sampling."""
    model = backbone.causal
    kept = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = kept


class RowNoise(LogitsProcessor):
    """Makes the likeliest token a sample of softmax(logits / temperature), by a seed for each row.

    (Gumbel's trick: the argmax of logits / temperature - log E, with E from Exp(1).) An answer then
    depends on its own seed only: not on the answers beside it, nor on what was drawn before.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, device: torch.device) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() / self.temperature - noise.log_()


@torch.no_grad()
def generate_ids(
    backbone: Backbone,
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    seeds: Sequence[int] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[list[int]]:
    """One batch from the active role: P prompts -> P lists of new ids, cut after the stop token.

    With `seeds`, one a prompt, each answer depends on its own seed; otherwise on torch's state.
    """
    input_ids, mask = pad_left(prompt_ids, backbone.pad_id)
    config = sampling_config(backbone, max_new_tokens, 0.0 if seeds is not None else temperature)
    noise = [] if seeds is None else [RowNoise(seeds, temperature, backbone.device)]
    with _own_generation_config(backbone, config):
        output = backbone.model.generate(
            input_ids=input_ids.to(backbone.device),
            attention_mask=mask.to(backbone.device),
            generation_config=config,
            logits_processor=LogitsProcessorList(noise),
            stopping_criteria=_stopper(stop),
        )
    return [cut_at_stop(row, backbone.stop_ids) for row in output[:, input_ids.shape[1] :].tolist()]


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
    The same seed gives the same answers; the caller's random state is left alone.

    Args:
        prompts: plain texts, or conversations for the chat template.
        progress: called with the number of answers that are done.

    Raises:
        UserError: a prompt is too long, or the base has no chat template.
    """
    encoded = encode_prompts(backbone, prompts, max_prompt_tokens)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    results: dict[int, Completion] = {}
    with torch.random.fork_rng(), backbone.role(role):
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            new = generate_ids(
                backbone,
                [encoded[i] for i in rows],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
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


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of ids -> (B, P) ids padded left, and the mask by their lengths."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def cut_at_stop(ids: list[int], stops: Sequence[int]) -> list[int]:
    """The ids up to and with the first stop token; all of them where there is none."""
    for place, token in enumerate(ids):
        if token in stops:
            return ids[: place + 1]
    return ids


class _StopAsked(StoppingCriteria):
    def __init__(self, asked: Callable[[], bool]) -> None:
        self.asked = asked

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.asked(), device=input_ids.device)


def _stopper(asked: Callable[[], bool] | None) -> StoppingCriteriaList | None:
    return StoppingCriteriaList([_StopAsked(asked)]) if asked else None


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
    """Sample one answer and yield its text piece by piece.

    Closing the iterator stops the sampling. The role is switched inside the sampling thread only
    for as long as the answer lasts, so ask for one answer at a time.
    """
    (ids,) = encode_prompts(backbone, [prompt], max_prompt_tokens)
    streamer = TextIteratorStreamer(backbone.tokenizer, skip_prompt=True, skip_special_tokens=True)
    stop, failure = Event(), []

    def work() -> None:
        try:
            config = sampling_config(backbone, max_new_tokens, temperature)
            with (
                torch.random.fork_rng(enabled=seed is not None),
                backbone.role(role),
                _own_generation_config(backbone, config),
            ):
                if seed is not None:
                    torch.manual_seed(seed)
                backbone.model.generate(
                    input_ids=torch.tensor([ids], device=backbone.device),
                    attention_mask=torch.ones(
                        1, len(ids), dtype=torch.long, device=backbone.device
                    ),
                    generation_config=config,
                    streamer=streamer,
                    stopping_criteria=_stopper(stop.is_set),
                )
        except Exception as error:  # handed to the reader below
            failure.append(error)
            streamer.end()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from streamer
    finally:
        stop.set()
        thread.join()
    if failure:
        raise failure[0]
