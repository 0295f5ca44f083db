"""A run deleted for good: refused while something needs it, and whole even after a kill.

The run's folder is first moved to `runs/.deleted` in one step, and emptied there. What a kill
leaves is removed by the next deletion. The empty folder stays, so that no later run gets the same
name: votes and comparisons name the models that wrote their answers.
"""

import contextlib
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorarlhf.preferences.blind_comparisons import comparisons
from lorarlhf.preferences.settings import ANSWERS, read_setting
from lorarlhf.preferences.store import Store
from lorarlhf.project.jobs import WAITING, list_jobs
from lorarlhf.project.project import DELETED, RUNS, Project
from lorarlhf.project.rounds import DROPPED, rounds
from lorarlhf.project.run_list import RunInfo, find_run, read_runs, run_named_in
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import WINDOWS, move
from lorarlhf.runtime.lock import check_free, hold

MOST_NAMED = 5
IN_USE = "Wait until that run ends, or stop it first."
USES = {"init": "started from it", "reward": "was trained against its reward role"}
FILES = ("data", "eval", "config", "reward_function", "reward_model", "judge_function")
"""The settings of a run that name files, which may lie in the folder of another run."""
_NAMES = re.compile(r"(?:^|\W)(?:runs/|by )(\d{4,}-\w+)")
_VOTES = re.compile(r"(\d{4,}-\w+)\.votes(?:-\d+)?\.jsonl")


def dependents(project: Project, run: RunInfo, runs: Sequence[RunInfo], store: Store) -> list[str]:
    """What needs a run, in words; empty if nothing does.

    That are runs which started from it or learned from its files, jobs that wait or run with it,
    rounds that were not dropped, the newest blind comparison, and the settings of the Rate page.
    Earlier comparisons are over: their results stay.

    Args:
        runs: all runs of the project.
        store: the project's votes.
    """
    names = {one.name for one in runs}
    place = str((project.folder / RUNS).resolve())
    found = []
    for other in runs:
        if other.name != run.name and (use := _use(other.config, run.name, names, place)):
            found.append(f"{other.label} ({other.name}) {use}")
    for job in list_jobs(project):
        named = [*(word.rpartition("=")[2] for word in job.argv), str(job.run or "")]
        if job.alive and any(run_named_in(path, names, place) == run.name for path in named):
            found.append(
                f"job {job.id} ({job.title}) {'waits' if job.state == WAITING else 'runs'} with it"
            )
    for one in comparisons(store, newest=1):
        if run.name in _NAMES.findall(f"{one.first}\n{one.second}"):
            found.append(f"the newest blind comparison, {one.first} against {one.second}, names it")
    for made in rounds(project):
        if made.verdict != DROPPED and run.name in made.run_names:
            found.append(f"round {made.number} made it or starts from it")
    settings = read_setting(store, ANSWERS)
    if isinstance(settings, dict) and run.name in (settings.get("model"), settings.get("against")):
        found.append("it answers on the Rate page (see Settings)")
    return found


def in_one_line(needed: Sequence[str]) -> str:
    """The first of what `dependents` found, and how many there are beyond."""
    more = len(needed) - MOST_NAMED
    return "; ".join([*needed[:MOST_NAMED], *([f"and {more} more"] if more > 0 else [])])


def _use(config: Mapping[str, Any], name: str, names: set[str], place: str) -> str:
    """How a run uses another one; "" if it does not."""
    for option, words in USES.items():
        if run_named_in(config.get(option), names, place) == name:
            return words
    for option in FILES:
        value = config.get(option)
        for path in value if isinstance(value, list) else [value]:
            if run_named_in(path, names, place) == name:
                return "uses files of it"
    return ""


def delete_run(project: Project, name: str, store: Store) -> str:
    """Delete a run with all its files; the votes in the project's store stay.

    Args:
        name: as in `find_run`.
        store: the project's votes.

    Returns:
        The run's name.

    Raises:
        UserError: there is no such run, something depends on it, a process works in its folder, or
            it can't be moved. It is as it was.
    """
    finish_deletions(project)
    folder = find_run(project, name)
    check_deletable(project, folder.name, store)
    grave = folder.parent / DELETED / folder.name
    check_free(folder, IN_USE)
    # Windows moves no folder with an open file in it: neither ours, the lock, nor another's, so
    # that a process which works there keeps it from being moved.
    with contextlib.nullcontext() if WINDOWS else hold(folder, IN_USE):
        try:
            grave.parent.mkdir(exist_ok=True)
            if grave.is_dir():  # somebody has put a deleted run back
                grave.rmdir()
            move(folder, grave)
        except OSError as error:
            raise UserError(
                f"{folder} can't be moved ({error.strerror}), so it is not deleted. Close what has "
                "its files open, and check the rights of the folder."
            ) from error
    finish_deletions(project)
    return folder.name


def check_deletable(project: Project, name: str, store: Store) -> None:
    """Check that nothing depends on a run.

    Args:
        name: of its folder.
        store: the project's votes.

    Raises:
        UserError: something does; it names what.
    """
    runs = read_runs(project)
    run = next(one for one in runs if one.name == name)
    if needed := dependents(project, run, runs, store):
        raise UserError(
            f"{run.label} ({run.name}) can't be deleted: {in_one_line(needed)}. Drop it instead, "
            "and it is out of the way."
        )


def votes_files(run: Path) -> list[Path]:
    """The files of votes that were written for a run, beside its folder."""
    named = [(file, _VOTES.fullmatch(file.name)) for file in run.parent.glob("*.votes*.jsonl")]
    return sorted(file for file, found in named if found and found[1] == run.name)


def finish_deletions(project: Project) -> None:
    """Remove what is left of deleted runs, if a deletion was killed."""
    graves = {grave.name: grave for grave in (project.folder / RUNS / DELETED).glob("*")}
    for file in (project.folder / RUNS).glob("*.votes*.jsonl") if graves else ():
        found = _VOTES.fullmatch(file.name)
        if found and found[1] in graves and not (file.parent / found[1]).exists():
            _remove(file)
    for grave in graves.values():
        if grave.is_symlink() or not grave.is_dir():  # a run that lay on another disk stays there
            _remove(grave)
            grave.mkdir(exist_ok=True)
        for child in grave.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child, ignore_errors=True)
            else:
                _remove(child)


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):  # what can't be removed now is tried again
        file.unlink()
