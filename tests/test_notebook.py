"""The notebook for Colab and Kaggle: its commands parse, and it runs from top to bottom."""

import ast
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from lorarlhf.cli.parser import build_parser
from lorarlhf.runtime.files import read_json

ROOT = Path(__file__).parents[1]
FILE = ROOT / "notebooks" / "first_steps.ipynb"


def notebook() -> Any:
    return nbformat.read(FILE, as_version=4)


def sources(kind: str = "code") -> list[str]:
    return [cell.source for cell in notebook().cells if cell.cell_type == kind]


def test_it_is_valid_and_holds_no_outputs() -> None:
    nbformat.validate(notebook())
    for cell in notebook().cells:
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None
    assert FILE.stat().st_size < 20_000


def test_its_python_parses_and_its_commands_are_accepted() -> None:
    commands = 0
    for source in sources():
        if not source.startswith("%%bash"):
            ast.parse(source)
            continue
        for line in re.findall(r"lorarlhf [^|\n]+", source):
            words = [word for word in shlex.split(line.replace("$1", "4")) if word != "||"]
            words = ["base" if word == "$role" else word for word in words]
            build_parser().parse_args(words[1:])
            commands += 1
    assert commands > 6


def test_an_installed_package_is_not_installed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    (install,) = (source for source in sources() if "PACKAGE" in source)
    ran: list[list[str]] = []
    monkeypatch.setattr("subprocess.run", lambda command, **_: ran.append(command))
    exec(compile(install, "install", "exec"), {})
    assert ran == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(compile(install, "install", "exec"), {})
    assert ran == [[sys.executable, "-m", "pip", "install", "-q", "lorarlhf"]]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the small base, with fewer prompts and updates than it has."""
    ready = notebook()
    smaller = {"PROMPTS = 150": "PROMPTS = 24", "UPDATES = 16": "UPDATES = 1"}
    smaller |= {"demo --quick": "demo --quick --updates 1"}
    for said, taken in smaller.items():
        (cell,) = (cell for cell in ready.cells if said in cell.source)
        cell.source = cell.source.replace(said, taken)
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    client = NotebookClient(
        ready,
        timeout=2300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    said = ["".join(o.get("text", "") for o in c.get("outputs", [])) for c in ready.cells]
    assert any(re.search(r"^\d+ votes\.$", text, re.MULTILINE) for text in said)
    assert all(f"--- {role}\n" in said[-3] for role in ("base", "policy"))
    runs = tmp_path / "my-assistant" / "runs"
    folders_of_runs = sorted(run for run in runs.iterdir() if run.is_dir())
    states = {run.name: read_json(run / "run.json")["status"] for run in folders_of_runs}
    assert states == {"0001-reward": "done", "0002-ppo": "done"}
    assert (tmp_path / "my-assistant.zip").is_file()
