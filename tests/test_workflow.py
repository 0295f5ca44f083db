"""The workflow for GitHub: what it calls exists, on Pythons that the package takes."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from lorarlhf.cli.parser import build_parser
from tests.conftest import NOT_ON_WINDOWS
from tests.test_docs import text_of
from tests.test_packaging import PROJECT, ROOT

FILE = ".github/workflows/tests.yml"
JOBS: dict[str, Any] = yaml.safe_load(text_of(FILE))["jobs"]


def commands(job: str) -> list[str]:
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


def systems() -> list[tuple[str, str]]:
    """Every system with its Python."""
    found = [(JOBS["linux"]["runs-on"], python(JOBS["linux"]))]
    matrix = JOBS["quick"]["strategy"]["matrix"]
    found += [(system, version) for system in matrix["os"] for version in matrix["python"]]
    return found + [(row["os"], row["python"]) for row in matrix["include"]]


def python(job: dict[str, Any]) -> str:
    (version,) = (s["with"]["python-version"] for s in job["steps"] if "setup-python" in str(s))
    return str(version)


def test_linux_runs_what_is_run_at_home() -> None:
    assert commands("linux") == ["make check", "make test"]
    local = text_of(".ci/run").splitlines()
    assert [line for line in local if line.startswith("make")] == commands("linux")
    for command in commands("linux"):
        assert re.search(rf"^{command.split()[1]}:", text_of("Makefile"), re.MULTILINE)


def test_the_others_install_and_test_without_make() -> None:
    install, doctor, tests = commands("quick")
    words = shlex.split(install)
    assert (ROOT / words[words.index("-c") + 1]).is_file()
    extras = re.findall(r"\.\[(.*)\]", words[-1])[0].split(",")
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])
    build_parser().parse_args(shlex.split(doctor)[3:])
    words = shlex.split(tests)
    assert (ROOT / words[words.index("--ignore") + 1]).is_dir()
    assert words[words.index("-m", 3) + 1] == "not slow"
    declared = PROJECT["tool"]["pytest"]["ini_options"]["markers"]
    assert any(line.startswith("slow:") for line in declared)
    assert not any("make" in command.split() for command in commands("quick"))


def test_every_system_has_a_python_that_the_package_takes() -> None:
    names = {system for system, _ in systems()}
    assert names == {"ubuntu-latest", "windows-latest", "macos-latest"}
    wanted = SpecifierSet(PROJECT["project"]["requires-python"])
    assert all(wanted.contains(Version(version)) for _, version in systems())
    assert {"3.10", "3.11", "3.13"} <= {version for _, version in systems()}


def test_actions_are_pinned_and_may_read_only() -> None:
    used = [step["uses"] for job in JOBS.values() for step in job["steps"] if "uses" in step]
    assert used and all(re.fullmatch(r"actions/[a-z-]+@v\d+", name) for name in used)
    assert yaml.safe_load(text_of(FILE))["permissions"] == {"contents": "read"}
    assert all(0 < job["timeout-minutes"] <= 120 for job in JOBS.values())


@pytest.mark.parametrize(
    ("file", "left_out"),
    [
        ("test_locks.py", True),  # SIGKILL
        ("test_processes.py", True),  # forkserver
        ("invariants/test_kills.py", True),
        ("test_windows.py", False),
        ("test_packaging.py", False),
        ("test_data.py", False),
    ],
)
def test_windows_leaves_out_what_only_other_systems_have(file: str, left_out: bool) -> None:
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    assert bool(NOT_ON_WINDOWS.search(text)) == left_out
