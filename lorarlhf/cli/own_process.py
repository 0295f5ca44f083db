"""A command of lorarlhf in a process of its own."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from lorarlhf.runtime.process import python_command

ENDING = [getattr(signal, n) for n in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, n)]
"""What ends this process, for example a closed terminal. On Windows it is Ctrl-Break alone:
another program ends a process there without its notice."""


def run_command(words: Sequence[str], log: Path) -> int:
    """Run `lorarlhf WORDS` and wait; returns its exit status.

    Ctrl-C is handed on once, so that the command can save what it has; a second one ends it. A
    signal that would end this process counts as Ctrl-C, so that the command does not stay behind.

    Args:
        log: gets what it writes to standard error.

    Raises:
        KeyboardInterrupt: Ctrl-C, after the command has ended.
    """
    command = python_command("lorarlhf.cli", *words)
    apart = os.name != "nt"  # on Windows, Ctrl-C reaches all processes of a console
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream, _ending_as_ctrl_c():
        with _heeding_ctrl_c():
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=stream, start_new_session=apart
            )
        try:
            return process.wait()
        except KeyboardInterrupt:
            if apart:
                process.send_signal(signal.SIGINT)
            process.wait()
            raise
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@contextmanager
def _ending_as_ctrl_c() -> Iterator[None]:
    """Raise a `KeyboardInterrupt` for signals that would end this process; not for ignored ones."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():  # Python allows it there alone
        before = {one: signal.getsignal(one) for one in ENDING}
        before = {one: how for one, how in before.items() if how == signal.SIG_DFL}
    for one in before:
        signal.signal(one, interrupt)
    try:
        yield
    finally:
        for one, how in before.items():
            signal.signal(one, how)


@contextmanager
def _heeding_ctrl_c() -> Iterator[None]:
    """Do not ignore Ctrl-C while a process is started, since it would ignore it, too.

    Shells without job control have `command &` ignore it.
    """
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if not ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def reason(status: int, log: Path) -> str:
    """Why a command has failed, in one line.

    Args:
        status: its exit status; below 0 the number of the signal that killed it (not on Windows).
    """
    if status >= 0:
        return last_line(log)
    try:
        name = signal.Signals(-status).name
    except ValueError:  # a real-time signal
        name = f"number {-status}"
    likely = (
        " Most likely the machine ran out of memory: see its log, and set a smaller "
        "micro_batch_size."
    )
    return f"it was killed by the signal {name}.{likely if name == 'SIGKILL' else ''}"


def last_line(log: Path) -> str:
    """The last line of a command's log: what it says of its failure."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else "it gave no reason."
