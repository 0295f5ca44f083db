"""Deleting runs: what needs them, what goes with them, and a kill in the middle."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.preferences.blind_comparisons import add_comparison
from lorarlhf.preferences.settings import ANSWERS, write_setting
from lorarlhf.project.project import DELETED, Project, create
from lorarlhf.project.rounds import decide
from lorarlhf.project.run_deletion import delete_run, dependents, finish_deletions
from lorarlhf.project.run_list import read_runs
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.lock import LOCK
from lorarlhf.runtime.process import identify
from tests.project_rounds import finished_round
from tests.run_folders import by_name, four_runs, write_run

# Deletes a run and is killed at the removal of the first folder in it, or of its votes.
KILLED = """
import os, shutil, signal, sys
from lorarlhf.project import run_deletion
from lorarlhf.project.project import Project
def kill(*words, **more):
    os.kill(os.getpid(), signal.SIGKILL)
place, name = (shutil, "rmtree") if sys.argv[2] == "folder" else (run_deletion, "_remove")
setattr(place, name, kill)
project = Project(sys.argv[1])
run_deletion.delete_run(project, "0002-reward", project.store())
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return create(tmp_path / "mine", base="tiny")


@pytest.fixture
def four(project: Project) -> Project:
    return four_runs(project)


def needed(project: Project, name: str) -> list[str]:
    return dependents(project, by_name(project)[name], read_runs(project), project.store())


def test_what_depends_on_a_run(four: Project) -> None:
    votes = four.folder.resolve() / "runs/0002-reward.votes.jsonl"
    votes.write_text("{}\n")
    write_run(four, "0005-dpo", config={"data": str(votes)})
    assert needed(four, "0001-sft") == [
        *("PPO 4 (0004-ppo) started from it", "PPO 3 (0003-ppo) started from it"),
        "Reward model 2 (0002-reward) started from it",
    ]
    assert needed(four, "0002-reward") == [
        "DPO 5 (0005-dpo) uses files of it",
        "PPO 4 (0004-ppo) was trained against its reward role",
        "PPO 3 (0003-ppo) was trained against its reward role",
    ]
    assert needed(four, "0003-ppo") == []
    with pytest.raises(UserError, match=r"Reward model 2 \(0002-reward\) can't be deleted: DPO 5"):
        delete_run(four, "2", four.store())
    assert (four.folder / "runs/0002-reward/run.json").is_file() and votes.is_file()


def test_many_dependents_are_counted(project: Project) -> None:
    write_run(project, "0001-sft")
    for n in range(2, 10):
        write_run(project, f"{n:04d}-dpo", config={"init": "0001-sft"})
    with pytest.raises(
        UserError, match=r"DPO 9 .*; DPO 5 \(0005-dpo\) started from it; and 3 more\."
    ):
        delete_run(project, "1", project.store())


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ("base", "runs/0003-ppo", {"0003-ppo"}),
        ("base, best of 4 by 0002-reward", "runs/0004-ppo", {"0002-reward", "0004-ppo"}),
        ("runs/0003-ppo, best of 4 by 0002-reward", "base", {"0002-reward", "0003-ppo"}),
    ],
)
def test_the_newest_comparison_needs_its_runs(
    four: Project, first: str, second: str, names: set[str]
) -> None:
    store = four.store()
    add_comparison(store, first, second, 5)
    text = f"the newest blind comparison, {first} against {second}, names it"
    assert {run.name for run in read_runs(four) if text in needed(four, run.name)} == names
    add_comparison(store, "base", "runs/0001-sft", 5)  # the earlier one is over
    assert not any(text in needed(four, run.name) for run in read_runs(four))


def test_the_settings_need_the_runs_that_they_name(four: Project) -> None:
    write_setting(four.store(), ANSWERS, {"model": "newest", "against": "0004-ppo"})
    assert needed(four, "0004-ppo") == ["it answers on the Rate page (see Settings)"]
    assert needed(four, "0003-ppo") == []


