"""Commands in a terminal and the queue for the device: `--queue`, and the warning without it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from lorarlhf.cli import queued
from lorarlhf.cli.main import main
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.project import device_queue
from lorarlhf.project.jobs import DONE, RUNNING, WAITING, find_job, list_jobs, read_job, start_job
from lorarlhf.project.project import Project
from lorarlhf.runtime.process import identify, is_ancestor
from tests.job_program import stand_in
from tests.waiting import until

SECONDS = 60.0


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project whose jobs run the stand-in; their processes end with the test."""
    with stand_in(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def gate(project: Project, tmp_path: Path) -> Path:
    """The file that ends a job which has the device."""
    file = tmp_path / "go"
    job = start_job(project, ["wait", str(file)], "A wait")
    until(lambda: read_job(job.file).state == RUNNING, SECONDS)
    return file


def test_a_training_waits_for_its_turn_as_a_job(
    project: Project, gate: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(project.folder)
    assert main(["ppo", "--queue", folder, "--set", "updates=3", "--set", "algorithm=grpo"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Job 2 (GRPO (updates=3, algorithm=grpo)) waits behind 1 other.")
    job = find_job(project, 2)
    assert job.state == WAITING and job.stage == "ppo" and str(job.log) in said
    gate.touch()
    until(lambda: read_job(job.file).state == DONE, SECONDS)
    words = ["ppo", folder, "--set", "updates=3", "--set", "algorithm=grpo"]
    run = read_job(job.file).run
    assert run is not None and run.name == "0001-ppo"
    assert job.log.read_text().startswith(f"$ lorarlhf {' '.join([*words, '--out', str(run)])}\n")


def test_what_can_not_wait_is_refused_at_once(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str) -> str:
        assert main([*words, "--queue"]) == 2
        return capsys.readouterr().err

    folder = str(project.folder)
    assert "for the runs of a project" in refused("sft", "--data", "demos.jsonl")
    assert "the project's next number" in refused("ppo", folder, "--out", str(tmp_path / "run"))
    assert f"lorarlhf jobs {folder} --resume N" in refused("ppo", folder, "--resume")
    assert "updates" in refused("ppo", folder, "--set", "updates=many")
    assert "no setting updatse" in refused("dpo", folder, "--set", "updatse=3")
    assert "votes" in refused("round", folder)
    assert "no setting updatse" in refused("round", folder, "--anyway", "--set", "updatse=3")
    assert list_jobs(project) == []


def test_a_round_is_a_job_once(
    project: Project, gate: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    better = Verdict("ranked", [[0], [1]])
    answers = (("Yes.", "base"), ("No.", "base"))
    store = project.store()
    add_votes(store, [ImportedVote(f"{n}?", answers, better) for n in range(30)])
    store.close()
    folder = str(project.folder)
    assert main(["round", "--set", "updates=2", folder, "--queue"]) == 0
    assert "Job 2 (A round: reward, tuning, comparison) waits" in capsys.readouterr().out
    assert find_job(project, 2).argv == ("round", folder, "--set", "updates=2")
    assert main(["round", folder, "--queue"]) == 2
    assert "A round waits already" in capsys.readouterr().err
    gate.touch()


def test_a_command_says_that_a_job_has_the_device_unless_it_belongs_to_it(
    project: Project,
    gate: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queued.warn_if_busy()
    said = capsys.readouterr().err
    assert f"Job 1 of {project.folder.resolve()} (A wait) has the device." in said
    with monkeypatch.context() as patch:
        patch.setattr(device_queue, "is_ancestor", lambda process: True)
        queued.warn_if_busy()
    gate.touch()
    until(lambda: not device_queue.queue(), SECONDS)
    queued.warn_if_busy()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("hidden", [False, True])
def test_ancestors_of_a_process(monkeypatch: pytest.MonkeyPatch, hidden: bool) -> None:
    def refuse(self: psutil.Process) -> list[psutil.Process]:
        raise psutil.AccessDenied(self.pid)

    if hidden:
        monkeypatch.setattr(psutil.Process, "parents", refuse)
    ours, parent = identify(os.getpid()), identify(os.getppid())
    assert ours is not None and is_ancestor(ours)
    assert parent is not None and is_ancestor(parent)
    assert not is_ancestor(replace(ours, mark="of an earlier process with this number"))
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    other = identify(child.pid)
    assert other is not None and not is_ancestor(other)
    child.communicate(b"\n")


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"])
def test_each_card_has_a_queue_of_its_own(
    project: Project, gate: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "0,1")  # of two cards a process takes the first
    assert [ticket.job for ticket in device_queue.queue()] == [1]
    monkeypatch.setenv(name, f"GPU-8f/1,{'GPU-long,' * 40}")
    assert device_queue.queue() == [] and device_queue.busy_with() is None
    other = start_job(project, ["end"], "On another card")
    until(lambda: read_job(other.file).state == DONE, SECONDS)
    monkeypatch.setenv(name, "")
    assert [ticket.job for ticket in device_queue.queue()] == [1]
    gate.touch()
