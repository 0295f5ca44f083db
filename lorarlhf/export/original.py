"""What the trained policy says: its likeliest answers to held-out prompts, and how sure it is."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import Completion, encode_prompts, generate_encoded
from lorarlhf.backbone.plain_weights import BaseWeight, base_weights
from lorarlhf.backbone.roles import ADAPTERS
from lorarlhf.backbone.tokenizer import Prompt
from lorarlhf.export.difference import Difference, Reading, compare, read_row
from lorarlhf.rewards.role import score_answers

BATCH_SIZE = 8


@dataclass(frozen=True)
class Original:
    """The original's answers, which every form of an export is compared with.

    Attributes:
        prompts: as they were asked; encoded: their tokens.
        answers: the likeliest answer to each, its stop token included.
        rows: what `read_row` says of each answer, with the original's `top_ids`.
        scores: the reward role's score of each answer; None without a reward role.
        from_base: how far the base without the adapter is from it.
    """

    prompts: list[Prompt]
    encoded: list[list[int]]
    answers: list[Completion]
    rows: list[dict[str, Any]]
    scores: list[float] | None
    from_base: Difference

    @property
    def lengths(self) -> list[int]:
        """Tokens of each answer."""
        return [len(answer.ids) for answer in self.answers]

    def compare(self, rows: Sequence[dict[str, Any]]) -> Difference:
        """How far another model is from the original, from its rows at the same places."""
        return compare(Reading.of(self.rows), Reading.of(rows), self.lengths)

    def asked(self) -> list[dict[str, Any]]:
        """For an engine: the prompts, as messages or as texts."""
        return [
            {"text": prompt}
            if isinstance(prompt, str)
            else {"messages": list(prompt), "template": getattr(prompt, "template", {})}
            for prompt in self.prompts
        ]

    def places(self) -> list[dict[str, Any]]:
        """For an engine: the tokens of each prompt and answer, and which ones to tell of."""
        return [
            {"prompt": prompt, "answer": answer.ids, "top_ids": row["top_ids"]}
            for prompt, answer, row in zip(self.encoded, self.answers, self.rows, strict=True)
        ]


def read_original(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    progress: Callable[[int], Any] = lambda done: None,
) -> Original:
    """Let the policy answer, and read its log-probabilities and the base's.

    Args:
        progress: called with the number of answers and readings so far, of 3 for each prompt.

    Raises:
        UserError: a prompt is too long, or the base has no chat template.
    """
    encoded = encode_prompts(backbone, prompts, 4096)
    with backbone.role("policy"):
        answers = generate_encoded(
            backbone,
            encoded,
            max_new_tokens=max_new_tokens,
            temperature=0,
            batch_size=BATCH_SIZE,
            progress=progress,
        )
    told = len(encoded)
    rows: list[dict[str, Any]] = []
    base: list[dict[str, Any]] = []
    for role, into in (("policy", rows), ("base", base)):
        for place, (prompt, answer) in enumerate(zip(encoded, answers, strict=True)):
            top = np.asarray(rows[place]["top_ids"]) if role == "base" else None
            into.append(_read(backbone, role, prompt, answer.ids, top))
            told += 1
            progress(told)
    scores = None
    if backbone.has("reward"):
        scores = score_answers(backbone, prompts, [answer.text for answer in answers])
    lengths = [len(answer.ids) for answer in answers]
    apart = compare(Reading.of(rows), Reading.of(base), lengths)
    return Original(list(prompts), encoded, answers, rows, scores, apart)


def read_merged(
    backbone: Backbone,
    original: Original,
    weight_of: Callable[[BaseWeight], torch.Tensor],
    progress: Callable[[int], Any] = lambda done: None,
) -> Difference:
    """How far the policy would be with other matrices, before anything is written.

    Args:
        weight_of: the matrix in place of a quantised or adapted one. They are made one at a time
            in each forward.
        progress: called with the number of answers that are read.
    """
    found = []
    with _replaced(backbone, weight_of):
        for place in original.places():
            top = np.asarray(place["top_ids"])
            found.append(_read(backbone, "base", place["prompt"], place["answer"], top))
            progress(len(found))
    return original.compare(found)


@torch.no_grad()
def _read(
    backbone: Backbone, role: str, prompt: list[int], answer: list[int], top: np.ndarray | None
) -> dict[str, Any]:
    ids = torch.tensor([prompt + answer], device=backbone.device)
    kept = len(answer) + 1  # not those of a long prompt, which a large vocabulary makes gigabytes
    with backbone.role(role):
        logits = backbone.causal(input_ids=ids, logits_to_keep=kept).logits[0, -kept:-1]
    return read_row(logits.float().cpu().numpy(), answer, top)


def changed(backbone: Backbone) -> Iterator[BaseWeight]:
    """The weights that an export makes anew: quantised ones, and those with an adapter."""
    for one in base_weights(backbone):
        if one.quantised or one.adapted_by(ADAPTERS["policy"]):
            yield one


@contextmanager
def _replaced(
    backbone: Backbone, weight_of: Callable[[BaseWeight], torch.Tensor]
) -> Iterator[None]:
    """Compute each changed linear layer with another matrix, made as it is needed."""
    modules = []
    try:
        for one in changed(backbone):
            module = one.owner if one.layer is None else one.layer
            module.__dict__["forward"] = _with_weight(one, weight_of)
            modules.append(module)
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


def _with_weight(one: BaseWeight, weight_of: Callable[[BaseWeight], torch.Tensor]) -> Any:
    def forward(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        bias = None if one.owner.bias is None else one.owner.bias.to(x.dtype)
        return torch.nn.functional.linear(x, weight_of(one).to(x.device, x.dtype), bias)

    return forward
