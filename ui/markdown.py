"""Model text as safe HTML, and answers that name their maker. Model text is never trusted."""

import html
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from markdown_it.token import Token

from lorarlhf.data.readers import last_message
from lorarlhf.preferences.records import Prompt
from lorarlhf_ui.markdown_html import block_html, plain_html, visible
from lorarlhf_ui.markdown_parser import parser

LONGEST_EXCERPT = 160
MAKERS = (
    *("openai", "chatgpt", "gpt-?[345]\\w*", "anthropic", "claude", "bard", "gemini", "gemma"),
    *("meta ai", "llama", "mistral", "mixtral", "qwen", "deepseek", "phi-?[1234]\\w*"),
    *("smollm\\d?", "hugging ?face", "vicuna", "alpaca", "grok", "cohere"),
    # Companies that are known for other things too count only after "by".
    r"(?<=\bby )(?:google|microsoft|alibaba|amazon|apple|meta)",
)
_MAKER = re.compile(rf"\b({'|'.join(MAKERS)})\b", re.IGNORECASE)
_SELF = re.compile(
    r"\b(i am|i['\u2019]m|i was|my name is|call me|(trained|created|made|developed|built) by|"
    r"as an? (ai|language|large|virtual|assistant|model|chatbot))\b",
    re.IGNORECASE,
)
_NEAR = 60


@lru_cache(maxsize=64)  # while answers are written, all that stands beside them stays the same
def render(text: str) -> str:
    """What a model or a person wrote, as HTML for every page; "" for a blank text.

    Markdown is drawn where it is meant. Every visible character of the text is a visible character
    of the HTML, in the same order; a block of which that is not true is shown without any markup.
    The HTML has no scripts, images, raw tags or `javascript:` links. `data-raw` is the text itself.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
    if not text.strip():
        return ""
    lines = text.split("\n")
    out, done = [], 0
    for block in _blocks(parser().parse(text)):
        first, after = block[0].map or (done, done)
        out += [plain_html(lines[done:first]), _block(block, lines, max(first, done), after)]
        done = max(done, after)
    out.append(plain_html(lines[done:]))
    return f'<div class="written" dir="auto" data-raw="{html.escape(text)}">{"".join(out)}</div>'


def _blocks(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """The tokens of one block of the text after the other."""
    block: list[Token] = []
    for token in tokens:
        block.append(token)
        if token.level == 0 and token.nesting != 1:
            yield block
            block = []


def _block(block: Sequence[Token], lines: Sequence[str], first: int, after: int) -> str:
    written = lines[first:after]
    drawn = block_html(block, lines)
    whole = visible(drawn) == "".join("".join(written).split())
    return drawn if whole else plain_html(written)


def prompt_html(prompt: Prompt) -> str:
    """A prompt as HTML; each message of a conversation stands under its role."""
    if isinstance(prompt, str):
        return render(prompt)
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return render(prompt[0]["content"])
    turns = (
        f'<p class="who" dir="auto">{html.escape(turn["role"])}</p>{render(turn["content"])}'
        for turn in prompt
    )
    return "".join(turns)


def excerpt(prompt: Prompt) -> str:
    """The beginning of a prompt's last message, in one line; it is not escaped."""
    text = last_message(prompt)
    line = " ".join(text[: 4 * LONGEST_EXCERPT].split())
    return line if len(line) <= LONGEST_EXCERPT else f"{line[: LONGEST_EXCERPT - 1]}…"


def names_its_maker(text: str) -> bool:
    """Whether an answer names its maker: a name of MAKERS shortly after words like "I am"."""
    return any(
        _SELF.search(text[max(0, found.start() - _NEAR) : found.end()])
        for found in _MAKER.finditer(text)
    )
