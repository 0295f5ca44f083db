"""The command `runs`: the table and the tree, titles, dropping, deleting."""

import json
import os
import re
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from lorarlhf.cli.eval_plan import _newest_of_each_stage
from lorarlhf.cli.main import main
from lorarlhf.project.project import Project, create
from lorarlhf.project.run_labels import read_label
from lorarlhf.runtime.files import write_json
from tests.run_folders import ppo_rows, write_run

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """`lorarlhf runs mine ...` in a folder with that project."""
    monkeypatch.chdir(tmp_path)
    create(tmp_path / "mine", base="tiny")

    def run(*words: str) -> tuple[int, str, str]:
        status = main(["runs", "mine", *words])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def project(command: Command) -> Project:
    made = Project("mine")
    write_run(made, "0001-sft", summary={"loss_last": 1.5})
    write_run(made, "0002-reward", role="reward", summary={"heldout_accuracy": 0.75, "n": 40})
    sources = {"init": "0001-sft", "reward": "0002-reward"}
    write_run(made, "0003-ppo", config=sources, rows=ppo_rows(4), status="stopped")
    return made


def test_a_project_without_runs(command: Command) -> None:
    status, out, _ = command()
    assert status == 0 and "There are no runs yet. `lorarlhf reward mine`" in out
    assert json.loads(command("--json")[1]) == {"runs": [], "tree": []}


def test_the_table_and_the_tree(command: Command, project: Project) -> None:
    assert command("--rename", "3", "friendly, in few words")[0] == 0
    status, out, _ = command()
    lines = out.splitlines()
    assert status == 0 and lines[0].split() == [
        *("run", "title", "state", "started", "took", "size", "started", "from", "result")
    ]
    assert re.split(r"\s\s+", lines[1])[:2] == ["0003-ppo", "friendly, in few words"]
    for part in ("stopped", "2026-11-28 19:49", "2 min", "policy of 0001-sft; reward of 0002-r"):
        assert part in lines[1], part
    assert lines[1].endswith("step 4; score 0.4")
    assert lines[2].endswith("75% of 40 held-out pairs right")
    assert out.endswith(
        "What started from what:\nsmollm2-135m\n  0001-sft\n"
        "    0003-ppo “friendly, in few words” (reward of 0002-reward)\n  0002-reward\n"
    )


def test_the_list_as_json(command: Command, project: Project) -> None:
    data = json.loads(command("--json")[1])
    assert [run["name"] for run in data["runs"]] == ["0003-ppo", "0002-reward", "0001-sft"]
    ppo = data["runs"][0]
    assert (ppo["number"], ppo["state"], ppo["label"]) == (3, "stopped", "PPO 3")
    assert [source["run"] for source in ppo["sources"]] == ["0001-sft", "0002-reward"]
    assert ppo["results"] == {"step": 4.0, "score": 0.4} and ppo["bytes"] > 1024
    assert ppo["win_rate"] is None and ppo["roles"] == ["policy"]
    assert data["tree"] == [
        {"run": "0001-sft", "depth": 0},
        {"run": "0003-ppo", "depth": 1},
        {"run": "0002-reward", "depth": 0},
    ]


def test_the_evaluation_of_a_round_counts(command: Command, project: Project) -> None:
    won = {"candidate": "0003-ppo", "rate": 0.7, "ci95": [0.5, 0.9], "n": 20}
    for place, rate in (("eval", 0.4), ("rounds/0001/eval", 0.7)):
        (project.folder / place).mkdir(parents=True)
        judge = {"judge": "f", "independent": True, "results": [won | {"rate": rate}]}
        write_json(project.folder / place / "eval.json", {"judges": [judge]})
    os.utime(project.folder / "eval/eval.json", (1.0, 1.0))
    assert "wins 70% (50 to 90) of 20, by f" in command()[1]


def test_changes(command: Command, project: Project) -> None:
    run = project.folder / "runs" / "0002-reward"
    status, out, _ = command("--drop", "0002-reward")
    assert status == 0 and "0002-reward is dropped" in out and read_label(run).dropped
    assert "done, dropped" in command()[1]
    status, out, _ = command("--keep", "2", "--json")
    assert json.loads(out) == {"run": "0002-reward", "dropped": False}
    assert not read_label(run).dropped
    assert command("--rename", "2", "")[1] == "0002-reward has no title.\n"
    status, _, err = command("--rename", "2", "x" * 81)
    assert status == 2 and "up to 80 characters" in err
    status, _, err = command("--drop", "9")
    assert status == 2 and "has no run 9" in err


def test_eval_compares_no_dropped_run(command: Command, project: Project) -> None:
    write_run(project, "0004-sft")
    assert [run.name for run in _newest_of_each_stage(project)] == ["0004-sft"]
    command("--drop", "4")
    assert [run.name for run in _newest_of_each_stage(project)] == ["0001-sft"]


def test_deleting(
    command: Command, project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = project.folder / "runs" / "0003-ppo"
    terminal = StringIO("n\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    status, out, err = command("--delete", "1")
    assert status == 2 and "PPO 3 (0003-ppo) started from it" in err and "Delete it?" not in out
    status, out, _ = command("--delete", "3")
    assert status == 0 and "will be removed for good" in out and run.is_dir()
    terminal.seek(0)
    terminal.write("y\n")
    terminal.seek(0)
    status, out, _ = command("--delete", "3")
    assert status == 0 and "0003-ppo is deleted" in out and not run.exists()
    monkeypatch.setattr(sys, "stdin", StringIO())
    status, out, _ = command("--delete", "1", "--json")
    deleted = json.loads(out)
    assert status == 0 and deleted["deleted"] == "0001-sft" and deleted["bytes"] > 1024
