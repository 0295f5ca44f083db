"""Answers sampled a token at a time, so that several can take turns on one backbone and stop."""

from typing import Any

import torch
from transformers import DynamicCache

from lorarlhf.backbone.base import Backbone, Prompt
from lorarlhf.generation import RowNoise, completion, encode_prompts


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
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        (self.prompt_ids,) = encode_prompts(backbone, [prompt], max_prompt_tokens)
        self.ids: list[list[int]] = [[] for _ in seeds]
        self._open = list(range(len(seeds)))  # rows of the batch, as places in `ids`
        self._noise = [RowNoise([seed], temperature, backbone.device) for seed in seeds]
        self._cache: Any = None

    @property
    def done(self) -> bool:
        """Whether all answers have ended."""
        return not self._open

    def texts(self) -> list[str]:
        """What has been written so far."""
        return [completion(self.backbone, ids).text for ids in self.ids]

    def ended(self) -> list[bool]:
        """Which answers ended by themselves, not by `max_new_tokens` or by being stopped."""
        return [bool(ids) and ids[-1] in self.backbone.stop_ids for ids in self.ids]

    @torch.no_grad()
    def step(self, tokens: int = 1) -> None:
        """Up to so many more tokens for each answer that has not ended.

        Switching the role costs about a third of a small base's token, so ask for several where
        nobody else is waiting.
        """
        with self.backbone.role(self.role):
            for _ in range(tokens):
                if self.done:
                    return
                self._add(self._first() if self._cache is None else self._next())

    def _add(self, scores: torch.Tensor) -> None:
        """Sample from logits (N, V) of the open rows, and let those leave that have ended."""
        staying = []
        for row, place in enumerate(self._open):
            chosen = scores[row : row + 1]
            if self.temperature > 0:
                chosen = self._noise[place](chosen, chosen)
            token = int(chosen.argmax())
            self.ids[place].append(token)
            full = len(self.ids[place]) >= self.max_new_tokens
            if token not in self.backbone.stop_ids and not full:
                staying.append(row)
        if len(staying) < len(self._open):
            self._open = [self._open[row] for row in staying]
            if staying:
                self._cache.batch_select_indices(torch.tensor(staying, device=scores.device))
            else:
                self._cache = None

    def _first(self) -> torch.Tensor:
        """Logits (N, V) after the prompt, which is run once and then kept for each answer."""
        self._cache = DynamicCache(config=self.backbone.causal.config)
        scores = self._forward(torch.tensor([self.prompt_ids]))
        if len(self.ids) > 1:
            self._cache.batch_repeat_interleave(len(self.ids))
        return scores.expand(len(self.ids), -1)

    def _next(self) -> torch.Tensor:
        return self._forward(torch.tensor([[self.ids[place][-1]] for place in self._open]))

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        output = self.backbone.causal(
            input_ids=ids.to(self.backbone.device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]
