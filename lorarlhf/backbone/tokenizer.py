"""Prompts as token ids. This is all of a base that is needed before its weights are loaded."""

from typing import Any

Prompt = str | list[dict[str, str]]
"""A plain text, or a conversation: messages with `role` and `content`."""


class PromptEncoder:
    """Encodes prompts with a base's tokenizer and chat template.

    Attributes:
        base: the name given by the user, for messages.
        tokenizer: pads on the left.
    """

    def __init__(self, base: str, tokenizer: Any) -> None:
        self.base, self.tokenizer = base, tokenizer

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt: a plain text as it is, a conversation by the chat template."""
        if isinstance(prompt, str):
            return self.tokenizer(prompt)["input_ids"]
        text = self.tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=False
        )
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]
