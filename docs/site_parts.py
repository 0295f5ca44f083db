"""Parts of the site that are written from the code: the navigation, every setting and command.

A page names such a part in a comment, which a git host does not show: `<!-- settings -->`.
"""

import argparse
import inspect
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from lorarlhf.cli.parser import BACKBONE_KEYS, build_parser
from lorarlhf.project.settings import BACKBONE_LIMITS
from lorarlhf.project.stage import Stage
from lorarlhf.runtime.setting_types import Setting
from lorarlhf.stages.table import STAGES

INDEX = "docs/index"
COLUMNS = 88
_LISTED = re.compile(r"^- \[([^\]]+)\]\(([^)#]+)\.md\)", re.MULTILINE)
_FIELD = re.compile(r"(\w+): .*?(?:\s# (.*))?$")
_ARGUMENT = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*)$")
KINDS = {int: "whole number", float: "number", bool: "true or false", str: "text", list: "list"}


# ---- the navigation


def navigation(index: str) -> dict[str, dict[str, str]]:
    """The pages that docs/index.md lists under each of its headings.

    Returns:
        for each heading, the pages' titles by their names from the top of the checkout, without
        an ending: `docs/start`.
    """
    found = {}
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        caption, _, body = section.partition("\n")
        folder = posixpath.dirname(INDEX)
        found[caption] = {
            posixpath.normpath(posixpath.join(folder, page)): title
            for title, page in _LISTED.findall(body)
        }
    return found


def toctrees(index: str) -> str:
    """The navigation as Sphinx reads it, a hidden tree for each section."""
    trees = []
    for caption, pages in navigation(index).items():
        lines = [f"{title} </{page}>" for page, title in pages.items()]
        trees += ["```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```", ""]
    return "\n".join(trees)


# ---- settings


def settings_text() -> str:
    """A table for each stage, and one for the settings of the base that all share."""
    parts = []
    for stage in STAGES.values():
        table = _table(stage.own_settings(), texts_of_stage(stage))
        parts.append(f"### {stage.name}\n\n{_capitalised(stage.summary)}.\n\n{table}")
    base = "### The base\n\nOf every command that loads one, and of `project.yaml`."
    parts.append(f"{base}\n\n{_table(*base_settings())}")
    return "\n\n".join(parts)


def texts_of_stage(stage: Stage) -> dict[str, str]:
    """What each setting of a stage is, by name."""
    kinds = [stage.settings_class()]
    if stage.config.startswith("lorarlhf."):
        kinds.append(stage.config_class())
    return {name: text for kind in kinds for name, text in texts_of(kind).items()}


def texts_of(kind: type) -> dict[str, str]:
    """What each field of a settings class is: its metadata, or the comment behind or above it."""
    texts: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if owner.__module__.startswith("lorarlhf."):
            texts |= _comments(inspect.getsource(owner))
    return texts | {
        field.name: field.metadata["help"] for field in fields(kind) if "help" in field.metadata
    }


def _comments(source: str) -> dict[str, str]:
    texts, above = {}, list[str]()
    for line in map(str.strip, source.splitlines()):
        if line.startswith("# "):
            above.append(line.removeprefix("# "))
            continue
        found = _FIELD.match(line)
        if found and (text := " ".join([*above, found[2] or ""]).strip()):
            texts[found[1]] = text
        above = []
    return texts


def base_settings() -> tuple[list[Setting], dict[str, str]]:
    """The settings of `Backbone.load`, and what each of them is, from its docstring."""
    from lorarlhf.backbone.base import Backbone

    texts: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(Backbone.load.__doc__ or "").splitlines():
        if found := _ARGUMENT.match(line):
            names = found[1].split(", ")
            texts |= dict.fromkeys(names, found[2])
        elif line.startswith(" " * 8):
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    known = inspect.signature(Backbone.load).parameters
    settings = [
        Setting(name, str, known[name].default, BACKBONE_LIMITS.get(name))
        for name in re.findall(r"\w+", BACKBONE_KEYS)
    ]
    return settings, texts


def _table(settings: Iterable[Setting], texts: dict[str, str]) -> str:
    rows = ["| setting | default | values | what it is |", "|---|---|---|---|"]
    for known in settings:
        cells = (f"`{known.name}`", _default(known.default), _values(known))
        text = _capitalised(texts.get(known.name, ""))
        rows.append(f"| {' | '.join(cells)} | {_cell(text)} |")
    return "\n".join(rows)


def _default(value: Any) -> str:
    if value is None:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _values(known: Setting) -> str:
    words = next((text for kind, text in KINDS.items() if kind in _members(known.kind)), "")
    if known.limit is None:
        return words
    numeric = words in (KINDS[int], KINDS[float])
    return _cell(f"{words}, {known.limit.words}" if numeric else known.limit.words)


def _members(kind: Any) -> Sequence[Any]:
    return getattr(kind, "__args__", (kind,))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


# ---- commands


def commands_text() -> str:
    """The help of every command, as the terminal shows it."""
    with _columns(COLUMNS):
        return "\n\n".join(
            f"### lorarlhf {name}\n\n```text\n{sub.format_help().rstrip()}\n```"
            for name, sub in commands()
        )


def commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command with its parser."""
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


@contextmanager
def _columns(count: int) -> Iterator[None]:
    """The width for which argparse breaks lines."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(count)
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before


# ---- Sphinx

SIGNATURES = {
    "PPOConfig": "(output_dir, **settings)",  # otherwise with all of transformers' arguments
    "Backbone": "",  # made by `Backbone.load`
}
"""Signatures of classes that differ from those in the code."""
PARTS: dict[str, Callable[[], str]] = {"settings": settings_text, "commands": commands_text}


def write_parts(app: Any, page: str, source: list[str]) -> None:
    """Put the parts into a page before it is parsed."""
    if page == INDEX:
        source[0] += f"\n\n{toctrees(source[0])}\n"
    for name, write in PARTS.items():
        mark = f"<!-- {name} -->"
        if mark in source[0]:
            source[0] = source[0].replace(mark, write())


def short_signature(app: Any, what: str, name: str, *rest: Any) -> tuple[str, None] | None:
    """`SIGNATURES`, where there is one."""
    given = SIGNATURES.get(name.rpartition(".")[2])
    return None if given is None else (given, None)


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    from pygments.lexers.data import JsonLexer
    from pygments.lexers.special import TextLexer

    app.add_lexer("jsonl", JsonLexer)
    app.add_lexer("csv", TextLexer)
    app.connect("source-read", write_parts)
    app.connect("autodoc-process-signature", short_signature)
    return {"parallel_read_safe": True}
