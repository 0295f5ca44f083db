"""Two processes never write to one folder: runs, the demo, a project's pages."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.cli.demo import run_demo
from lorarlhf.cli.demo_options import DemoOptions
from lorarlhf.cli.main import main
from lorarlhf.project.project import create
from lorarlhf.runtime import lock
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_jsonl

HOLDS = """
import sys, time
from pathlib import Path
from lorarlhf.runtime.lock import hold
with hold(Path(sys.argv[1]), "Wait."):
    print("held", flush=True)
    time.sleep(600)
"""
SETS = ["bits=16", "compute_dtype=float32", "lora_rank=4", "epochs=1"]


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """A process that holds `tmp_path / "run"`."""
    words = [sys.executable, "-c", HOLDS, str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_held_folder_says_by_whom_and_since_when(other: Any, tmp_path: Path) -> None:
    for check in (lock.check_free, lambda *a: lock.hold(*a).__enter__()):
        with pytest.raises(UserError, match=rf"by process {other.pid} since \d\d:\d\d on 20.*Wait"):
            check(tmp_path / "run", "Wait.")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_end_of_the_process_frees_it(other: Any, tmp_path: Path, number: int) -> None:
    os.kill(other.pid, number)
    other.wait()
    lock.check_free(tmp_path / "run", "")
    with lock.hold(tmp_path / "run", ""):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_that_was_made_for_nothing_is_gone(tmp_path: Path) -> None:
    with lock.hold(tmp_path / "new", ""):
        assert (tmp_path / "new" / lock.LOCK).exists()
    assert not (tmp_path / "new").exists()
    with lock.hold(tmp_path / "new", ""):
        (tmp_path / "new" / "file").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_second_run_in_the_folder_of_a_running_one_is_refused(
    other: Any, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    before = sorted(path.name for path in folder.iterdir())
    rows = [{"prompt": "A fish?", "completion": "A cod."}] * 4
    write_jsonl(tmp_path / "rows.jsonl", rows)
    words = ["sft", "--data", str(tmp_path / "rows.jsonl"), "--base", str(tiny_base)]
    words += ["--out", str(folder), *(part for text in SETS for part in ("--set", text))]
    for more in ([], ["--resume"]):
        assert main([*words, *more]) == 2
        said = capsys.readouterr().err
        assert f"in use by process {other.pid}" in said and "--out" in said
        assert sorted(path.name for path in folder.iterdir()) == before
    with pytest.raises(UserError, match="in use by process"):
        run_demo(DemoOptions(out=str(folder), quick=True))
    other.kill()
    other.wait()
    assert main(words) == 0
    assert (folder / "earlier-1" / "metrics.jsonl").exists()
    assert not (folder / lock.LOCK).exists()


def test_a_project_s_pages_open_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "project"
    create(folder)
    words = [sys.executable, "-m", "lorarlhf.cli", "ui", str(folder), "--no-model"]
    words += ["--no-browser", "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as first:
        try:
            assert first.stderr is not None and "The pages are at" in first.stderr.readline()
            second = subprocess.run(words, capture_output=True, text=True, timeout=300)
        finally:
            first.kill()
    assert second.returncode == 2
    assert re.search(f"in use by process {first.pid} .*pages are open already", second.stderr)
