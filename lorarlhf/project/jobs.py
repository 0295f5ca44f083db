"""Jobs: commands that run in processes of their own and outlive the pages, the server, a reboot.

A job is a file in the project, `jobs/0001.json`, with its output in `jobs/0001.log`. Who starts it
writes the file once, with the process that will look after it (`jobs_runner.py`); from then on only
that process writes it. A wish to stop is a file of its own. One job at a time has the device
(`device_queue.py`).
"""

import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorarlhf.project import device_queue
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_shared
from lorarlhf.runtime.lock import hold
from lorarlhf.runtime.process import (
    ProcessId,
    from_json,
    interrupt,
    is_running,
    kill_group,
    python_command,
    start_detached,
)

JOBS = "jobs"
WAITING, RUNNING, DONE = "waiting", "running", "done"
FAILED, STOPPED, INTERRUPTED = "failed", "stopped", "interrupted"
STATES = (WAITING, RUNNING, DONE, FAILED, STOPPED, INTERRUPTED)
UNFINISHED = (FAILED, STOPPED, INTERRUPTED)
RUNNER = "lorarlhf.project.jobs_runner"
START_SECONDS = 5.0
"""How long a start waits for another one in the same project."""
INTERRUPTIONS = 2
"""Wishes to stop that are Ctrl-C, as in a terminal; the next one ends the processes at once."""
UNREADABLE = "Its file can't be read, so it can't be continued. Delete the file, or start anew."
LONGEST_TITLE = 80
_NAME = re.compile(r"\d{4,}")


@dataclass(frozen=True)
class Job:
    """A job as it stands.

    Attributes:
        file: its record.
        id: its number in the project.
        title: what it does, in a few words.
        argv: what follows `lorarlhf`.
        stage: the training stage that the command is, or "".
        folder: where the command works.
        state: one of `STATES`; interrupted: its processes are gone, and it had not ended.
        run: the run's folder, once a training stage has started.
        queued, started, ended: in seconds; None if it has not come to that.
        message: why it failed, or "".
        stops: how often it was asked to stop.
        runner, command: its processes, as far as they were started.
    """

    file: Path
    id: int
    title: str
    argv: tuple[str, ...]
    stage: str
    folder: Path
    state: str
    run: Path | None
    queued: float
    started: float | None
    ended: float | None
    message: str = ""
    stops: int = 0
    runner: ProcessId | None = None
    command: ProcessId | None = None

    @property
    def log(self) -> Path:
        """The file with what the command prints."""
        return self.file.with_suffix(".log")

    @property
    def alive(self) -> bool:
        """Whether it waits or runs."""
        return self.state in (WAITING, RUNNING)

    @property
    def can_resume(self) -> bool:
        """Whether it can go on where it ended."""
        return self.state in UNFINISHED and bool(self.argv)


def start_job(project: Project, argv: Sequence[str], title: str, stage: str = "") -> Job:
    """Start a command as a job; it waits for its turn on the device.

    Args:
        argv: what follows `lorarlhf`.
        title: what it does, in a few words.
        stage: if the command is a training stage of the project without `--out`, its name. Its run
            gets the next number when its turn comes, and `--resume` continues it.

    Raises:
        UserError: the project's folder can't be written.
    """
    file = _reserve(project)
    record = {"title": title, "argv": list(argv), "stage": stage, "folder": os.getcwd()}
    return _launch(file, record | {"run": None})


def job_title(name: str, changed: Sequence[str] = ()) -> str:
    """A few words for lists: what a job does, and `KEY=VALUE` of what was changed."""
    return f"{name} ({', '.join(changed)})"[:LONGEST_TITLE] if changed else name


def list_jobs(project: Project) -> list[Job]:
    """The jobs of a project, the newest first."""
    files = (file for file in _folder(project).glob("*.json") if _NAME.fullmatch(file.stem))
    return [read_job(file) for file in sorted(files, key=lambda file: -int(file.stem))]


def find_job(project: Project, number: int) -> Job:
    """The job with a number.

    Raises:
        UserError: there is none.
    """
    for job in list_jobs(project):
        if job.id == number:
            return job
    raise UserError(
        f"The project {project.folder} has no job {number}. `lorarlhf jobs {project.folder}` lists "
        "its jobs."
    )


def read_job(file: Path) -> Job:
    """The job of a record as it stands now; a record that can't be read is a failed job."""
    try:
        return _from_record(file, *_settled(file))
    except (KeyError, TypeError, ValueError):
        missing: dict[str, Any] = {"run": None, "started": None, "ended": None, "queued": 0.0}
        return Job(
            file, int(file.stem), "?", (), "", file.parent, FAILED, message=UNREADABLE, **missing
        )


def stop_job(job: Job) -> Job:
    """Ask a job to stop. A job that waits ends; a run finishes its step and saves it.

    The second time it stops at once and loses that step, as after a second Ctrl-C. The third time
    its processes are ended.

    Raises:
        UserError: it has ended already.
    """
    job = read_job(job.file)
    if not job.alive:
        raise UserError(f"Job {job.id} has ended already ({job.state}), so it can't be stopped.")
    stops = job.stops + 1
    _stop_file(job.file).write_text(str(stops), encoding="utf-8")
    if not is_running(job.runner):  # nobody looks after the command any more
        carry_out_stop(job.command, stops)
    return read_job(job.file)


