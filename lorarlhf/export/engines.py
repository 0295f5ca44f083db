"""The programs that will run an export, each in a process of its own.

llama.cpp ends its whole process where it finds something wrong, and a model needs its memory only
as long as it is asked. A job is a JSON file, and so is its result; standard output carries the
progress.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.installer import install_command
from lorarlhf.runtime.process import python_command

MARK = "@progress "
"""Begins a line of progress; libraries print other lines."""
TRANSFORMERS, LLAMA, SERVER = "transformers_process", "llama_process", "server_process"
NEEDS = {LLAMA: "cyllama", SERVER: "xllamacpp"}
LLAMA_ERROR = re.compile(r"[\d.]+ E (?:\w+ +)?\w+: +(.*)")
Row = dict[str, Any]


def check_installed(*engines: str) -> None:
    """See that what these processes import is installed.

    Raises:
        UserError: it is not; names the command that installs it.
    """
    for engine in engines:
        module = NEEDS.get(engine)
        if module is not None and importlib.util.find_spec(module) is None:
            raise UserError(
                f"GGUF files need {module.replace('_', '-')}, which is not installed. Run: "
                f"{install_command('lorarlhf[export]')}"
            )


def ask(engine: str, job: Row, progress: Callable[[int], Any] = lambda done: None) -> Row:
    """Run a job and return its result.

    Args:
        engine: one of the modules of this folder named above.
        progress: called with the number of the job's steps that are done.

    Raises:
        UserError: the process failed; the message has its last words.
    """
    with tempfile.TemporaryDirectory(prefix="lorarlhf-export-") as scratch:
        given, told, errors = (
            Path(scratch) / name for name in ("job.json", "result.json", "errors")
        )
        given.write_text(json.dumps(job), encoding="utf-8")
        words = (str(given), str(told))
        run_process(f"lorarlhf.export.{engine}", words, errors, progress)
        return json.loads(told.read_text(encoding="utf-8"))


def run_process(
    module: str,
    words: Sequence[str],
    errors: Path,
    progress: Callable[[int], Any] = lambda done: None,
    allowed: Sequence[int] = (0,),
) -> int:
    """Run a module of this package to its end; returns its exit status.

    Args:
        errors: the file that gets its standard error.
        allowed: exit statuses that are no failure.

    Raises:
        UserError: another exit status.
    """
    with errors.open("wb") as sink:
        process = subprocess.Popen(
            python_command(module, *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # it would start a debugger
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(MARK):
                    progress(int(line.removeprefix(MARK)))
            status = process.wait()
        finally:
            process.kill()  # after Ctrl-C; an ended one stays as it is
            process.wait()
    if status not in allowed:
        raise UserError(f"{_said(module, status)}: {last_words(errors)}")
    return status


def _said(module: str, status: int) -> str:
    what = {
        TRANSFORMERS: "transformers could not run the export",
        LLAMA: "llama.cpp could not run the export",
        SERVER: "llama.cpp's server could not run the export",
    }.get(module.rpartition(".")[2], "llama.cpp's converter failed")
    return f"{what} (it was ended by signal {-status})" if status < 0 else what


def last_words(file: Path) -> str:
    """The first error that llama.cpp names, or else the last line that says something."""
    lines = [line.strip() for line in file.read_text("utf-8", "replace").splitlines()]
    if errors := [found[1] for line in lines if (found := LLAMA_ERROR.match(line))]:
        return errors[0].rstrip(".") + "."
    told = [line for line in lines if line and not line.startswith(("~", "^", "File "))]
    if told[-1:] == ["AssertionError"]:  # says nothing without the line above it
        told = told[:-1]
    return told[-1].rstrip(".") + "." if told else "it said nothing."


# ---- inside the processes


def job_and_result() -> tuple[Row, Path]:
    """The job that this process was given, and the file for its result."""
    given, told = sys.argv[1:]
    return json.loads(Path(given).read_text(encoding="utf-8")), Path(told)


def tell(done: int) -> None:
    """Say how many steps are done."""
    print(f"{MARK}{done}", flush=True)
