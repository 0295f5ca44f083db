"""What a run's folder held before: kept aside for a new run, or gone on with."""

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_jsonl
from lorarlhf.runtime.terminal import log_to_stderr

Row = dict[str, Any]
FILES = ("run.json", "metrics.jsonl", "samples.jsonl", "summary.json", "report.html")
RESULTS = (*FILES, "votes.safetensors", "checkpoints")


def check_writable(folder: Path) -> None:
    """See that a run could write here, without making anything.

    Raises:
        UserError: a file is in the way, or the folder is not ours to write to.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(
            f"The output folder {folder} can't be written: {there} is no folder, or not yours to "
            "write to. Name another one with --out."
        )


def archive_earlier_run(folder: Path) -> None:
    """Keep an earlier run's results in `earlier-N`: a new one must not be mixed with them.

    Adapters are copied, not moved: the new run may start from them.
    """
    if not any((folder / name).exists() for name in ("metrics.jsonl", "checkpoints")):
        return
    number = next(n for n in itertools.count(1) if not (folder / f"earlier-{n}").exists())
    kept = folder / f"earlier-{number}"
    kept.mkdir()
    if (folder / "adapters").is_dir():
        shutil.copytree(folder / "adapters", kept / "adapters")
    for name in RESULTS:
        if (folder / name).exists():
            os.replace(folder / name, kept / name)
    log_to_stderr(f"{folder} holds an earlier run; it is kept in {kept}.")


def log_changed_settings(folder: Path, config: Row) -> None:
    """Say which settings an interrupted run had otherwise."""
    before = read_json(folder / "run.json").get("config", {})
    # Through JSON, as the earlier settings went.
    now = json.loads(json.dumps(config, default=str))
    changed = [
        f"{name} was {before[name]} and is {now[name]}"
        for name in now
        if name in before and before[name] != now[name]
    ]
    if changed:
        log_to_stderr(f"Going on with other settings: {'; '.join(changed)}.")


def drop_later_rows(folder: Path, stage: str = "ppo") -> None:
    """Drop what an interrupted run logged after its last checkpoint: those steps run again."""
    from lorarlhf.runtime.checkpoints import newest_intact, step_of

    whole = newest_intact(folder / "checkpoints")
    step = step_of(whole) if whole else -1

    def stays(row: Row) -> bool:
        if stage == "reward" and (row.get("stage") == stage or not whole):
            # The fit's own curve is measured once, before the training; the accuracy is the end's.
            return "heldout_accuracy" not in row and row.get("step", 0) <= step
        # In the demo's folder other stages have logged, too.
        return row.get("stage", stage) != stage or row.get("step", 0) <= step

    for name in ("metrics.jsonl", "samples.jsonl"):
        keep_rows(folder / name, stays)
    word = "update" if stage == "ppo" else "step"
    where = f"after {word} {step}" if whole else f"at the start: {folder} has no checkpoint yet"
    log_to_stderr(f"Going on {where}.")


def keep_rows(file: Path, wanted: Callable[[Row], bool]) -> None:
    """Write a JSONL file anew with the rows that are wanted; torn lines are dropped."""
    if file.exists():
        rows = _whole_rows(file.read_text(encoding="utf-8", errors="replace"))
        write_jsonl(file, [row for row in rows if wanted(row)])


def _whole_rows(text: str) -> Iterator[Row]:
    for line in text.split("\n"):
        with contextlib.suppress(ValueError):  # a line that a killed run left torn
            row = json.loads(line)
            if isinstance(row, dict):
                yield row
