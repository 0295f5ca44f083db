"""Model text as safe HTML, and answers that name their maker. Model text is never trusted."""

import html
import re
from functools import cache
from typing import Any

from markdown_it import MarkdownIt

from lorarlhf.preferences.records import Prompt

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


@cache
def _markdown() -> MarkdownIt:
    # "js-default" without raw HTML: tags are shown as text. No images, because the browser would
    # fetch an address that a model wrote.
    rules = MarkdownIt("js-default", {"html": False, "linkify": False, "typographer": False})
    rules.disable("image")
    rules.validateLink = _is_web_link  # type: ignore[assignment]
    rules.add_render_rule("link_open", _link)
    return rules


def _is_web_link(address: str) -> bool:
    scheme = re.match(r"\s*([^/?#]*):", address)
    return scheme is None or scheme[1].lower() in ("http", "https", "mailto")


def _link(self: Any, tokens: Any, place: int, options: Any, env: Any) -> str:
    tokens[place].attrSet("rel", "noopener noreferrer nofollow")
    tokens[place].attrSet("target", "_blank")
    return self.renderToken(tokens, place, options, env)


def as_html(text: str) -> str:
    """Markdown as HTML without scripts, images, raw tags or `javascript:` links."""
    return _markdown().render(text)


def prompt_html(prompt: Prompt) -> str:
    """A prompt as HTML; each message of a conversation stands under its role."""
    if isinstance(prompt, str):
        return as_html(prompt)
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return as_html(prompt[0]["content"])
    turns = (
        f'<p class="who">{html.escape(turn["role"])}</p>{as_html(turn["content"])}'
        for turn in prompt
    )
    return "".join(turns)


def names_its_maker(text: str) -> bool:
    """Whether an answer names its maker: a name of MAKERS shortly after words like "I am"."""
    return any(
        _SELF.search(text[max(0, found.start() - _NEAR) : found.end()])
        for found in _MAKER.finditer(text)
    )
