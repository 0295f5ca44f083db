"""A local model as judge: asked twice about each pair, with the sides swapped.

Models favour a side (Zheng et al. 2023, arXiv 2306.05685, section 3.3), so a verdict counts only if
it is the same in both orders; otherwise the pair is a tie. The verdict of one order is the likelier
of the letters A and B as the next token, so that even a small model gives one.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.oom import batches_by_length
from lorarlhf.backbone.sampler import pad_left
from lorarlhf.backbone.trunk import position_ids
from lorarlhf.data.readers import as_conversation
from lorarlhf.runtime.errors import UserError

PLACES = ("{prompt}", "{first}", "{second}")
TEMPLATE = """\
Two assistants answered the same message. Decide which answer is more helpful, correct and clear. \
The length of an answer does not matter, and neither does the order.

Message:
{prompt}

Answer A:
{first}

Answer B:
{second}

Which answer is better? Reply with one letter, A or B."""
LETTERS = ("A", "B")
CUE = "\nAnswer:"
"""Ends a question to a base without a chat template, so that a letter is a likely next token."""
MOST_TOKENS = 4096
"""Of a filled template; longer pairs are refused, because a cut answer can't be judged."""
BATCH_SIZE = 8


def read_template(path: str | Path | None) -> str:
    """The text of a judging template, by default `TEMPLATE`.

    Raises:
        UserError: the file can't be read, or one of `{prompt}`, `{first}`, `{second}` is not in it.
    """
    if path is None:
        return TEMPLATE
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--judge-prompt {path} can't be read: {error}.") from error
    missing = [place for place in PLACES if place not in text]
    if missing:
        raise UserError(
            f"--judge-prompt {path}: {', '.join(missing)} is missing. The template has the places "
            f"{', '.join(PLACES)}, and asks for the letter A (the first answer is better) or B."
        )
    return text.strip()


def fill(template: str, prompt: Any, first: str, second: str) -> str:
    """The template with a prompt and two answers; braces inside of them stay as they are."""
    values = dict(zip(PLACES, (_as_text(prompt), first, second), strict=True))
    parts, rest = [], template
    while rest:
        found = [(rest.index(place), place) for place in PLACES if place in rest]
        if not found:
            break
        at, place = min(found)
        parts += [rest[:at], values[place]]
        rest = rest[at + len(place) :]
    return "".join([*parts, rest])


def _as_text(prompt: Any) -> str:
    """A prompt as the judge reads it: turns of a conversation each behind its role."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def judge_pairs_by_model(
    backbone: Backbone,
    template: str,
    prompts: Sequence[Any],
    ours: Sequence[str],
    theirs: Sequence[str],
    progress: Callable[[int], object] = lambda done: None,
) -> list[int]:
    """Whether each of our answers is better than theirs: +1, 0 (tie) or -1.

    Args:
        backbone: the judging base, which is asked without adapters, through its chat template if
            it has one.
        prompts, ours, theirs: n each.
        progress: called with the number of questions answered since the last call, of 2n.

    Raises:
        UserError: a filled template is longer than `MOST_TOKENS`, or the tokenizer has no single
            tokens for A and B.
    """
    rows = list(zip(prompts, ours, theirs, strict=True))
    asked = [fill(template, prompt, a, b) for prompt, a, b in rows]
    swapped = [fill(template, prompt, b, a) for prompt, a, b in rows]
    found = preferred_side(backbone, [*asked, *swapped], progress)
    return [
        forth if forth == -back else 0
        for forth, back in zip(found[: len(rows)], found[len(rows) :], strict=True)
    ]


@torch.no_grad()
def preferred_side(
    backbone: Backbone, questions: Sequence[str], progress: Callable[[int], object]
) -> list[int]:
    """For each question 1 if the letter A is likelier as the next token than B, -1 if B is, or 0.

    A base without a chat template continues the text, so the question ends with `CUE` for it.
    """
    chats = backbone.tokenizer.chat_template is not None
    # Some tokenizers write the space with the letter and some before it, so the letter is cut off.
    encoded = [
        backbone.encode(as_conversation(q)) if chats else backbone.encode(f"{q}{CUE} A")[:-1]
        for q in questions
    ]
    _check_lengths(encoded)
    letters = letter_tokens(backbone.tokenizer)
    found: dict[int, int] = {}

    def forward(rows: Sequence[int]) -> torch.Tensor:
        ids, mask = pad_left([encoded[i] for i in rows], backbone.pad_id, backbone.device)
        output = backbone.causal(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position_ids(mask),
            use_cache=False,
            logits_to_keep=1,
        )
        return output.logits[:, -1, letters].float()  # (b, 2)

    with backbone.role("base"):
        for rows, scores in batches_by_length(list(map(len, encoded)), BATCH_SIZE, forward):
            for i, (a, b) in zip(rows, scores.tolist(), strict=True):
                found[i] = (a > b) - (a < b)
            progress(len(rows))
    return [found[i] for i in range(len(questions))]


def _check_lengths(encoded: Sequence[Sequence[int]]) -> None:
    """Refuse questions that are too long to be read."""
    lengths = [len(ids) for ids in encoded if len(ids) > MOST_TOKENS]
    if lengths:
        raise UserError(
            f"{len(lengths)} of {len(encoded)} questions to the judging model are longer than "
            f"{MOST_TOKENS} tokens, the longest with {max(lengths)}: the template, the prompt and "
            "both answers together. Shorten the prompts, the answers (--max-new-tokens) or the "
            "template (--judge-prompt)."
        )


def letter_tokens(tokenizer: Any) -> list[int]:
    """The tokens of A and B as an answer, or behind `CUE` for a base without a chat template.

    Raises:
        UserError: the tokenizer does not tell them apart by one token.
    """
    cue = "" if tokenizer.chat_template is not None else f"{CUE} "
    a, b = (tokenizer(cue + x, add_special_tokens=False)["input_ids"] for x in LETTERS)
    if a[:-1] != b[:-1] or a == b or (not cue and len(a) != 1):
        raise UserError(
            "The judging model does not write the letters A and B as one token each, so its "
            "verdict can't be read. Name another --judge-model."
        )
    return [int(a[-1]), int(b[-1])]
