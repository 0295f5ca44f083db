"""Parsed model text as HTML in which every visible character of the text is shown.

Markup is drawn, and its signs stay beside it, faint: a heading has its `#`, a list the numbers that
the model wrote, a link its address. So nothing that a model wrote is hidden from who rates it.
"""

import html
import re
from collections.abc import Sequence

from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

LANGUAGES = frozenset(
    [
        "bash",
        "c",
        "c++",
        "cpp",
        "csharp",
        "css",
        "diff",
        "go",
        "haskell",
        "html",
        "java",
        "javascript",
        "js",
        "json",
        "kotlin",
        "lua",
        "php",
        "py",
        "python",
        "python3",
        "r",
        "rb",
        "rs",
        "ruby",
        "rust",
        "sh",
        "shell",
        "sql",
        "swift",
        "toml",
        "ts",
        "typescript",
        "xml",
        "yaml",
        "yml",
    ]
)
"""The languages that are coloured. A list, since some of pygments' lexers are slow on odd text."""
LONGEST_COLOURED = 20_000


def visible(markup: str) -> str:
    """The visible characters of HTML that this module made."""
    return "".join(html.unescape(re.sub(r"<[^>]*>", "", markup)).split())


def plain_html(lines: Sequence[str]) -> str:
    """Lines without any markup; "" if they are blank."""
    text = "\n".join(lines)
    return f'<div class="plain" dir="auto">{escaped(text)}</div>' if text.strip() else ""


def block_html(tokens: Sequence[Token], lines: Sequence[str]) -> str:
    """One block with everything in it.

    Args:
        tokens: the block's.
        lines: all lines of the text.
    """
    first, after = tokens[0].map or (0, 0)
    writer = _Writer(lines, first)
    writer.write(tokens)
    writer.signs_until(after)
    return "".join(writer.out)


class _Writer:
    """Writes tokens in their order, and before the text of each line the signs that precede it.

    Attributes:
        out: the HTML so far.
        next: the first line of the text that is not written yet.
    """

    def __init__(self, lines: Sequence[str], first: int) -> None:
        self.lines, self.next = lines, first
        self.out: list[str] = []

    def write(self, tokens: Sequence[Token]) -> None:
        table: list[Token] = []
        for token in tokens:
            if table or token.type == "table_open":
                table.append(token)
                if token.type == "table_close":
                    self._table(table)
                    table = []
            elif token.type == "inline":
                self._paragraph(token)
            elif token.type in ("fence", "code_block", "formula_block"):
                self._code(token)
            elif token.type == "hr":
                self.signs_until(token.map[1] if token.map else self.next, "div")
            elif not token.hidden:
                close = token.nesting == -1
                self.out.append(f"</{token.tag}>" if close else f'<{token.tag} dir="auto">')

    def signs_until(self, line: int, tag: str = "span") -> None:
        """Write lines that belong to no text, such as the `>` between two paragraphs."""
        missed = [text.strip() for text in self.lines[self.next : line]]
        self.out += [f"{_signs(text, tag)}\n" for text in missed if text]
        self.next = max(self.next, line)

    def _paragraph(self, token: Token) -> None:
        first = token.map[0] if token.map else self.next
        self.signs_until(first)
        texts = token.content.split("\n")
        begins, end = [], ""
        for text, line in zip(texts, self.lines[first:], strict=False):
            place = line.rfind(text.rstrip())
            begins.append(line[: max(place, 0)])
            end = line[place + len(text.rstrip()) :].strip()
        self.next = first + len(texts)
        # The spaces before a line are shown, unless they only say that it belongs to a list.
        spaces = token.level == 1
        signs = [f"{_signs(b.strip())} " if b.strip() else b * spaces for b in begins]
        self.out.append(signs[0] if signs else "")
        self.out.append(_inline(token.children or (), signs[1:]))
        self.out.append(f" {_signs(end)}" if end else "")

    def _code(self, token: Token) -> None:
        """A block of code, or a formula."""
        first, after = token.map or (0, 0)
        self.signs_until(first)
        self.next = after
        if token.type == "formula_block":
            before = self.lines[first].partition(token.content.strip().split("\n")[0])[0].strip()
            sign = _signs(before) if before else ""
            formula = escaped(token.content.strip("\n"))
            self.out.append(f'{sign}<div class="formula" dir="ltr">{formula}</div>')
        elif token.type == "code_block":
            self.out.append(f'<pre dir="ltr"><code>{escaped(token.content)}</code></pre>')
        else:
            inside = token.content.removesuffix("\n").count("\n") + bool(token.content)
            closed = after - first - 1 > inside
            opening = f"{_signs(self.lines[first].strip())}\n"
            closing = _signs(self.lines[after - 1].strip()) if closed else ""
            language = token.info.split(maxsplit=1)[0].lower() if token.info.strip() else ""
            code = f"<code>{code_html(token.content, language)}</code>"
            self.out.append(f'<pre dir="ltr">{opening}{code}{closing}</pre>')

    def _table(self, tokens: Sequence[Token]) -> None:
        """A table with the bars between its cells, and the line under its head."""
        rest, width = "", sum(token.type == "th_open" for token in tokens)
        for token in tokens:
            if token.type == "tr_open" and token.map:
                self.signs_until(token.map[0])
                rest, self.next = self.lines[token.map[0]].strip(), token.map[1]
            if token.type == "inline" and token.content:
                bars, _, rest = rest.partition(token.content)
                self.out.append((_signs(bars.strip()) + " ") if bars.strip() else "")
                self.out.append(_inline(token.children or (), ()))
            elif token.type == "tr_close":
                last = self.out.pop()  # the end of the last cell, which gets what is left
                self.out.append((" " + _signs(rest.strip()) if rest.strip() else "") + last)
                self.out.append("</tr>")
            elif token.type != "inline":
                align = f' style="{token.attrs["style"]}"' if "style" in token.attrs else ""
                close = token.nesting == -1
                tag = f"</{token.tag}>" if close else f'<{token.tag} dir="auto"{align}>'
                self.out.append(tag)
            if token.type == "thead_close":
                under, self.next = self.lines[self.next].strip(), self.next + 1
                cell = f'<td colspan="{width}">{_signs(under)}</td>'
                self.out.append(f"<tbody><tr>{cell}</tr></tbody>")


