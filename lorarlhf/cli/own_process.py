"""A command of lorarlhf in a process of its own."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lorarlhf.runtime.process import python_command


def run_command(words: Sequence[str], log: Path) -> int:
    """Run `lorarlhf WORDS` and wait; returns its exit status.

    Ctrl-C is handed on once, so that the command can save what it has; a second one ends it.

    Args:
        log: gets what it writes to standard error.

    Raises:
        KeyboardInterrupt: Ctrl-C, after the command has ended.
    """
    command = python_command("lorarlhf.cli", *words)
    apart = os.name != "nt"  # on Windows, Ctrl-C reaches all processes of a console
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
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


def last_line(log: Path) -> str:
    """The last line of a command's log: what it says of its failure."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else "it gave no reason."
