"""A base's texts as token ids: all that is asked of a base before its weights are loaded."""

from typing import Any

Prompt = str | list[dict[str, str]]


class PromptEncoder:
    """The tokenizer of a base.

    Attributes:
        base: the name it was asked for by, for messages.
        tokenizer: padded left.
    """

    def __init__(self, base: str, tokenizer: Any) -> None:
        self.base, self.tokenizer = base, tokenizer

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt: plain text as it is, a conversation by the chat template."""
        if isinstance(prompt, str):
            return self.tokenizer(prompt)["input_ids"]
        text = self.tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=False
        )
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]
