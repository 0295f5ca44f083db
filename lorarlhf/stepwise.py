"""Answers sampled a token at a time, so that several can take turns on one backbone and stop."""

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.reading import Prompt
from lorarlhf.generation import completion, encode_prompts
from lorarlhf.sampling import Sampler


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
