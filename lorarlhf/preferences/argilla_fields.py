"""Which of an Argilla record's fields hold the prompt, its context, and the responses."""

import re
from typing import Any

from lorarlhf.data.file_formats import quoted
from lorarlhf.data.readers import last_message
from lorarlhf.preferences.fields import Row, RowFault, prompt_of, text_of
from lorarlhf.preferences.records import Prompt

PROMPTS = (
    *("prompt", "instruction", "question", "query", "request", "input", "chat", "messages"),
    *("conversation", "userprompt", "userinput", "user", "text"),
)
"""Names of the field with the prompt, as `plain` writes them; the first one counts."""
_WORDS = "responses?|completion|generations?|reply|replies|answer|output|option|candidate"
RESPONSE = re.compile(rf"(?:\w*[-_ ])?(?:{_WORDS})[-_ ]?(?:\d+|[a-h])", re.IGNORECASE)
"""Names of the fields with the responses: response1, response-a, ..."""


def response_names(fields: Row) -> list[str]:
    """The fields that hold responses, without empty ones."""
    names = [name for name in fields if RESPONSE.fullmatch(name) and fields[name] not in (None, "")]
    if len(names) < 2:
        raise RowFault(
            'field "fields": expected a prompt and responses, such as response-1, found '
            f"{quoted(fields) or 'none'}"
        )
    return names


def find_prompt(fields: Row) -> tuple[Prompt, Row]:
    """The prompt with its context, and the fields that are neither prompt nor response.

    The context stands before or after the question, as in the record, which is what raters saw.
    """
    rest = {n: value for n, value in fields.items() if not RESPONSE.fullmatch(n) and value}
    known = {plain(name): name for name in reversed(rest)}
    systems = [known[name] for name in ("system", "systemprompt") if name in known][:1]
    beside = [known[name] for name in ("context",) if name in known]
    others = [name for name in rest if name not in (*systems, *beside)]
    asked = next((known[name] for name in PROMPTS if name in known), None)
    if asked is None:
        if len(others) != 1:
            raise RowFault(
                f'field "fields": expected one that holds the prompt, found '
                f'{quoted(others) or "none"}; name it "prompt" or "instruction"'
            )
        asked = others[0]
    if plain(asked) == "instruction" and "input" in known:
        beside.append(known["input"])
    texts = [(name, rest[name]) for name in rest if name in (asked, *beside)]
    turns = [{"role": "system", "content": rest[name]} for name in systems]
    prompt = _joined(asked, texts, turns)
    return prompt, {n: rest[n] for n in rest if n not in (asked, *systems, *beside)}


def _joined(asked: str, texts: list[tuple[str, Any]], before: list[Row]) -> Prompt:
    """The prompt: the `texts` of question and context in one, after the messages `before` it."""
    prompt = prompt_of(dict(texts)[asked], f"fields.{asked}")
    question = last_message(prompt)
    whole = "\n\n".join(
        question if name == asked else text_of(value, f"fields.{name}") for name, value in texts
    )
    if isinstance(prompt, str) and not before:
        return whole
    turns = [{"role": "user"}] if isinstance(prompt, str) else prompt
    return prompt_of([*before, *turns[:-1], turns[-1] | {"content": whole}], "fields")


def plain(name: str) -> str:
    """A name without signs and capitals: "Response 1" is response1."""
    return re.sub(r"[\W_]", "", name).casefold()