def test_jobs_that_wait_or_run_need_their_runs(four: Project) -> None:
    here, runs = identify(os.getpid()), four.folder.resolve() / "runs"
    assert here is not None
    record: dict[str, Any] = {"title": "More PPO", "stage": "ppo", "folder": ".", "run": None}
    record |= {"argv": ["ppo", str(four.folder), f"--init={runs / '0004-ppo'}"], "queued": 0.0}
    record |= dict.fromkeys(("started", "ended", "command")) | {"message": ""}
    record |= {"runner": here.as_json()}
    (four.folder / "jobs").mkdir()
    for changed, name, needs in (
        ({"state": "waiting"}, "0004-ppo", ["job 1 (More PPO) waits with it"]),
        ({"state": "running"}, "0004-ppo", ["job 1 (More PPO) runs with it"]),
        (
            {"state": "running", "run": str(runs / "0003-ppo")},
            "0003-ppo",
            ["job 1 (More PPO) runs"],
        ),
        ({"state": "waiting"}, "0003-ppo", []),
        ({"state": "done"}, "0004-ppo", []),
    ):
        (four.folder / "jobs" / "0001.json").write_text(json.dumps(record | changed))
        found = needed(four, name)
        assert len(found) == len(needs) and all(map(str.startswith, found, needs)), found


def test_rounds_that_were_not_dropped_need_their_runs(project: Project) -> None:
    first = finished_round(project, 1)
    parents = {"round": 1, "policy": "runs/0002-ppo"}
    second = finished_round(project, 2, parents=parents)
    assert needed(project, "0001-reward") == ["round 1 made it or starts from it"]
    assert needed(project, "0002-ppo") == [
        "round 2 made it or starts from it",
        "round 1 made it or starts from it",
    ]
    decide(project, second, "dropped")
    assert needed(project, "0004-ppo") == []
    assert needed(project, "0002-ppo") == ["round 1 made it or starts from it"]
    decide(project, first, "dropped")
    assert needed(project, "0002-ppo") == []


def test_a_deleted_run_is_gone_and_its_number_stays_taken(four: Project) -> None:
    runs = four.folder / "runs"
    for name in ("0004-ppo.votes.jsonl", "0004-ppo.votes-2.jsonl", "0003-ppo.votes.jsonl"):
        (runs / name).write_text("{}\n")
    (runs / "0004-ppo" / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    (runs / "0004-ppo" / "checkpoints" / "checkpoint-3" / "state.json").write_text("{}")
    assert delete_run(four, "0004-ppo", four.store()) == "0004-ppo"
    assert sorted(file.name for file in runs.glob("*")) == [
        *(DELETED, "0001-sft", "0002-reward", "0003-ppo", "0003-ppo.votes.jsonl")
    ]
    assert list((runs / DELETED / "0004-ppo").iterdir()) == []
    with pytest.raises(UserError, match="no run 0004-ppo"):
        delete_run(four, "0004-ppo", four.store())
    assert four.next_run("dpo").name == "0005-dpo"  # votes name 0004-ppo


def test_what_links_lead_to_stays(four: Project, tmp_path: Path) -> None:
    runs, elsewhere = four.folder / "runs", tmp_path / "elsewhere"
    (runs / "0004-ppo").rename(elsewhere)
    (runs / "0004-ppo").symlink_to(elsewhere, target_is_directory=True)
    (runs / "0003-ppo" / "adapters" / "shared").symlink_to(elsewhere, target_is_directory=True)
    before = sorted(elsewhere.rglob("*"))
    for name in ("0003-ppo", "0004-ppo"):
        delete_run(four, name, four.store())
    assert [run.name for run in four.runs()] == ["0002-reward", "0001-sft"]
    assert sorted(file for file in elsewhere.rglob("*") if file.name != LOCK) == before
    assert four.next_run("dpo").name == "0005-dpo"


@pytest.mark.parametrize("at", ["folder", "votes"])
def test_a_killed_deletion_leaves_no_half_run(project: Project, at: str) -> None:
    write_run(project, "0001-sft")
    write_run(project, "0002-reward", role="reward")
    votes = project.folder / "runs" / "0002-reward.votes.jsonl"
    if at == "votes":
        votes.write_text("{}\n")
    words = [sys.executable, "-c", KILLED, str(project.folder), at]
    assert subprocess.run(words, timeout=120).returncode == -signal.SIGKILL
    assert [run.name for run in project.runs()] == ["0001-sft"]  # whole, or not there at all
    grave = project.folder / "runs" / DELETED / "0002-reward"
    assert any(grave.rglob("adapter_config.json"))
    assert project.next_run("dpo").name == "0003-dpo"
    finish_deletions(project)
    assert list(grave.iterdir()) == [] and not votes.exists()


def test_a_run_that_was_put_back_can_be_deleted_again(four: Project) -> None:
    delete_run(four, "4", four.store())
    write_run(four, "0004-ppo")
    votes = four.folder / "runs" / "0004-ppo.votes.jsonl"
    votes.write_text("{}\n")
    finish_deletions(four)
    assert votes.exists()
    delete_run(four, "4", four.store())
    assert not votes.exists() and len(four.runs()) == 3
