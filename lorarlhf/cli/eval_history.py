"""What the candidates of `eval` were trained with, read from the records of their runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lorarlhf.data.file_formats import read_rows
from lorarlhf.data.readers import as_conversation
from lorarlhf.data.twins import normal
from lorarlhf.project.lineage import SourceRun
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json

Row = dict[str, Any]
LONGEST_LINE = 10
"""Runs that are followed backwards, from each to the one that it started from."""


def made_with(source: SourceRun) -> tuple[str, ...]:
    """The reward runs and functions that a run, or the runs it started from, was trained with.

    Runs as absolute folders, functions as `FILE.py:NAME` with an absolute file.
    """
    found: list[str] = []
    for folder, config in _line(source):
        if (folder / "adapters" / "reward").is_dir():
            found.append(str(folder.resolve()))
        if isinstance(config.get("reward"), str):
            found.append(str(Path(config["reward"]).expanduser().resolve()))
        found += [absolute_function(str(name)) for name in config.get("reward_function") or ()]
    return tuple(dict.fromkeys(found))


def learned_prompts(source: SourceRun, prompts: Sequence[Any]) -> int:
    """How many of the prompts a run, or the runs it started from, has learned from.

    Files that are gone count for nothing.
    """
    learned: set[str] = set()
    for _, config in _line(source):
        if isinstance(config.get("data"), str):
            learned |= set(map(normal, _prompts_in(config["data"])))
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


def _prompts_in(file: str) -> Iterator[Any]:
    try:
        rows = read_rows(file)
    except UserError:
        return
    for _, row in rows:
        prompt, messages = row.get("prompt"), row.get("messages")
        if isinstance(prompt, str | list):
            yield as_conversation(prompt)
        elif isinstance(messages, list) and messages:
            yield messages[:1]


def _line(source: SourceRun) -> Iterator[tuple[Path, Row]]:
    """The run of an adapter and its settings, then the run that it started from, and so on."""
    folder = Path(run_folder(source))
    for _ in range(LONGEST_LINE):
        config = read_json(folder / "run.json").get("config")
        if not isinstance(config, dict):
            return
        yield folder, config
        if not isinstance(config.get("init"), str):
            return
        folder = Path(config["init"]).expanduser()


def run_folder(source: SourceRun) -> str:
    """The run that an adapter lies in, absolute; an adapter outside of a run is its own."""
    adapter = source.adapter.resolve()
    return str(adapter.parents[1] if adapter.parent.name == "adapters" else adapter)


def absolute_function(spec: str) -> str:
    """`FILE.py:NAME` with an absolute file."""
    file, _, name = spec.rpartition(":")
    return f"{Path(file).expanduser().resolve()}:{name}"