def _inline(tokens: Sequence[Token], next_lines: Sequence[str]) -> str:
    """Text with emphasis, code, links and formulas.

    Args:
        next_lines: what stands before the text of the second line, the third, and so on.
    """
    out: list[str] = []
    before = iter(next_lines)
    for token in tokens:
        source = str(token.meta.get("source", ""))
        if token.type == "softbreak":
            out.append("\n" + next(before, ""))
        elif token.type == "code_inline":
            out.append(f"<code>{escaped(source)}</code>")
        elif token.type == "formula":
            out.append(f'<span class="formula" dir="ltr">{escaped(token.content)}</span>')
        elif token.type == "link_open":
            href = html.escape(str(token.attrs["href"]))
            away = 'target="_blank" rel="noopener noreferrer nofollow"'
            out.append(f'{_signs("[")}<a href="{href}" {away}>')
        elif token.type == "link_close":
            out.append(f"</a>{_signs(source)}")
        elif token.nesting == 1:
            out.append(f"<{token.tag}>{_signs(token.markup)}")
        elif token.nesting == -1:
            out.append(f"{_signs(token.markup)}</{token.tag}>")
        else:
            out.append(escaped(token.content))
        for _ in range((source + token.content).count("\n")):
            next(before, "")
    return "".join(out)


def code_html(code: str, language: str) -> str:
    """Code with its parts in the classes of pygments; plain if the language is not in LANGUAGES."""
    if language not in LANGUAGES or len(code) > LONGEST_COLOURED:
        return escaped(code)
    lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    coloured = highlight(code, lexer, HtmlFormatter(nowrap=True, classprefix="code-"))
    return coloured if visible(coloured) == visible(escaped(code)) else escaped(code)


def _signs(text: str, tag: str = "span") -> str:
    return f'<{tag} class="signs">{escaped(text)}</{tag}>'


def escaped(text: str) -> str:
    """Text as HTML."""
    return html.escape(text, quote=False)
