"""A stand-in for `lorarlhf` in the tests of jobs: it starts in a moment, and does as it is told.

Python imports a file `sitecustomize.py` on its path before anything else; `install` writes one that
runs `main` where a process is started as the command line.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from lorarlhf.project.project import Project

CUSTOMIZE = """
import runpy, sys
if "lorarlhf.cli" in sys.orig_argv:
    words = sys.orig_argv[sys.orig_argv.index("lorarlhf.cli") + 1 :]
    sys.argv = ["lorarlhf", *words]
    runpy.run_path({program!r}, run_name="__main__")
"""


def install(folder: Path) -> str:
    """Write the file into a folder; returns a PYTHONPATH with the folder in front."""
    folder.mkdir()
    text = CUSTOMIZE.format(program=str(Path(__file__).resolve()))
    (folder / "sitecustomize.py").write_text(text)
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))


@contextmanager
def stand_in(folder: Path, monkeypatch: "pytest.MonkeyPatch") -> Iterator["Project"]:
    """A new project in a folder, with a queue of its own, whose jobs run the stand-in.

    All processes of its jobs end with the block, and those of a project `other` beside it.
    """
    from lorarlhf.project.jobs import list_jobs
    from lorarlhf.project.project import Project, create, is_project
    from lorarlhf.runtime.process import kill_group

    monkeypatch.setenv("LORARLHF_CACHE", str(folder / "cache"))
    monkeypatch.setenv("PYTHONPATH", install(folder / "path"))
    made = create(folder / "project")
    try:
        yield made
    finally:
        others = [Project(folder / "other")] if is_project(folder / "other") else []
        jobs = [job for project in (made, *others) for job in list_jobs(project)]
        for process in (one for job in jobs for one in (job.runner, job.command) if one):
            kill_group(process)


def main(words: list[str]) -> int:
    """Do what the first word says.

    `wait FILE` says that it has begun and waits for the file; Ctrl-C ends it as a training. After
    Ctrl-C, `full FILE` fails, as a training that can't write its checkpoint. `fail` ends with an
    error, and `end` at once. With `--out` a run folder is written.
    """
    out = Path(words[words.index("--out") + 1]) if "--out" in words else None
    stops = 0

    def note(status: str) -> None:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / "run.json").write_text(f'{{"status": "{status}", "stage": "sft"}}')

    def on_signal(number: int, frame: object) -> None:
        nonlocal stops
        stops += 1
        print(f"stop {stops}", flush=True)

    signal.signal(signal.SIGINT, on_signal)
    if words[0] == "estimate":
        return estimate(words)
    print("words:", *words, flush=True)
    if words[0] == "fail":
        print("The votes are gone.\nBring them back.", file=sys.stderr)
        return 2
    note("running")
    while words[0] in ("wait", "stubborn", "full") and not Path(words[1]).exists():
        if stops and words[0] == "wait":
            note("stopped")
            return 130
        if stops and words[0] == "full":
            print("The disk is full.", file=sys.stderr)
            return 2
        time.sleep(0.01)
    note("done")
    return 0


def estimate(words: list[str]) -> int:
    """As `lorarlhf estimate --project --json`; a setting without a number is a mistake."""
    sets = [word for word, before in zip(words[1:], words, strict=False) if before == "--set"]
    if any(not text.partition("=")[2][:1].isdigit() for text in sets):
        print("Reading the rows.\nA setting is a number.", file=sys.stderr)
        return 2
    found = {"needed": 1.5e9, "free": 4e9, "advice": "", "seconds": 240.0}
    found |= {
        "time": "about 4 minutes.",
        "settings": {"updates": 20, "kl_coef": 0.05, "kl_target": None},
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)
