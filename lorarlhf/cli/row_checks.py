"""Can the base read the rows? Every row is tried before the base is loaded.

A row that the chat template refuses, that is longer than the base's context, or that has a token
without a row in the embedding is an error that names its line and field.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from lorarlhf.backbone.generation import check_chat_template
from lorarlhf.backbone.tokenizer import Conversation, Prompt, PromptEncoder
from lorarlhf.data.file_formats import excerpt, place_of, raise_problems
from lorarlhf.data.readers import last_message
from lorarlhf.project.settings import Settings
from lorarlhf.project.stage import Stage
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.terminal import log_to_stderr
from lorarlhf.stages.assistant_turns import assistant_tokens
from lorarlhf.stages.conversations import conversational, prompt_conversations

Row = dict[str, Any]
ANSWERS = ("completion", "chosen", "rejected")


class Length(NamedTuple):
    """Tokens of a row. Of a row without a prompt all tokens are the answer's."""

    prompt: int
    answer: int


def prepare_rows(
    stage: Stage, encoder: PromptEncoder, rows: Sequence[Row], settings: Settings
) -> tuple[list[Row], Length]:
    """The rows as the stage takes them; the longest row's length, and the longest answer in it.

    Raises:
        UserError: conversations for a base without a chat template, rows that the base can't read,
            prompts that are too long.
    """
    own = settings.own
    if stage.rewarded:
        return prepare_prompts(encoder, rows, own)
    made = conversational(rows, encoder, own["plain"])
    learned = own.get("assistant_only", False)
    limit = settings.trl.get("max_length", own.get("max_tokens"))
    ends = int(own["plain"])  # TRL ends plain texts with a token

    def length(row: Row) -> Length:
        found = _length(encoder, row, learned)
        _check_context(encoder, sum(found) + ends, limit)
        return found

    lengths = _measured(rows, made, length)
    longest, answer = max(map(sum, lengths)), max(length.answer for length in lengths)
    # Some train on answers of their own, too; those of DPO's rounds are measured with the prompts.
    if sampled := 0 if stage.rounds else own.get("max_new_tokens", 0):
        answer = max(answer, sampled)
        longest = max(longest, max(length.prompt for length in lengths) + sampled)
    if limit is not None:
        _check_cut_rows(rows, lengths, limit)
        longest = min(longest, limit)
        answer = min(answer, longest)
    return made, Length(longest - answer, answer)


def prepare_prompts(
    encoder: PromptEncoder, rows: Sequence[Row], own: dict[str, Any]
) -> tuple[list[Row], Length]:
    """Prompts as they are answered; the length of the longest, and that of an answer.

    Args:
        own: settings with `plain`, `max_prompt_tokens` and `max_new_tokens`.

    Raises:
        UserError: a prompt is too long, or the base can't read it.
    """
    made = prompt_conversations(rows, own["plain"])
    check_chat_template(encoder, [row["prompt"] for row in made])
    answer = own["max_new_tokens"]

    def length(row: Row) -> Length:
        with _field("prompt"):
            prompt = len(encoder.encode(row["prompt"]))
            if prompt > own["max_prompt_tokens"]:
                raise UserError(
                    f"the prompt has {prompt} tokens, more than max_prompt_tokens "
                    f"({own['max_prompt_tokens']}): {_excerpt(row['prompt'])}. Shorten it, leave "
                    "it out, or raise the limit with --set max_prompt_tokens=N"
                )
            if encoder.context is not None and prompt + answer > encoder.context:
                raise UserError(
                    f"the prompt has {prompt} tokens, and with an answer of max_new_tokens "
                    f"({answer}) that is more than {encoder.base} reads ({encoder.context}). "
                    "Shorten it, leave it out, or lower max_new_tokens with --set max_new_tokens=N"
                )
        return Length(prompt, answer)

    lengths = _measured(rows, made, length)
    return made, Length(max(length.prompt for length in lengths), answer)


