"""The parser of model text: Markdown without the rules that hide or change characters.

Markdown swallows backslashes, entities, the newlines inside a paragraph and the definitions of
links, and it takes formulas apart. These rules leave all of that as the model wrote it.
"""

import re
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, heading
from markdown_it.rules_inline import StateInline, backtick, link

UNUSED = (
    *("image", "entity", "autolink", "html_inline"),  # an image would be fetched
    *("reference", "lheading", "html_block"),
)
FORMULAS = (("$$", "$$"), ("\\(", "\\)"), ("\\[", "\\]"), ("\\begin{", "\\end{"))
BLOCK_FORMULAS = tuple(pair for pair in FORMULAS if pair[0] != "\\(")
MOST_FORMULA_LINES = 100
_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
# As pandoc reads it, so that "$5 and $6" is no formula.
_DOLLARS = re.compile(r"\$(?!\s)[^$\n]*?[^\s$\\]\$(?!\d)")
_WEB = ("http", "https", "mailto")


@cache
def parser() -> MarkdownIt:
    """The parser. Its tokens have what the standard ones lack:

    - `code_inline` and `link_close` have `meta["source"]`, the characters they stand for;
    - `formula` (inline) and `formula_block` have the formula as `content`.
    """
    rules = MarkdownIt("js-default", {"html": False, "linkify": False, "typographer": False})
    rules.disable(UNUSED)
    rules.validateLink = _leads_to_the_web  # type: ignore[assignment]
    rules.inline.ruler.at("newline", _newline)
    rules.inline.ruler.at("escape", _escape)
    rules.inline.ruler.at("backticks", _code)
    rules.inline.ruler.at("link", _link)
    rules.inline.ruler.before("escape", "formula", _formula)
    # A line of code such as "# done" right after another line is no heading.
    rules.block.ruler.at("heading", heading, {"alt": []})
    rules.block.ruler.before(
        "fence", "formula_block", _formula_block, {"alt": ["paragraph", "blockquote", "list"]}
    )
    return rules


def _leads_to_the_web(address: str) -> bool:
    scheme = re.match(r"\s*([^/?#]*):", address)
    return scheme is None or scheme[1].lower() in _WEB


def _newline(state: StateInline, silent: bool) -> bool:
    """A newline stays, and so do the spaces around it."""
    if state.src[state.pos] != "\n":
        return False
    if not silent:
        state.push("softbreak", "br", 0)
    state.pos += 1
    return True


def _escape(state: StateInline, silent: bool) -> bool:
    """A backslash keeps punctuation from being markup; both characters are shown."""
    two = state.src[state.pos : state.pos + 2]
    if two[0] != "\\" or two[1:] not in _PUNCTUATION:
        return False
    if not silent:
        state.pending += two
    state.pos += 2
    return True


def _code(state: StateInline, silent: bool) -> bool:
    start, count = state.pos, len(state.tokens)
    found = backtick(state, silent)
    if found and len(state.tokens) > count and state.tokens[-1].type == "code_inline":
        state.tokens[-1].meta["source"] = state.src[start : state.pos]
    return found


def _link(state: StateInline, silent: bool) -> bool:
    start = state.pos
    if not link(state, silent):
        return False
    if not silent:
        end = state.pos
        bracket = state.md.helpers.parseLinkLabel(state, start, True)
        state.pos = end
        state.tokens[-1].meta["source"] = state.src[bracket:end]
    return True


def _formula(state: StateInline, silent: bool) -> bool:
    end = _end_of_formula(state.src, state.pos, state.posMax)
    if end < 0:
        return False
    if not silent:
        state.push("formula", "", 0).content = state.src[state.pos : end]
    state.pos = end
    return True


def _end_of_formula(text: str, start: int, stop: int) -> int:
    """Where the formula ends that begins at `start`; -1 if there is none."""
    for opening, closing in FORMULAS:
        if text.startswith(opening, start):
            end = text.find(closing, start + len(opening), stop)
            if end >= 0 and closing == "\\end{":
                end = text.find("}", end, stop)
                return end + 1 if end >= 0 else -1
            return end + len(closing) if end >= 0 else -1
    found = _DOLLARS.match(text, start, stop)
    return found.end() if found else -1


def _formula_block(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    """Lines from one that begins with a formula's opening to one that ends with its closing."""
    if state.is_code_block(first):
        return False
    opening = _line(state, first)
    for begins, ends in BLOCK_FORMULAS:
        # A formula in one line is a part of its paragraph.
        if not opening.startswith(begins) or ends in opening[len(begins) :]:
            continue
        for number in range(first + 1, min(last, first + MOST_FORMULA_LINES)):
            _, found, rest = _line(state, number).rpartition(ends)
            if found and (not rest or ends == "\\end{" and re.fullmatch(r"[\w*]+\}", rest)):
                return silent or _push_formula(state, first, number + 1)
            if found:
                return False
    return False


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]].rstrip()


def _push_formula(state: StateBlock, first: int, after: int) -> bool:
    state.line = after
    token = state.push("formula_block", "", 0)
    token.content = state.getLines(first, after, state.blkIndent, True)
    token.map = [first, after]
    return True
