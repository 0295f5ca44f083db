"""A project's runs as plain data: what each is, what it started from, and how it went.

Only small files are read, and of a long log its end: a list of 200 runs takes a moment. A run whose
files are missing or damaged is listed like every other, with what is known about it.
"""

import contextlib
import difflib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorarlhf.project.project import RUNS, Project
from lorarlhf.project.run_labels import read_label
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import Row, read_json
from lorarlhf.runtime.lock import is_held
from lorarlhf.runtime.run import TIME

KINDS = {"sft": "Supervised tuning", "reward": "Reward model"}
"""How a person calls a stage; the others are called by their letters, as PPO."""
RUNNING, INTERRUPTED, NOT_STARTED, UNREADABLE = (
    "running",
    "interrupted",
    "not started",
    "unreadable",
)
"""What a run's state can be beside the status in its record (`done`, `stopped`, `failed`)."""
SOURCES = ("init", "reward")
"""The options that name a run which another one starts from."""
RESULTS = (
    *("heldout_accuracy", "n", "kl_per_sequence", "eval_score"),
    *("accuracy_last", "margin_last", "loss_last"),
)
"""The figures of a run's summary that say how it went."""
TAIL_BYTES = 2**16
_IN_RUN = re.compile(
    r"(?:(.*)[/\\])?runs[/\\](\d{4,}-\w+)(?=[/\\]|$|\.votes(?:-\d+)?\.jsonl$)", re.S
)


@dataclass(frozen=True)
class Source:
    """A run that another one started from.

    Attributes:
        option: `init` for its policy, `reward` for its reward role.
        path: as the record names it.
        run: its name, if it is a run of the same project; else "".
    """

    option: str
    path: str
    run: str = ""

    @property
    def name(self) -> str:
        """The run, or the path if it is not in the project any more, or never was."""
        return self.run or self.path


@dataclass(frozen=True)
class RunInfo:
    """A run of a project.

    Attributes:
        folder: with its files; its name never changes.
        stage: the training stage; "" if nothing says it.
        title: what a person calls it; "" if nobody has named it.
        dropped: whether it is hidden from the lists of models.
        state: its status, or one of `RUNNING`, `INTERRUPTED`, `NOT_STARTED` and `UNREADABLE`.
        started: the local time, as `2026-11-28T19:49:49`, or "".
        seconds: how long it took, or has been running; None if nothing says it.
        base: the base that it was trained on, as the record names it, or "".
        roles: the adapters that it has saved.
        sources: the runs that it started from.
        results: figures of its summary (`RESULTS`); of PPO also `score`, of the last update; `step`
            of a run that has not ended.
        alarms: the health checks that were on at its end.
        config: all its settings and files, as recorded.
    """

    folder: Path
    stage: str
    title: str
    dropped: bool
    state: str
    started: str
    seconds: float | None
    base: str
    roles: tuple[str, ...]
    sources: tuple[Source, ...]
    results: Mapping[str, float]
    alarms: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The folder's name, for example `0003-ppo`."""
        return self.folder.name

    @property
    def number(self) -> int:
        """The number in its name."""
        return int(self.name.split("-")[0])

    @property
    def label(self) -> str:
        """What a person calls it: its title, or what it is, for example `Reward model 2`."""
        return self.title or f"{kind_of(self.stage)} {self.number}"

    @property
    def base_name(self) -> str:
        """The end of the base's path."""
        return re.split(r"[/\\]", self.base.rstrip("/\\"))[-1]


def kind_of(stage: str) -> str:
    """What a stage is called; `Run` for none."""
    return KINDS.get(stage) or stage.upper() or "Run"


# ---- reading


def read_runs(project: Project) -> list[RunInfo]:
    """All runs of a project, the newest first."""
    folders = project.runs()
    names = {folder.name for folder in folders}
    place = str((project.folder / RUNS).resolve())
    return [_read(folder, names, place) for folder in folders]


