"""Earlier results in a run's folder: archived before a new run, or continued by `--resume`."""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import Row, absolute_names, move, read_json, readable_rows, write_jsonl
from lorarlhf.runtime.terminal import log_to_stderr

FILES = ("run.json", "metrics.jsonl", "samples.jsonl", "summary.json", "report.html")
IN_USE = "Wait until that run ends, or name another folder with --out."
"""Advice for a folder that another run holds."""
LABEL = "label.json"
"""A run's title, and whether it is dropped: what a person said about it."""
COMPARISON = "comparison.jsonl"
"""Answers of a recipe before and after its training."""
TENSORBOARD, ROUNDS = "tensorboard", "rounds"
"""Folders of a run: the files of a tracker, and what each round of new answers learned from."""
RESULTS = (
    *(*FILES, LABEL, COMPARISON, "votes.safetensors", "words.jsonl", "checkpoints"),
    *(TENSORBOARD, ROUNDS),
)


def check_writable(folder: Path) -> None:
    """Check that a run could write here, without creating anything.

    Raises:
        UserError: a file is in the way, or the folder is not writable.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise UserError(
            f"The output folder {folder} can't be written: {existing} is not a folder, or you may "
            "not write to it. Name another one with --out."
        )


def archive_earlier_run(folder: Path) -> Path | None:
    """Move the results of an earlier run to `earlier-N`, so that a new run does not mix with them.

    Adapters are copied, because the new run may start from them.

    Returns:
        the folder `earlier-N`; None if there was no earlier run.
    """
    if not any((folder / name).exists() for name in ("metrics.jsonl", "checkpoints")):
        return None
    number = next(n for n in itertools.count(1) if not (folder / f"earlier-{n}").exists())
    kept = folder / f"earlier-{number}"
    kept.mkdir()
    if (folder / "adapters").is_dir():
        shutil.copytree(folder / "adapters", kept / "adapters")
    for name in RESULTS:
        if (folder / name).exists():
            move(folder / name, kept / name)
    log_to_stderr(f"{folder} has an earlier run; it is kept in {kept}.")
    return kept


def restore_earlier_run(folder: Path, kept: Path) -> None:
    """Undo `archive_earlier_run` after a new run that failed before it had any result.

    What a trainer refuses is known only when it is built, which is after the archiving.
    """
    if any((folder / name).exists() for name in ("metrics.jsonl", "checkpoints")):
        return
    for name in RESULTS:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        (folder / name).unlink(missing_ok=True)
        if (kept / name).exists():
            move(kept / name, folder / name)
    shutil.rmtree(kept)  # with the copies of the adapters, which stayed in their place
    log_to_stderr(f"The earlier run in {folder} is as it was.")


def log_changed_settings(folder: Path, config: Row) -> None:
    """Log which settings differ from those of the interrupted run."""
    before = read_json(folder / "run.json").get("config", {})
    # Through JSON, like the earlier settings. Older versions recorded files as they were typed.
    now = json.loads(json.dumps(config, default=str))
    changed = [
        f"{name} was {before[name]} and is {now[name]}"
        for name in now
        if name in before and absolute_names(before[name]) != absolute_names(now[name])
    ]
    if changed:
        log_to_stderr(f"Continuing with other settings: {'; '.join(changed)}.")


def fingerprint(rows: Sequence[Row]) -> Row:
    """How many rows there are (`count`), and a hash of them in their order (`sha256`)."""
    text = json.dumps(rows, sort_keys=True, default=str)
    return {"count": len(rows), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def begun_with(folder: Path, rows: list[Row], kind: str) -> list[Row]:
    """The rows that a stopped run began with, where others were appended to their file since.

    A prompt that somebody types on the Rate page is appended to the project's prompts. After any
    other change all rows come back, and `check_same_rows` refuses them.

    Args:
        kind: `rows` or `prompts`, as in run.json.
    """
    before = read_json(folder / "run.json").get(kind) or {"count": 0}
    first = rows[: before["count"]]
    return first if first and fingerprint(first) == before else rows


def check_same_rows(folder: Path, now: dict[str, Row]) -> None:
    """Check that a run that goes on has the rows and the prompts that it started with.

    Runs from before version 0.2 are not checked.

    Args:
        now: what `fingerprint` says of its `rows`, and of the `prompts` of rounds of new answers.

    Raises:
        UserError: they differ.
    """
    record = read_json(folder / "run.json")
    kept = [*(folder / "checkpoints").glob("*"), *(folder / ROUNDS).glob("*/pairs.jsonl")]
    for kind, found in now.items():
        if kept and (before := record.get(kind, found)) != found:
            raise _other_rows(folder, kind, before, found)


def _other_rows(folder: Path, kind: str, before: Row, now: Row) -> UserError:
    counts = f"there were {before['count']}, and now there are {now['count']}"
    if before["count"] == now["count"]:
        counts = f"there are {now['count']} as before, with other contents or in another order"
    return UserError(
        f"The {kind} have changed since the run in {folder} was stopped ({counts}), so it can't "
        f"continue. Bring the earlier {kind} back, or start a new run without --resume."
    )


def drop_later_rows(folder: Path, stage: str = "ppo") -> None:
    """Drop the rows that an interrupted run logged after its last checkpoint.

    Their steps run again.
    """
    from lorarlhf.runtime.checkpoints import newest_intact, step_of

    checkpoint = newest_intact(folder / "checkpoints")
    step = step_of(checkpoint) if checkpoint else -1

    def stays(row: Row) -> bool:
        if stage == "reward" and (row.get("stage") == stage or not checkpoint):
            # The fit's curve is logged once, before the training, and the accuracy at its end.
            return "heldout_accuracy" not in row and row.get("step", 0) <= step
        # In the demo's folder other stages log, too.
        return row.get("stage", stage) != stage or row.get("step", 0) <= step

    for name in ("metrics.jsonl", "samples.jsonl"):
        keep_rows(folder / name, stays)
    word = "update" if stage == "ppo" else "step"
    start = f"at the start: {folder} has no checkpoint yet"
    log_to_stderr(f"Continuing {f'after {word} {step}' if checkpoint else start}.")


def keep_rows(file: Path, wanted: Callable[[Row], bool]) -> None:
    """Rewrite a JSONL file with the rows that are wanted; damaged lines are dropped."""
    if file.exists():
        write_jsonl(file, [row for row in readable_rows(file) if wanted(row)])
