"""Processes of this machine: which one it is, does it still run, how it is stopped."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import psutil

PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessId:
    """A process, told apart from every other one that has had its number or will have it.

    Attributes:
        pid: its number, which the system gives to another process later.
        mark: when it was started, and by which start of the machine.
    """

    pid: int
    mark: str

    def as_json(self) -> dict[str, Any]:
        """For a file; `from_json` reads it."""
        return asdict(self)


def from_json(value: Any) -> ProcessId | None:
    """The process that a file names; None if it names none."""
    if not isinstance(value, Mapping):
        return None
    pid, mark = value.get("pid"), value.get("mark")
    return ProcessId(pid, mark) if isinstance(pid, int) and isinstance(mark, str) else None


def identify(pid: int) -> ProcessId | None:
    """The process with a number; None if there is none, or it has ended already."""
    mark = _mark_on_linux(pid) if sys.platform == "linux" else _mark(pid)
    return None if mark is None else ProcessId(pid, mark)


def is_running(process: ProcessId | None) -> bool:
    """Whether a process runs. A later one with its number does not count."""
    return process is not None and identify(process.pid) == process


def is_ancestor(process: ProcessId) -> bool:
    """Whether a process is this one, or the one that started it, and so on."""
    try:
        here = psutil.Process()
        family = (here.pid, *(parent.pid for parent in here.parents()))
    except psutil.Error:  # others are hidden, or one ends meanwhile
        family = (os.getpid(), os.getppid())
    return process.pid in family and is_running(process)


def _mark_on_linux(pid: int) -> str | None:
    """The clock ticks at which it started, and the machine's own number for its last start.

    Not the time of day: that moves when the clock is set.
    """
    try:
        fields = (
            (PROC / str(pid) / "stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(") ")[2]
            .split()
        )
        started = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{fields[19]} {started}"  # Z: ended, not waited for


def _mark(pid: int) -> str | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return f"{process.create_time():.3f}"
    except psutil.Error:
        return None


def python_command(module: str, *words: str) -> list[str]:
    """The command that runs a module with this Python."""
    # Without -P a file of the user's, such as random.py, could stand in for a library's.
    safe = ["-P"] if sys.version_info >= (3, 11) else []
    # What it prints goes to files and pipes that are read as UTF-8. Windows' own is another.
    return [sys.executable, *safe, "-X", "utf8", "-m", module, *words]


def start_detached(command: Sequence[str], output: IO[bytes], cwd: Path) -> ProcessId | None:
    """Start a process that outlives this one and its terminal; None if it has ended already.

    Args:
        output: the file that gets what it prints.
        cwd: the folder that it works in.
    """
    started = _start(command, output, cwd)
    process = identify(started.pid)
    # Otherwise an ended one would stay in the system's list for as long as this program runs.
    threading.Thread(target=started.wait, daemon=True, name=f"wait {started.pid}").start()
    return process


def start_group(
    command: Sequence[str], output: IO[bytes], cwd: Path, env: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Start a process that `interrupt` can stop together with those that it starts."""
    return _start(command, output, cwd, env)


def _start(
    command: Sequence[str], output: IO[bytes], cwd: Path, env: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        # A console of its own that nobody sees: closing the terminal's does not end it.
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.BELOW_NORMAL_PRIORITY_CLASS
        options = {"creationflags": flags | (subprocess.CREATE_NO_WINDOW if env is None else 0)}
    return subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env=None if env is None else dict(env),
        **options,
    )


def interrupt(process: ProcessId) -> None:
    """Do to a process of `start_group` what Ctrl-C does in a terminal."""
    if not is_running(process):
        return
    try:
        if sys.platform == "win32":  # Ctrl-C can't be sent to another group, Ctrl-Break can
            os.kill(process.pid, signal.CTRL_BREAK_EVENT)
        else:
            os.killpg(process.pid, signal.SIGINT)
    except OSError:  # it has just ended
        return


def kill_group(process: ProcessId) -> None:
    """End a process of `start_group` and those that it has started, at once."""
    if not is_running(process):
        return
    try:
        if sys.platform == "win32":
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            psutil.Process(process.pid).kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    except (OSError, psutil.Error):
        return


def lower_priority() -> None:
    """Let the pages and other programs go first when they need a core, too."""
    if hasattr(os, "nice"):  # Windows: see `_start`
        os.nice(10)