def _measured(
    rows: Sequence[Row], made: Sequence[Row], measure: Callable[[Row], Length]
) -> list[Length]:
    """The length of each row.

    Args:
        rows: as they were read, with their places; made: as the stage takes them.

    Raises:
        UserError: the base can't read some; it names the first three.
    """
    lengths, problems = [], []
    for number, (row, before) in enumerate(zip(made, rows, strict=True), start=1):
        try:
            lengths.append(measure(row))
        except UserError as error:
            problems.append(f"{place_of(before, number)}, {error}")
    raise_problems(problems)
    return lengths


def _check_context(encoder: PromptEncoder, tokens: int, cut_at: int | None) -> None:
    """See that a row fits into the base's context, whole or cut."""
    if encoder.context is None or min(tokens, cut_at or tokens) <= encoder.context:
        return
    cut = f", or cut it with --set max_tokens={encoder.context}" if cut_at else ""
    raise UserError(
        f"the row has {tokens} tokens, more than {encoder.base} reads ({encoder.context}). Shorten "
        f"it or leave it out{cut}"
    )


@contextmanager
def _field(name: str) -> Iterator[None]:
    """Name the field in the errors of what is tried inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f'field "{name}": {error}') from error


def _length(encoder: PromptEncoder, row: Row, assistant_only: bool) -> Length:
    """The tokens of a row. Raises a `UserError` if the base can't read it."""
    if "text" in row:
        with _field("text"):
            return Length(0, len(encoder.encode(row["text"])))
    if messages := row.get("messages"):
        with _field("messages"):
            return _dialogue_length(encoder, messages, assistant_only)
    with _field("prompt"):
        prompt = len(encoder.encode(row["prompt"]))
    answers = [_answer_length(encoder, row, name, prompt) for name in ANSWERS if name in row]
    return Length(prompt, max(answers))


def _dialogue_length(encoder: PromptEncoder, messages: Any, assistant_only: bool) -> Length:
    if not assistant_only:
        return Length(0, len(encoder.tokenize(encoder.render(messages))))
    parts = assistant_tokens(encoder, messages)
    part = max(parts, key=lambda part: len(part["input_ids"]))
    prompt = part["assistant_masks"].index(1)
    return Length(prompt, len(part["input_ids"]) - prompt)


def _answer_length(encoder: PromptEncoder, row: Row, name: str, prompt: int) -> int:
    """The tokens of an answer behind a prompt of so many tokens, as the template writes it."""
    answer: Prompt = row[name]
    with _field(name):
        if isinstance(answer, str):
            return len(encoder.encode(answer))
        more = row["prompt"].template if isinstance(row["prompt"], Conversation) else {}
        whole = encoder.render(Conversation([*row["prompt"], *answer], more))
        return max(1, len(encoder.tokenize(whole)) - prompt)


def _excerpt(prompt: Prompt) -> str:
    return excerpt(last_message(prompt))


def _check_cut_rows(rows: Sequence[Row], lengths: Sequence[Length], limit: int) -> None:
    """Count the rows that TRL cuts at `max_tokens`; refuse those that lose the whole answer."""
    if longer := [n for n, length in enumerate(lengths) if length.prompt >= limit]:
        first = longer[0]
        raise UserError(
            f"{len(longer)} of {len(lengths)} rows have a prompt as long as max_tokens ({limit}) "
            f"or longer (up to {max(lengths[n].prompt for n in longer)}), so no token of the "
            f"answer is left to learn from; the first is {place_of(rows[first], first + 1)}. "
            "Shorten them, leave them out, or raise the limit with --set max_tokens=N."
        )
    if cut := [sum(length) for length in lengths if sum(length) > limit]:
        log_to_stderr(
            f"{len(cut)} of {len(lengths)} rows are longer than max_tokens ({limit}; the "
            f"longest has {max(cut)}) and are cut there. --set max_tokens=N changes that."
        )
