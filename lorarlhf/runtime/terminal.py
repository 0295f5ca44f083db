"""What the person at the terminal reads, and how they call this program."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from lorarlhf.runtime import distributed

Say = Callable[[str], None]


def program_name() -> str:
    """How to call this program: `make demo` runs one that is not on the path."""
    program = Path(sys.argv[0])
    if shutil.which("lorarlhf") or program.name != "lorarlhf":
        return "lorarlhf"
    return str(program)


def launch_command() -> list[str]:
    """The words that start this program as it was started: alone, or in several processes."""
    if distributed.world_size() == 1:
        return [program_name()]
    started = f"accelerate launch --multi_gpu --num_processes {distributed.world_size()}"
    return [*started.split(), "-m", "lorarlhf.cli"]


def log_to_stderr(text: str) -> None:
    """One line for the person at the terminal; standard output stays free for results."""
    if distributed.is_main():
        print(text, file=sys.stderr, flush=True)