def carry_out_stop(command: ProcessId | None, stops: int) -> None:
    """Do to a command what the wish number `stops` means."""
    if command is None:
        return
    if stops > INTERRUPTIONS:
        kill_group(command)
    else:
        interrupt(command)


def resume_job(job: Job) -> Job:
    """Let a job that did not come to its end go on; it waits for its turn again.

    Raises:
        UserError: it is done, it still runs, or its record can't be read.
    """
    with starting(job.file.parent):
        job = read_job(job.file)
        if not job.argv:
            raise UserError(f"{job.file}: {UNREADABLE}")
        if not job.can_resume:
            raise UserError(f"Job {job.id} is {job.state}, so there is nothing to resume.")
        record = read_json(job.file)
        kept = {name: record[name] for name in ("title", "argv", "stage", "folder", "run")}
        return _launch(job.file, kept)


@contextmanager
def starting(folder: Path) -> Iterator[None]:
    """Keep others from starting or resuming a job meanwhile; waits while others do it.

    Args:
        folder: of the jobs.

    Raises:
        UserError: another process does not end with it, or the folder can't be written.
    """
    until = time.monotonic() + START_SECONDS
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(hold(folder, "It starts a job. Try again in a moment."))
                break
            except UserError as error:
                cannot_write = error.__cause__ is not None
                if cannot_write or time.monotonic() > until:
                    raise
                time.sleep(0.02)
        yield


def requested_stops(file: Path) -> int:
    """How often a job was asked to stop since it was started or resumed."""
    try:
        return int(_stop_file(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


def _launch(file: Path, record: dict[str, Any]) -> Job:
    """Start the process that looks after a job, and name it in the record: it waits for that."""
    _stop_file(file).unlink(missing_ok=True)
    # The runner knows by it that the record names it. Its process may not: in a virtual environment
    # on Windows the one that is started here is a launcher, and the runner is its child.
    token = secrets.token_hex(8)
    with file.with_suffix(".log").open("ab") as log:
        command = python_command(RUNNER, str(file.resolve()), token)
        runner = start_detached(command, log, _existing(Path(record["folder"]), file))
    project = file.resolve().parent.parent
    ticket = device_queue.take(project, int(file.stem), record["title"], runner)
    record |= {"state": WAITING, "queued": time.time(), "started": None, "ended": None}
    record |= {"message": "", "runner": runner and runner.as_json(), "command": None}
    write_shared(file, record | {"token": token, "ticket": ticket.file.name})
    return read_job(file)


def _existing(folder: Path, file: Path) -> Path:
    """The folder of the command; the project's own if it is gone."""
    return folder if folder.is_dir() else file.resolve().parent.parent


def _settled(file: Path) -> tuple[dict[str, Any], bool]:
    """A job's record, and whether its runner runs.

    A runner writes how the job ended and is gone: what was read before is then read once more.
    """
    while True:
        record = read_json(file)
        if is_running(from_json(record.get("runner"))):
            return record, True
        if read_json(file) == record:
            return record, False


def _from_record(file: Path, record: dict[str, Any], looked_after: bool) -> Job:
    """The job of a record; raises KeyError, TypeError or ValueError if it is none.

    Args:
        looked_after: whether its runner runs.
    """
    runner, command = (from_json(record[name]) for name in ("runner", "command"))
    state, message, ended = record["state"], str(record["message"]), record["ended"]
    argv = tuple(map(str, record["argv"]))
    if state not in STATES or not argv or not isinstance(record["argv"], list):
        raise ValueError(f"no state {state}, or no command {argv}")
    run = Path(record["run"]) if record["run"] else None
    if state in (WAITING, RUNNING) and not looked_after:
        state = RUNNING if is_running(command) else _state_left_behind(run, command)
    return Job(
        file=file,
        id=int(file.stem),
        title=str(record["title"]),
        argv=argv,
        stage=str(record["stage"]),
        folder=Path(record["folder"]),
        state=state,
        run=run,
        queued=float(record["queued"]),
        started=None if record["started"] is None else float(record["started"]),
        ended=None if ended is None else float(ended),
        message=message,
        stops=requested_stops(file),
        runner=runner,
        command=command,
    )


def _state_left_behind(run: Path | None, command: ProcessId | None) -> str:
    """The state of a job whose processes are gone, and whose runner could not write the end.

    Its command may have come to an end of its own after the runner was killed.
    """
    status = read_json(run / "run.json").get("status") if run and command else None
    return status if status in (DONE, STOPPED, FAILED) else INTERRUPTED


def _folder(project: Project) -> Path:
    return project.folder / JOBS


def _stop_file(file: Path) -> Path:
    return file.with_suffix(".stop")


def _reserve(project: Project) -> Path:
    """The record of a new job; its log is made, so that no other job gets the same number."""
    folder = _folder(project)
    try:
        folder.mkdir(exist_ok=True)
        while True:
            taken = [int(log.stem) for log in folder.glob("*.log") if _NAME.fullmatch(log.stem)]
            file = folder / f"{1 + max(taken, default=0):04d}.json"
            try:
                file.with_suffix(".log").open("xb").close()
            except FileExistsError:  # another process was faster
                continue
            return file
    except OSError as error:
        raise UserError(
            f"The folder {folder} can't be written ({error.strerror}), so no job can be started."
        ) from error
