"""What an upload may hold: the files of an export, without paths of this machine and without keys.

The check comes before the first byte leaves, and names the file, the line and what was found.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lorarlhf.runtime.errors import UserError

ENDINGS = {
    *(".md", ".txt", ".json", ".jsonl", ".parquet", ".jinja"),
    *(".safetensors", ".gguf", ".model"),
}
NAMES = re.compile(r"Modelfile|(?:LICEN[SC]E|NOTICE)[\w-]*")
"""Files without an ending; a base may come with `LICENSE-MODEL`."""
WORDS = {"tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"}
"""Lists of tokens: what looks like a path or a key there is one of the base's own tokens."""
TEXTS = {".md", ".txt", ".json", ".jsonl", ".jinja", ""}
_KEYS = re.compile(
    r"(?<![A-Za-z0-9_-])(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}"
    r"|github_pat_\w{30,}|AKIA[0-9A-Z]{16})"
)
_PATHS = re.compile(r"(?<![\w/:.<~-])(?:/[\w.@+-]+){2,}|(?<!\w)[A-Za-z]:\\[\w.@+\\ -]+")


def check_upload(folder: str | Path, token: str = "") -> list[Path]:
    """The files of a folder that will be uploaded, relative to it.

    Args:
        token: the key that the upload uses, which no file may hold.

    Raises:
        UserError: the folder holds a file that is no part of an export, or a text with a path of
            this machine or with a key.
    """
    place = Path(folder)
    found = []
    for file in sorted(place.rglob("*")):
        if file.is_dir() and not file.is_symlink():
            continue
        name = file.relative_to(place)
        if not _belongs(file, name):
            raise UserError(
                f"{file} is no part of an export, so nothing was uploaded. Take it out of the "
                "folder."
            )
        _check_text(file, token)
        found.append(name)
    if not found:
        raise UserError(f"{place} holds no files, so nothing was uploaded.")
    return found


def _belongs(file: Path, name: Path) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    known = file.suffix.lower() in ENDINGS or NAMES.fullmatch(file.name)
    return file.is_file() and not file.is_symlink() and not hidden and bool(known)


def _check_text(file: Path, token: str) -> None:
    if file.suffix.lower() not in TEXTS:
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if (token and token in line) or (file.name not in WORDS and _KEYS.search(line)):
                raise UserError(
                    f"{file}, line {number}: there is a key or an access token in it, so nothing "
                    "was uploaded. Take it out and upload the folder again."
                )
    if file.suffix != ".jsonl" and file.name not in WORDS:  # rows are what people have typed
        for where, path in _paths_in(file):
            raise UserError(
                f"{file}, {where}: {path} is a path of this machine, so nothing was uploaded. "
                "Replace it with a name."
            )


def _paths_in(file: Path) -> Iterator[tuple[str, str]]:
    """Where paths of this machine stand, and the paths."""
    text = file.read_text(encoding="utf-8", errors="replace")
    if file.suffix == ".json":
        try:
            yield from _values(json.loads(text), "")
            return
        except ValueError:
            pass  # searched as any other text
    for number, line in enumerate(text.splitlines(), start=1):
        for found in _PATHS.findall(line):
            if _is_here(found):
                yield f"line {number}", found


def _values(value: Any, field: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _values(one, f"{field}.{name}" if field else str(name))
    elif isinstance(value, list):
        for one in value:
            yield from _values(one, field)
    elif isinstance(value, str) and is_path(value):
        yield f'field "{field}"', value


def is_path(value: str) -> bool:
    """Whether a whole value is an absolute path of some system, with a folder in it."""
    if "\n" in value:
        return False
    posix, windows = PurePosixPath(value), PureWindowsPath(value)
    return (posix.is_absolute() and len(posix.parts) > 2) or (
        bool(windows.drive) and windows.is_absolute() and len(windows.parts) > 1
    )


def _is_here(path: str) -> bool:
    """Whether a path in a text leads to something on this machine."""
    home = os.path.expanduser("~")
    inside = len(home) > 1 and path.startswith(home + os.sep)
    return inside or os.path.exists(path)
