"""What the candidates of `eval` were trained with, read from the records of their runs."""

from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from lorarlhf.data.file_formats import read_rows
from lorarlhf.data.readers import as_conversation
from lorarlhf.data.twins import normal
from lorarlhf.project.lineage import SourceRun
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json

Row = dict[str, Any]
LEVELS = 3
"""Folders around a run in which a relative path of its record is looked for."""


def made_with(source: SourceRun) -> tuple[str, ...]:
    """The reward runs and functions that a run, or the runs it started from, was trained with.

    Runs as absolute folders, functions as `FILE.py:NAME` with an absolute file.
    """
    found: list[str] = []
    for folder, config in _history(source):
        if (folder / "adapters" / "reward").is_dir():
            found.append(str(folder.resolve()))
        found += [str(place) for place in _places(folder, config.get("reward"))]
        for spec in config.get("reward_function") or ():
            file, _, name = str(spec).rpartition(":")
            found += [f"{place}:{name}" for place in _places(folder, file)]
    return tuple(dict.fromkeys(found))


def learned_prompts(source: SourceRun, prompts: Sequence[Any]) -> int:
    """How many of the prompts a run, or the runs it was made from, has learned from.

    The rows of its reward run count, too. Files that are gone count for nothing.
    """
    learned: set[str] = set()
    for folder, config in _history(source):
        for name in ("data", "prompts"):
            for file in _places(folder, config.get(name)):
                learned |= set(map(normal, _prompts_in(file)))
    return sum(normal(as_conversation(prompt)) in learned for prompt in prompts)


def learned_note(sources: dict[str, SourceRun], prompts: Sequence[Any]) -> str:
    """A sentence on held-out prompts that candidates have learned from; "" if there are none."""
    counts = {name: learned_prompts(source, prompts) for name, source in sources.items()}
    found = [f"{count} by {name}" for name, count in counts.items() if count]
    if not found:
        return ""
    return (
        f"Some of the {len(prompts)} prompts were also learned from: {', '.join(found)}. Answers "
        "to these may be better than to new prompts."
    )


def _prompts_in(file: Path) -> Iterator[Any]:
    try:
        rows = read_rows(file)
    except UserError:
        return
    for _, row in rows:
        prompt, messages = row.get("prompt"), row.get("messages")
        if isinstance(prompt, str | list):
            yield as_conversation(prompt)
        elif isinstance(messages, list) and messages:
            yield list(takewhile(lambda turn: turn.get("role") != "assistant", messages))


def _history(source: SourceRun) -> Iterator[tuple[Path, Row]]:
    """The run of an adapter and its settings, then all runs that it was made from.

    That is the run that it started from (`init`), the one of its reward role, and theirs.
    """
    left, seen = [Path(run_folder(source))], set()
    while left:
        folder = left.pop(0)
        config = read_json(folder / "run.json").get("config")
        if folder in seen or not isinstance(config, dict):
            continue
        seen.add(folder)
        yield folder, config
        for name in ("init", "reward"):
            places = _places(folder, config.get(name))
            left += [Path(_run_of(place)) for place in places]


def _places(folder: Path, recorded: Any) -> list[Path]:
    """Where a file or folder can be that a run's record names; absolute.

    Older versions recorded paths as they were typed. A relative one is looked for in the working
    directory, and in the folder of the run and those around it: of the runs, of the project, and
    where the project lies. All places where it exists count, because a judge that may not be
    independent should not pass as independent.
    """
    if not isinstance(recorded, str) or not recorded:
        return []
    path = Path(recorded).expanduser()
    around = [Path.cwd(), folder, *folder.resolve().parents[:LEVELS]]
    found = [place.resolve() for start in around if (place := start / path).exists()]
    return list(dict.fromkeys(found)) or [path.resolve()]


def run_folder(source: SourceRun) -> str:
    """The run that an adapter lies in, absolute; an adapter outside of a run is its own."""
    return _run_of(source.adapter.resolve())


def _run_of(folder: Path) -> str:
    return str(folder.parents[1] if folder.parent.name == "adapters" else folder)


def absolute_function(spec: str) -> str:
    """`FILE.py:NAME` with an absolute file."""
    file, _, name = spec.rpartition(":")
    return f"{Path(file).expanduser().resolve()}:{name}"
