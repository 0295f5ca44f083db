"""Where settings come from: a YAML file and `--set`, each value with its place."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lorarlhf.backbone.memory_plan import STAGES
from lorarlhf.runtime.errors import UserError


@dataclass(frozen=True)
class SettingValue:
    """A value and where it was set, for error messages."""

    name: str
    value: Any
    where: str


class _Yaml(yaml.SafeLoader):
    """YAML as people write it: 1e-4 is a number (YAML 1.1 reads it as text)."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def from_file(path: Path, stage: str = "") -> list[SettingValue]:
    """The entries of a YAML file for a stage; those of its `trl` mapping as `trl.FIELD`.

    One file can serve all stages: the mapping under a stage's name comes last, so it counts more.

    Raises:
        UserError: the file is missing, is not UTF-8, is not YAML, or names a key twice.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"The settings file {path} is not UTF-8 text. Save it as UTF-8.") from None
    except OSError as error:
        raise UserError(
            f"The settings file {path} can't be read ({error.strerror}). Check the path after "
            "--config."
        ) from error
    try:
        return list(_entries(path, text, stage))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        last = text.rstrip("\n").count("\n")  # a problem at the end is on the last line
        line = f", line {min(mark.line, last) + 1}" if mark else ""
        why = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(
            f"{path}{line}: this is not valid YAML ({why}). A settings file has one `key: value` a "
            "line."
        ) from error


def _entries(path: Path, text: str, stage: str) -> Iterator[SettingValue]:
    loader = _Yaml(text)
    node = loader.get_single_node()
    if node is None:  # nothing but comments
        return
    own: list[SettingValue] = []
    for name, value, place in _pairs(path, node):
        if name == "trl" and isinstance(value, yaml.MappingNode):
            yield from _trl_fields(path, loader, value)
        elif stage and name in STAGES:
            if name == stage and not _is_empty(value):
                own = list(_section(path, loader, value))
        else:
            yield SettingValue(name, loader.construct_object(value, deep=True), place)
    yield from own


def _section(path: Path, loader: _Yaml, node: yaml.Node) -> Iterator[SettingValue]:
    for name, value, place in _pairs(path, node):
        if name == "trl" and isinstance(value, yaml.MappingNode):
            yield from _trl_fields(path, loader, value)
        else:
            yield SettingValue(name, loader.construct_object(value, deep=True), place)


def _trl_fields(path: Path, loader: _Yaml, node: yaml.MappingNode) -> Iterator[SettingValue]:
    for name, value, place in _pairs(path, node):
        yield SettingValue(f"trl.{name}", loader.construct_object(value, deep=True), place)


def _pairs(path: Path, node: yaml.Node) -> Iterator[tuple[str, yaml.Node, str]]:
    """Key, value and place of each entry of a mapping."""
    if not isinstance(node, yaml.MappingNode):
        line = node.start_mark.line + 1
        raise UserError(f"{path}, line {line}: expected one `key: value` a line, found other YAML.")
    seen: dict[str, int] = {}
    for key, value in node.value:
        line, name = key.start_mark.line + 1, str(key.value)
        if name in seen:
            raise UserError(f"{path}, line {line}: {name} is on line {seen[name]} already.")
        seen[name] = line
        yield name, value, f"{path}, line {line}"


def _is_empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.value


def from_set(text: str) -> SettingValue:
    """`KEY=VALUE` with the value in YAML.

    Raises:
        UserError: it has no `=`, or its value is not YAML.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UserError(f"--set {text}: expected KEY=VALUE, for example --set learning_rate=1e-4.")
    try:
        return SettingValue(name.strip(), yaml.load(value, _Yaml), f"--set {text}")
    except yaml.YAMLError as error:
        why = getattr(error, "problem", None) or "not YAML"
        message = f"--set {text}: the value can't be read ({why}). Put it in quotes."
        raise UserError(message) from error


def with_trl_flattened(given: Sequence[SettingValue]) -> Iterator[SettingValue]:
    """The same values, with a `trl` mapping split into `trl.FIELD`.

    Raises:
        UserError: `trl` is not a mapping.
    """
    for item in given:
        if item.name != "trl":
            yield item
        elif isinstance(item.value, dict):
            yield from (SettingValue(f"trl.{k}", v, item.where) for k, v in item.value.items())
        elif item.value is not None:
            raise UserError(
                f"{item.where}: trl is a mapping of TRL's fields, found {shown(item.value)}."
            )


def shown(value: Any) -> str:
    """A value as YAML names it, for messages."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, str):
        return f'the text "{value}"'
    return f"a {'mapping' if isinstance(value, dict) else type(value).__name__}"
