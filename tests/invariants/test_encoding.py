"""Text files have an encoding, and files are renamed in one way: both differ between systems."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("lorarlhf", "ui", "recipes", "benchmarks")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
TEXT = {"read_text": 0, "write_text": 1}  # where the encoding stands if it has no name
LIBRARIES = {"os", "archive", "opener", "Record", "webbrowser"}  # their `open` is another


def calls(source: str) -> Iterator[tuple[ast.Call, str, str]]:
    """Every call with the name that is called, and the name of what it is called on."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute):
                owner = called.value
                before = owner.attr if isinstance(owner, ast.Attribute) else ""
                yield node, called.attr, owner.id if isinstance(owner, ast.Name) else before
            elif isinstance(called, ast.Name):
                yield node, called.id, ""


def without_encoding(source: str) -> list[str]:
    """The calls that read or write text in whatever encoding the system has."""
    found = []
    for call, name, owner in calls(source):
        named = any(word.arg == "encoding" for word in call.keywords)
        if name in TEXT and not named and len(call.args) <= TEXT[name]:
            found.append(ast.unparse(call))
        if name == "open" and owner not in LIBRARIES and not named:
            modes = [a.value for a in call.args if isinstance(a, ast.Constant)]
            if not any("b" in mode for mode in modes if isinstance(mode, str)):
                found.append(ast.unparse(call))
    return found


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("path.read_text()", True),
        ("path.read_text('utf-8')", False),
        ("path.write_text('x')", True),
        ("path.write_text('x', encoding='utf-8')", False),
        ("open(file, 'w')", True),
        ("file.open()", True),
        ("file.with_suffix('.log').open('ab')", False),
        ("open(file, 'a', encoding='utf-8')", False),
        ("os.open(file, 0)", False),
    ],
)
def test_the_check_finds_what_it_looks_for(line: str, wrong: bool) -> None:
    assert bool(without_encoding(line)) == wrong


def test_every_text_file_is_opened_with_its_encoding() -> None:
    """On Windows the default is the code page: cp1252 reads UTF-8 as other letters."""
    found = {
        file.relative_to(ROOT).as_posix(): wrong
        for file in FILES
        if (wrong := without_encoding(file.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_files_are_renamed_in_one_place() -> None:
    """Windows refuses a rename while somebody reads the file; `move` tries again."""
    found = [
        f"{file.relative_to(ROOT).as_posix()}: {ast.unparse(call)}"
        for file in FILES
        for call, name, owner in calls(file.read_text(encoding="utf-8"))
        if (name in ("replace", "rename", "renames") and owner == "os")
        or (name == "rename" and owner != "os")
    ]
    assert found == ["lorarlhf/runtime/files.py: os.replace(source, target)"]
