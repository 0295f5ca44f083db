"""Commands in processes of their own: how they are stopped, and what is said of a killed one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lorarlhf.cli.own_process import reason
from tests.waiting import until


@pytest.mark.skipif(os.name == "nt", reason="no command ends by a signal there")
def test_a_killed_command_is_told_as_one(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("Peak after the first step: 0.6 GB.\n")
    assert reason(1, log) == "Peak after the first step: 0.6 GB."
    assert reason(-9, log).startswith("it was killed by the signal SIGKILL. Most likely")
    assert reason(-11, log) == "it was killed by the signal SIGSEGV."


@pytest.mark.skipif(os.name == "nt", reason="a process can't be asked to end there")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_what_ends_a_command_ends_the_one_that_it_waits_for(name: str, tmp_path: Path) -> None:
    """A child in a session of its own would train on, with nobody to see it."""
    child = tmp_path / "child.py"
    child.write_text(
        "import pathlib, time\n"
        "try:\n    pathlib.Path('begun').touch()\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    pathlib.Path('stopped').touch()\n"
    )
    program = (
        "import signal, sys\nfrom pathlib import Path\nfrom lorarlhf.cli import own_process\n"
        f"signal.signal(signal.{name}, signal.SIG_DFL)\n"  # the suite's own may be ignored
        f"own_process.python_command = lambda *words: [{str(tmp_path / 'python')!r}]\n"
        "own_process.run_command([], Path('log.txt'))\n"
    )
    start = tmp_path / "python"  # in place of `python -m lorarlhf.cli`
    start.write_text(f"#!/bin/sh\nexec {sys.executable} {child}\n")
    start.chmod(0o755)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=environment)
    try:
        until(lambda: (tmp_path / "begun").exists(), 60)
        parent.send_signal(getattr(signal, name))
        assert parent.wait(20) != 0 and (tmp_path / "stopped").exists()
    finally:
        parent.kill()
