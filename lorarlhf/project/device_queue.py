"""The queue for this machine's device: one job at a time, of whatever project, in their order.

Of several cards each has a queue of its own, as far as the environment says which one is meant: a
process takes the first card that it sees.

Each job has a ticket, a file in the cache folder; the first ticket whose processes run has the
device. A ticket of a process that was killed, or of before a reboot, counts for nothing. The pages
register the model that answers there, so that a job can wait until its memory is free.
"""

import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorarlhf.backbone.base_cache import cache_folder
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_json, write_shared
from lorarlhf.runtime.lock import hold
from lorarlhf.runtime.process import ProcessId, from_json, identify, is_ancestor, is_running

VISIBLE = (
    *("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"),
)
"""By these a person chooses cards for a process: NVIDIA's, AMD's, Intel's."""


@dataclass(frozen=True)
class Ticket:
    """A job in the queue.

    Attributes:
        file: of the ticket; its name is the place in the queue.
        project: the folder of the job's project.
        job: the job's number in it.
        title: what it does.
        since: when it took the ticket, in seconds.
        processes: as long as one of them runs, the ticket counts.
        running: whether it has the device.
    """

    file: Path
    project: Path
    job: int
    title: str
    since: float
    processes: tuple[ProcessId, ...]
    running: bool = False


def queue() -> list[Ticket]:
    """The jobs that have or want the device, the first one first."""
    found = []
    for file in sorted(_folder("tickets").glob("*.json")):
        ticket = _read(file)
        if ticket is None:
            continue
        if any(map(is_running, ticket.processes)):
            found.append(ticket)
        else:
            _remove(file)
    return found


def busy_with() -> Ticket | None:
    """The job that has the device; None if there is none, or this process belongs to it."""
    running = next((ticket for ticket in queue() if ticket.running), None)
    if running is None or any(map(is_ancestor, running.processes)):
        return None
    return running


def take(project: Path, job: int, title: str, process: ProcessId | None) -> Ticket:
    """A place at the end of the queue, as long as a process runs.

    Who starts a job takes it, so that jobs stand in the order in which they were started, however
    long their processes need to begin.
    """
    now = time.time_ns()
    file = _made("tickets") / f"{now:020d}-{os.getpid()}.json"
    taken = Ticket(file, project, job, title, now / 1e9, (process,) if process else ())
    write(taken)
    return taken


@contextmanager
def held(place: str, project: Path, job: int, title: str) -> Iterator[Ticket]:
    """This process holds the ticket of its job, until the end of the block.

    Args:
        place: the name of the ticket's file.
    """
    file, here = _made("tickets") / place, identify(os.getpid())
    named = _read(file) or Ticket(file, project, job, title, time.time(), ())
    taken = replace(named, processes=(*named.processes, here) if here else named.processes)
    write(taken)
    try:
        yield taken
    finally:
        _remove(file)


def write(taken: Ticket) -> None:
    """Write a ticket, or its new contents."""
    content = {"project": str(taken.project), "job": taken.job, "title": taken.title}
    content |= {"since": taken.since, "running": taken.running}
    content |= {"processes": [process.as_json() for process in taken.processes]}
    write_shared(taken.file, content)


def mark_running(taken: Ticket, command: ProcessId | None) -> Ticket:
    """The ticket of a job whose command has started; it counts until the command's end, too."""
    more = (command,) if command else ()
    now = replace(taken, running=True, processes=(*taken.processes, *more))
    write(now)
    return now


def is_first(taken: Ticket) -> bool:
    """Whether it is a ticket's turn."""
    if not taken.file.exists():  # somebody has emptied the cache folder
        _made("tickets")
        write(taken)
    first = next(iter(queue()), taken)
    return first.file == taken.file


@contextmanager
def device() -> Iterator[bool]:
    """Hold the device inside the block; yields False if another process holds it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(_made("device"), "Wait until that job ends."))
            free = True
        except UserError:
            free = False
        yield free


def _read(file: Path) -> Ticket | None:
    """The ticket in a file; None if it can't be read."""
    content = read_json(file)
    try:
        named = [from_json(process) for process in content["processes"]]
        return Ticket(
            file,
            Path(content["project"]),
            int(content["job"]),
            str(content["title"]),
            float(content["since"]),
            tuple(process for process in named if process),
            bool(content["running"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


# ---- models that answer


def register_model(project: Path) -> Path:
    """Note that this process's pages have a model in memory; returns the file to remove then."""
    file = _made("models") / f"{os.getpid()}-{time.time_ns()}.json"
    here = identify(os.getpid())
    content: dict[str, Any] = {"project": str(project), "process": here and here.as_json()}
    write_json(file, content)
    return file


def models() -> list[Path]:
    """The registered models whose pages run."""
    found = []
    for file in _folder("models").glob("*.json"):
        if is_running(from_json(read_json(file).get("process"))):
            found.append(file)
        else:
            _remove(file)
    return found


def _remove(file: Path) -> None:
    with suppress(OSError):  # on Windows somebody reads it; it counts for nothing, and goes later
        file.unlink()


def _folder(name: str) -> Path:
    # By machine: several may share the cache folder on a network disk.
    card = next(filter(None, map(os.environ.get, VISIBLE)), "").partition(",")[0].strip()
    place = (platform.node() or "here") + (f"-card-{card}" if card not in ("", "0") else "")
    return cache_folder() / "jobs" / re.sub(r"[^\w.-]", "_", place) / name


def _made(name: str) -> Path:
    folder = _folder(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The cache folder {folder} can't be written ({error.strerror}). Set LORARLHF_CACHE "
            "to a folder that can be written."
        ) from error
    return folder
