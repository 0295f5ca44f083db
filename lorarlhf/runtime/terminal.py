"""Messages in the terminal, and the command that started this program."""

import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorarlhf.runtime import distributed

# A bar of tqdm: `PPO:  12%|###   | 3/24 [00:12<01:30,  4.20s/it, score=1.2]`.
BAR = re.compile(
    r"^(?P<title>[^|%\n]*?):?\s*\d+%\|[^|]*\|\s*(?P<done>\d+)/(?P<total>\d+)\s*"
    r"\[[\d:]+<(?P<left>[\d:?]+)"
)


def program_name() -> str:
    """The command to call this program; `make demo` runs one that is not on the path."""
    program = Path(sys.argv[0])
    if shutil.which("lorarlhf") or program.stem != "lorarlhf":  # lorarlhf.exe on Windows
        return "lorarlhf"
    return str(program)


def as_typed(words: Sequence[str]) -> str:
    """A command as a person types it here; words with spaces or signs of the shell are quoted."""
    if sys.platform != "win32":
        return shlex.join(words)
    return " ".join(f'"{word}"' if re.search(r"[\s<>|&^()%!;,=]", word) else word for word in words)


def launch_command() -> list[str]:
    """The words that start this program as it was started, also in several processes."""
    if distributed.world_size() == 1:
        return [program_name()]
    launcher = f"accelerate launch --multi_gpu --num_processes {distributed.world_size()}"
    return [*launcher.split(), "-m", "lorarlhf.cli"]


def log_to_stderr(text: str) -> None:
    """Print one line to standard error, in the main process; standard output is for results."""
    if distributed.is_main():
        print(text, file=sys.stderr, flush=True)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], Any]]:
    """A bar on standard error, in the main process; yields what moves it on by so many."""
    from tqdm import tqdm

    with tqdm(total=total, desc=title, disable=not distributed.is_main()) as bar:
        yield bar.update


@contextmanager
def progress_steps(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar as `progress_bar`; yields what takes the number of steps that are done by now."""
    with progress_bar(title, total) as advance:
        before = 0

        def reached(done: int) -> None:
            nonlocal before
            advance(done - before)
            before = done

        yield reached