def find_run(project: Project, name: str) -> Path:
    """The folder of a run.

    Args:
        name: the folder's name, its path, or the run's number alone.

    Raises:
        UserError: the project has no such run.
    """
    runs = project.runs()
    wanted = re.split(r"[/\\]", name.strip().rstrip("/\\"))[-1]
    for run in runs:
        number = wanted.isdecimal() and int(wanted) == int(run.name.split("-")[0])
        if run.name == wanted or number:
            return run
    near = difflib.get_close_matches(wanted, [run.name for run in runs], n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(f"The project {project.folder} has no run {name}.{hint}")


def run_named_in(path: Any, names: Iterable[str], place: str) -> str:
    """The run of this project in which a recorded file or folder lies, or whose votes it holds.

    A project may have been moved since: a path that leads nowhere counts if it ends as one of ours.

    Args:
        path: as a run's record has it.
        names: of the project's runs.
        place: the absolute folder of its runs.

    Returns:
        Its name, or "".
    """
    found = _IN_RUN.match(path) if isinstance(path, str) else None
    if found is None or found[2] not in names:
        return ""
    folder = f"{found[1] or '.'}/runs"
    if folder != place and os.path.isdir(folder) and not os.path.samefile(folder, place):
        return ""  # another project
    return found[2]


def _read(folder: Path, names: Iterable[str], place: str) -> RunInfo:
    about, label = read_json(folder / "run.json"), read_label(folder)
    recorded, summary = about.get("config"), about.get("summary")
    config = recorded if isinstance(recorded, dict) else {}
    stage = _text(config.get("algorithm")) or _text(about.get("stage"))
    state = _state(folder, about)
    started = _text(about.get("started"))
    seconds = _number(about.get("seconds"))
    if state == RUNNING:
        with contextlib.suppress(ValueError, OverflowError):
            began = time.mktime(time.strptime(_text(about.get("resumed")) or started, TIME))
            seconds = max(0.0, time.time() - began) + (_number(about.get("earlier_seconds")) or 0.0)
    figures = summary if isinstance(summary, dict) else {}
    alarms = figures.get("alarms")
    return RunInfo(
        folder,
        stage or folder.name.split("-", 1)[1],
        label.title,
        label.dropped,
        state,
        started,
        seconds,
        _text(about.get("base")) or _text(config.get("base")),
        _roles(folder),
        tuple(
            Source(option, config[option], run_named_in(config[option], names, place))
            for option in SOURCES
            if _text(config.get(option))
        ),
        _results(folder, figures, state),
        tuple(map(str, alarms)) if isinstance(alarms, list) else (),
        config,
    )


def _state(folder: Path, about: Row) -> str:
    if not about:
        return UNREADABLE if (folder / "run.json").exists() else NOT_STARTED
    status = _text(about.get("status")) or UNREADABLE
    if status == RUNNING and is_held(folder) is False:
        return INTERRUPTED  # killed: its record could not be written any more
    return status


def _roles(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(p.parent.name for p in folder.glob("adapters/*/adapter_config.json")))


def _results(folder: Path, summary: Row, state: str) -> dict[str, float]:
    found = {name: _number(summary.get(name)) for name in RESULTS}
    wanted = [] if state == "done" else ["step"]
    if "updates" in summary or not summary:  # of PPO, or of a run that has not ended
        wanted += ["score"]
    found |= last_figures(folder / "metrics.jsonl", wanted)
    return {name: value for name, value in found.items() if value is not None}


def last_figures(log: Path, names: Sequence[str]) -> dict[str, float | None]:
    """The newest value of each figure in the end of a log (`TAIL_BYTES`), where it has one."""
    found: dict[str, float | None] = {}
    if not names:
        return found
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - TAIL_BYTES))
            lines = stream.read().split(b"\n")
    except OSError:
        return found
    for line in reversed(lines):  # the first may be half a line, and so may the last
        try:
            row = json.loads(line)
        except ValueError:
            continue
        for name in names if isinstance(row, dict) else ():
            if name not in found and (value := _number(row.get(name))) is not None:
                found[name] = value
        if len(found) == len(names):
            break
    return found


def folder_bytes(folder: Path) -> int:
    """The size of all files in a folder; links are not followed."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):  # a running command replaces its files
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    """A finite number; None for any other JSON value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 else None


# ---- lineage


def lineage(runs: Sequence[RunInfo]) -> list[tuple[int, RunInfo]]:
    """The runs as a tree: each below the run that it started from, the oldest first.

    A run is below that of its policy (`init`), or else that of its reward role. Those that started
    from no run of the project are at depth 0.

    Returns:
        The depth of each run and the run, in the order in which a tree is drawn.
    """
    known = {run.name: run for run in runs}
    above = {run.name: _above(run, known) for run in runs}
    below: dict[str, list[RunInfo]] = {}
    for run in sorted(runs, key=lambda one: one.number):
        below.setdefault(_without_circle(run.name, above), []).append(run)
    roots = below.get("", [])
    bases = [run.base_name for run in roots]
    roots = sorted(roots, key=lambda run: bases.index(run.base_name))  # those of a base together
    left = [(0, run) for run in reversed(roots)]
    found: list[tuple[int, RunInfo]] = []
    while left:
        depth, run = left.pop()
        found.append((depth, run))
        left += [(depth + 1, one) for one in reversed(below.get(run.name, []))]
    return found


def _above(run: RunInfo, known: Mapping[str, RunInfo]) -> str:
    return next((s.run for s in run.sources if s.run in known and s.run != run.name), "")


def _without_circle(name: str, above: Mapping[str, str]) -> str:
    """The run above one; "" if the way up leads back to it, as a damaged record may say."""
    at, seen = above[name], set[str]()
    while at and at not in seen:
        if at == name:
            return ""
        seen.add(at)
        at = above[at]
    return above[name]
