"""The process that looks after one job: waits for its turn, runs the command, notes the end.

`python -m lorarlhf.project.jobs_runner JOBS/0001.json TOKEN`; `jobs.py` starts it. It imports
nothing heavy, since it lives as long as the job.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lorarlhf.project import device_queue
from lorarlhf.project.jobs import (
    DONE,
    FAILED,
    INTERRUPTIONS,
    RUNNING,
    STOPPED,
    carry_out_stop,
    requested_stops,
)
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_shared
from lorarlhf.runtime.process import (
    identify,
    kill_group,
    lower_priority,
    python_command,
    start_group,
)
from lorarlhf.runtime.terminal import BAR

LOOK_SECONDS = 0.1
NAMED_SECONDS = 30.0
"""How long the record may take to name this process; then another one looks after the job."""
ROOM_SECONDS = 60.0
"""How long a job waits for the pages' models to give their memory back. Then it starts anyway, and
the command itself checks the memory."""
INTERRUPTED_STATUS = 130
"""The exit status of a command after Ctrl-C."""
FAILURES = (1, 2)
"""The exit statuses of a command that has failed, and that says why."""
KILLED = 9
LOG_END = 8000


class Runner:
    """Looks after the job of a record.

    Attributes:
        record: its contents, which only this process writes.
        token: what the record has if it names this process.
        stops: the wishes to stop that were carried out.
    """

    def __init__(self, file: Path, token: str) -> None:
        self.file, self.project, self.token = file, file.parent.parent, token
        self.record: dict[str, Any] = {}
        self.stops = 0

    def is_named(self) -> bool:
        """Wait until the record names this process; False if it does not."""
        for _ in range(round(NAMED_SECONDS / LOOK_SECONDS)):
            self.record = read_json(self.file)
            if self.record.get("token") == self.token:
                return True
            time.sleep(LOOK_SECONDS)
        return False

    def write(self, **changes: Any) -> None:
        """Change the record."""
        self.record |= changes
        write_shared(self.file, self.record)

    def run(self) -> None:
        """Wait for the turn, run the command, and note how it ended."""
        about = self.project, int(self.file.stem), self.record["title"]
        with device_queue.held(self.record["ticket"], *about) as ticket:
            while not requested_stops(self.file):
                if device_queue.is_first(ticket):
                    with device_queue.device() as free:
                        if free:
                            self._run_here(ticket)
                            return
                time.sleep(LOOK_SECONDS)
        self.write(state=STOPPED, ended=time.time())

    def _run_here(self, ticket: device_queue.Ticket) -> None:
        """Run the command on the device, which this process holds."""
        until = time.monotonic() + ROOM_SECONDS
        while device_queue.models() and time.monotonic() < until:
            if requested_stops(self.file):
                break
            time.sleep(LOOK_SECONDS)
        if requested_stops(self.file):
            self.write(state=STOPPED, ended=time.time())
            return
        run = self._run_folder()
        argv = self._words(run)
        with self.file.with_suffix(".log").open("ab") as log:
            log.write(f"$ lorarlhf {' '.join(argv)}\n".encode())
            log.flush()
            process = start_group(
                python_command("lorarlhf.cli", *argv),
                log,
                Path.cwd(),
                # A bar that writes a line ten times a second would fill the log of a long run.
                {**os.environ, "PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "1"},
            )
            try:
                command = identify(process.pid)
                device_queue.mark_running(ticket, command)
                self.write(
                    state=RUNNING,
                    started=time.time(),
                    run=None if run is None else str(run),
                    command=command and command.as_json(),
                )
                status = self._wait(process)
            except BaseException:  # nobody would look after it, or know that it has the device
                _end_now(process)
                raise
        self._end(status, run)

    def _run_folder(self) -> Path | None:
        """The folder of a training stage's run: the one it has begun, or the next number."""
        if self.record["run"] and (begun := Path(self.record["run"])).is_dir():
            return begun  # else it was deleted, and its name is not used again
        if not self.record["stage"]:
            return None
        return Project(self.project).next_run(self.record["stage"]).resolve()

    def _words(self, run: Path | None) -> list[str]:
        """What follows `lorarlhf`, with the run that is made or continued."""
        words = list(self.record["argv"])
        if run is not None:
            words += ["--out", str(run)]
            words += ["--resume"] * (run / "run.json").is_file()
        return words

    def _wait(self, process: "subprocess.Popen[bytes]") -> int:
        """Wait for the command's end, and pass on wishes to stop; its exit status."""
        while True:
            try:
                return process.wait(LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                wished = requested_stops(self.file)
            if wished > self.stops:
                self.stops += 1
                carry_out_stop(identify(process.pid), self.stops)

    def _end(self, status: int, run: Path | None) -> None:
        state = DONE if status == 0 else FAILED
        # A command that listens to a stop may fail to save what it has. One that is ended by force
        # has any status.
        failed_itself = status in FAILURES and self.stops <= INTERRUPTIONS
        if status == INTERRUPTED_STATUS or (status and self.stops and not failed_itself):
            state = STOPPED
        message = why(status, self.file.with_suffix(".log")) if state == FAILED else ""
        if run is not None and run.is_dir() and not any(run.iterdir()):
            run.rmdir()  # the command refused to start
            self.record["run"] = None
        self.write(state=state, ended=time.time(), message=message)


def _end_now(process: "subprocess.Popen[bytes]") -> None:
    if (command := identify(process.pid)) is not None:
        kill_group(command)
    process.kill()
    process.wait()


def why(status: int, log: Path) -> str:
    """Why a command has failed, by its exit status or its last words."""
    if status == -KILLED:
        return (
            f"Its process was ended by the system (signal {KILLED}), probably because memory ran "
            "out. Resume it when other programs need less memory, or start it anew with a smaller "
            "micro_batch_size or shorter answers."
        )
    if status < 0:
        return (
            f"Its process was ended by the system (signal {-status}) before it could say why. "
            "Resume it, and it goes on after its last checkpoint."
        )
    return last_words(log)


def last_words(log: Path) -> str:
    """The last line that a command has printed, bars aside; errors are one paragraph."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_END))
        lines = file.read().decode("utf-8", "replace").replace("\r", "\n").split("\n")
    said = [line.strip() for line in lines if line.strip() and not BAR.match(line)]
    return said[-1] if said else ""


def main(words: list[str]) -> int:
    """Look after the job of a record; returns the exit status."""
    # A program started in the background by a script ignores Ctrl-C, and so would the command. A
    # handler of our own is not handed on, so the command's is the usual one again.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    lower_priority()
    runner = Runner(Path(words[0]), words[1])
    if not runner.is_named():
        return 1
    try:
        runner.run()
    except (OSError, UserError) as error:
        runner.write(state=FAILED, ended=time.time(), message=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
