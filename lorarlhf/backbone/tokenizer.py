"""Prompts as token ids, and the token that ends an answer.

This is all of a base that is needed before its weights are loaded.
"""

from collections.abc import Iterable
from typing import Any

from jinja2 import TemplateError

from lorarlhf.runtime.errors import UserError

Prompt = str | list[dict[str, str]]
"""A plain text, or a conversation: messages with `role` and `content`."""


class Conversation(list[dict[str, str]]):
    """Messages, and what the chat template gets besides them.

    Attributes:
        template: arguments of the template, such as `tools`.
    """

    def __init__(self, messages: Iterable[dict[str, str]], template: dict[str, Any]) -> None:
        super().__init__(messages)
        self.template = template


class PromptEncoder:
    """Encodes prompts with a base's tokenizer and chat template.

    Attributes:
        base: the name given by the user, for messages.
        tokenizer: pads on the left.
        vocabulary: rows of the base's embedding, and context: the most tokens that the base reads;
            None where they are not known.
    """

    def __init__(
        self,
        base: str,
        tokenizer: Any,
        vocabulary: int | None = None,
        context: int | None = None,
    ) -> None:
        self.base, self.tokenizer = base, tokenizer
        self.vocabulary, self.context = vocabulary, context

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt: a plain text as it is, a conversation by the chat template.

        Raises:
            UserError: the chat template refuses it, or the base has no row for one of its tokens.
        """
        if isinstance(prompt, str):
            return self._known(self.tokenizer(prompt)["input_ids"])
        return self.tokenize(self.render(prompt, answer_next=True))

    def render(
        self,
        messages: list[dict[str, str]],
        count: int | None = None,
        answer_next: bool = False,
    ) -> str:
        """A conversation as the chat template writes it.

        Args:
            count: how many of the messages, from the first; all by default.
            answer_next: end with the beginning of an assistant's turn.

        Raises:
            UserError: the template refuses the conversation, for example one with a system prompt.
        """
        more = messages.template if isinstance(messages, Conversation) else {}
        try:
            return self.tokenizer.apply_chat_template(
                list(messages[:count]), add_generation_prompt=answer_next, tokenize=False, **more
            )
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            roles = ", ".join(message["role"] for message in messages[:count])
            raise UserError(
                f"the chat template of {self.base} refuses a conversation of the roles {roles}: "
                f"{str(error).rstrip('.')}. Change those messages, or name another template with "
                "--set chat_template=FILE."
            ) from error

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text that the chat template has written."""
        return self._known(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _known(self, ids: list[int]) -> list[int]:
        if self.vocabulary is None or not ids or max(ids) < self.vocabulary:
            return ids
        token = self.tokenizer.convert_ids_to_tokens([max(ids)])[0]
        raise UserError(
            f"the token {token} has the number {max(ids)}, and the embedding of {self.base} has "
            f"{self.vocabulary} rows. {RESIZE}"
        )


RESIZE = (
    "Use the tokenizer that the base was trained with, or give the embedding more rows by "
    "resize_token_embeddings(len(tokenizer)) of transformers and save the base again."
)
"""Advice for a tokenizer with more tokens than the embedding has rows."""

ANSWER = "lorarlhf-answer"
"""Stands for an answer while a chat template is rendered to see what it writes after one."""


def turn_end(tokenizer: Any) -> int | None:
    """The token with which the chat template ends an assistant's turn.

    It is the first special or added token that the template writes after an answer. Many base
    models ship a tokenizer whose EOS is another token, which their template never writes.

    Returns:
        The token's id; None without a template, or if the template ends turns with plain text.
    """
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ANSWER}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template can raise anything; its rows will name the error
        return None
    before, found, end = text.rpartition(ANSWER)
    if not found:
        return None
    added = {token for name, token in tokenizer.get_added_vocab().items() if name.strip()}
    ids = tokenizer(end, add_special_tokens=False)["input_ids"]
    return next((i for i in ids if i in added or i in tokenizer.all_special_ids), None)


def turn_end_notice(tokenizer: Any, stops: set[int]) -> str | None:
    """What a user should know about how answers end; None if there is nothing unusual.

    Args:
        stops: the other tokens that end an answer, those of the generation config.
    """
    end, eos = turn_end(tokenizer), tokenizer.eos_token_id
    if tokenizer.chat_template is None or (end is not None and end == eos):
        return None
    if end is not None:
        name, other = tokenizer.convert_ids_to_tokens([end])[0], tokenizer.eos_token
        return (
            f"The chat template ends an answer with {name}, and the tokenizer's end-of-text token "
            f"is {other}. Answers stop at either of them."
        )
    if stops - {eos}:
        return None
    return (
        "The chat template writes no stop token after an answer, so a model that is tuned with it "
        "does not learn to stop. Name another template with --set chat_template=FILE."
    )
