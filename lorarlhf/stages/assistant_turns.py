"""Which tokens of a conversation supervised tuning learns: those of the assistant's turns.

TRL can do this only with templates that mark them ({% generation %}), which few bases have.
"""

from typing import Any

from lorarlhf.backbone.tokenizer import PromptEncoder
from lorarlhf.data.shapes import shared_start

Row = dict[str, Any]


def assistant_tokens(encoder: PromptEncoder, messages: list[dict[str, str]]) -> list[Row]:
    """Rows with `input_ids` and `assistant_masks` (1: learned), as TRL's SFTTrainer takes them.

    A turn is learned from where its prompt ends in sampling, with all that the template writes
    after it: the stop token and, often, a line break.

    Args:
        messages: with one assistant's turn or more. Messages after the last are left out.

    Returns:
        one row; several, one for each turn, if the template writes earlier turns in another way
        than the last, as those do that leave out their reasoning.

    Raises:
        UserError: the template refuses the conversation.
    """
    turns = [number for number, turn in enumerate(messages) if turn["role"] == "assistant"]
    through = {number: encoder.render(messages, number + 1) for number in turns}
    whole = through[turns[-1]]
    if all(whole.startswith(text) for text in through.values()):
        groups = [turns]
    else:
        groups = [[number] for number in turns]
    rows = []
    for group in groups:
        ids = encoder.tokenize(through[group[-1]])
        mask = [0] * len(ids)
        for number in group:
            before = _context(encoder, messages, number, through[number])
            start = shared_start(ids, encoder.tokenize(before))
            end = shared_start(ids, encoder.tokenize(through[number]))
            mask[start:end] = [1] * (end - start)
        rows.append({"input_ids": ids, "assistant_masks": mask})
    return rows


def _context(
    encoder: PromptEncoder, messages: list[dict[str, str]], number: int, through: str
) -> str:
    """The text before an assistant's turn."""
    if number:
        return encoder.render(messages, number, answer_next=True)
    # Templates refuse a conversation without messages.
    return through[: max(0, through.find(messages[0]["content"]))]
