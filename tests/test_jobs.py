"""Jobs by real processes: they wait in turn, end, are stopped, killed, and go on."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.cli.main import main
from lorarlhf.project import device_queue, jobs
from lorarlhf.project.jobs import (
    DONE,
    FAILED,
    INTERRUPTED,
    RUNNING,
    STOPPED,
    WAITING,
    Job,
    find_job,
    list_jobs,
    read_job,
    resume_job,
    start_job,
    stop_job,
)
from lorarlhf.project.jobs_runner import Runner, why
from lorarlhf.project.project import Project, create
from lorarlhf.project.run_deletion import delete_run
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.process import ProcessId, from_json, identify, is_running
from tests.job_program import stand_in
from tests.waiting import until

SECONDS = 60.0


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project whose jobs run the stand-in; their processes end with the test."""
    with stand_in(tmp_path, monkeypatch) as made:
        yield made


def wait_for(job: Job, state: str) -> Job:
    """The job once it is in a state."""
    return until(lambda: (now := read_job(job.file)).state == state and now, SECONDS)


def begun(job: Job, words: str = "words: wait") -> Job:
    """The job once its command has begun to wait."""
    now = wait_for(job, RUNNING)
    until(lambda: words in job.log.read_text(), SECONDS)
    return now


def test_a_job_runs_to_its_end(project: Project, tmp_path: Path) -> None:
    go = tmp_path / "go"
    job = start_job(project, ["wait", str(go)], "A wait")
    assert (job.id, job.title, job.argv) == (1, "A wait", ("wait", str(go)))
    assert job.file == project.folder / "jobs" / "0001.json"
    assert begun(job).started is not None and begun(job).ended is None
    assert [(one.job, one.running) for one in device_queue.queue()] == [(1, True)]
    go.touch()
    done = wait_for(job, DONE)
    assert done.queued <= done.started <= done.ended and done.run is None
    assert done.log.read_text().startswith(f"$ lorarlhf wait {go}\nwords: wait {go}\n")
    until(lambda: not device_queue.queue(), SECONDS)
    with pytest.raises(UserError, match="ended already"):
        stop_job(done)
    with pytest.raises(UserError, match="nothing to resume"):
        resume_job(done)


def test_a_job_that_fails_says_why(project: Project) -> None:
    failed = wait_for(start_job(project, ["fail"], "A failure"), FAILED)
    assert failed.message == "Bring them back." and failed.can_resume


def test_one_job_at_a_time_on_the_device_whatever_the_project(
    project: Project, tmp_path: Path
) -> None:
    other = create(tmp_path / "other")
    gos = [tmp_path / f"go{n}" for n in range(3)]
    first = start_job(project, ["wait", str(gos[0])], "first")
    begun(first)
    second = start_job(other, ["wait", str(gos[1])], "second")
    third = start_job(project, ["wait", str(gos[2])], "third")
    # They have their places before their processes have begun.
    places = [(one.project.name, one.job, one.running) for one in device_queue.queue()]
    assert places == [("project", 1, True), ("other", 1, False), ("project", 2, False)]
    assert [read_job(job.file).state for job in (second, third)] == [WAITING, WAITING]
    gos[2].touch()  # its turn has not come
    gos[0].touch()
    begun(second)
    assert read_job(first.file).state == DONE and read_job(third.file).state == WAITING
    gos[1].touch()
    wait_for(third, DONE)


def test_jobs_run_in_the_order_in_which_they_were_started(project: Project, tmp_path: Path) -> None:
    """Also where the process of a later one begins sooner."""
    jobs = [start_job(project, ["end"], str(number)) for number in range(5)]
    done = [wait_for(job, DONE) for job in jobs]
    starts = [job.started for job in done]
    assert None not in starts and starts == sorted(starts, key=lambda at: at or 0.0)


def test_a_killed_job_makes_room_for_the_next(project: Project, tmp_path: Path) -> None:
    first = begun(start_job(project, ["wait", str(tmp_path / "never")], "first"))
    second = start_job(project, ["end"], "second")
    until(lambda: len(device_queue.queue()) == 2, SECONDS)
    assert first.runner is not None and first.command is not None
    os.kill(first.runner.pid, signal.SIGKILL)
    until(lambda: not is_running(first.runner), SECONDS)
    # Its command goes on, still has the device, and is not taken for gone.
    assert read_job(first.file).state == RUNNING and read_job(second.file).state == WAITING
    os.kill(first.command.pid, signal.SIGKILL)
    wait_for(second, DONE)
    assert read_job(first.file).state == INTERRUPTED


def test_stop_lets_a_command_save_and_resume_goes_on(project: Project, tmp_path: Path) -> None:
    go = tmp_path / "go"
    job = begun(start_job(project, ["wait", str(go)], "A run", stage="sft"))
    run = project.folder.resolve() / "runs" / "0001-sft"
    assert job.run == run and f"--out {run}" in job.log.read_text()
    assert "--resume" not in job.log.read_text()
    stop_job(job)
    stopped = wait_for(job, STOPPED)
    assert "stop 1" in stopped.log.read_text() and stopped.stops == 1
    resumed = resume_job(stopped)
    assert (resumed.id, resumed.state, resumed.stops) == (1, WAITING, 0)
    until(lambda: f"--out {run} --resume" in job.log.read_text(), SECONDS)
    with pytest.raises(UserError, match="nothing to resume"):
        resume_job(job)
    go.touch()
    assert wait_for(job, DONE).run == run
    assert [path.name for path in project.runs()] == ["0001-sft"]


def test_a_stop_that_could_not_save_is_a_failure(project: Project, tmp_path: Path) -> None:
    words = ["full", str(tmp_path / "never")]
    job = begun(start_job(project, words, "Full", stage="sft"), "words: full")
    stop_job(job)
    failed = wait_for(job, FAILED)
    assert failed.message == "The disk is full." and failed.can_resume


def test_stop_again_and_again_ends_what_does_not_listen(project: Project, tmp_path: Path) -> None:
    words = ["stubborn", str(tmp_path / "never")]
    job = begun(start_job(project, words, "Stubborn"), "words: stubborn")
    for count in (1, 2):
        stop_job(job)
        until(lambda n=count: f"stop {n}" in job.log.read_text(), SECONDS)
        assert read_job(job.file).state == RUNNING
    stop_job(job)
    assert wait_for(job, STOPPED).stops == 3
    assert not is_running(job.command)


def test_a_job_that_waits_can_be_stopped(project: Project, tmp_path: Path) -> None:
    begun(start_job(project, ["wait", str(tmp_path / "never")], "first"))
    second = start_job(project, ["end"], "second")
    until(lambda: len(device_queue.queue()) == 2, SECONDS)
    stop_job(second)
    stopped = wait_for(second, STOPPED)
    assert stopped.started is None and "words" not in stopped.log.read_text()


def test_a_command_whose_runner_was_killed_is_stopped_and_resumed(
    project: Project, tmp_path: Path
) -> None:
    job = begun(start_job(project, ["wait", str(tmp_path / "go")], "A run", stage="sft"))
    assert job.runner is not None
    os.kill(job.runner.pid, signal.SIGKILL)
    until(lambda: not is_running(job.runner), SECONDS)
    assert read_job(job.file).state == RUNNING
    stop_job(job)
    stopped = wait_for(job, STOPPED)  # as its run.json says
    (tmp_path / "go").touch()
    resume_job(stopped)
    assert wait_for(job, DONE).run == job.run


def test_a_killed_run_is_interrupted_and_goes_on(project: Project, tmp_path: Path) -> None:
    job = begun(start_job(project, ["wait", str(tmp_path / "go")], "A run", stage="sft"))
    for process in (job.runner, job.command):
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
    interrupted = wait_for(job, INTERRUPTED)
    assert interrupted.can_resume and not interrupted.alive
    (tmp_path / "go").touch()
    resume_job(interrupted)
    wait_for(job, DONE)


def test_a_command_that_the_system_has_killed_has_failed_for_lack_of_memory(
    project: Project, tmp_path: Path
) -> None:
    job = begun(start_job(project, ["wait", str(tmp_path / "never")], "A wait"))
    assert job.command is not None
    os.kill(job.command.pid, signal.SIGKILL)
    message = wait_for(job, FAILED).message
    assert "ended by the system (signal 9), probably because memory ran out" in message


def test_the_last_words_of_a_command_are_no_bar(tmp_path: Path) -> None:
    log = tmp_path / "0001.log"
    log.write_text("The disk is full.\nSFT:  10%|#   | 1/10 [00:01<00:09, 1.0s/it]\r")
    assert why(2, log) == "The disk is full."
    assert "signal 11" in why(-signal.SIGSEGV, log)


def test_a_run_that_was_deleted_is_made_anew_under_another_name(
    project: Project, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    job = begun(start_job(project, ["wait", str(go)], "A run", stage="sft"))
    stop_job(job)
    stopped = wait_for(job, STOPPED)
    store = project.store()
    assert stopped.run is not None and delete_run(project, stopped.run.name, store) == "0001-sft"
    store.close()
    go.touch()
    resume_job(stopped)
    done = wait_for(job, DONE)
    assert done.run is not None and done.run.name == "0002-sft"


def test_a_command_whose_start_cannot_be_noted_is_ended(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = project.folder / "jobs" / "0001.json"
    file.parent.mkdir()
    runner = Runner(file, "token")
    words = ["wait", str(tmp_path / "never")]
    runner.record = {"title": "A wait", "argv": words, "stage": "", "run": None, "ticket": "1.json"}
    started: list[ProcessId | None] = []

    def fail(ticket: device_queue.Ticket, command: ProcessId | None) -> None:
        started.append(command)
        raise OSError("the disk is full")

    monkeypatch.setattr(device_queue, "mark_running", fail)
    with pytest.raises(OSError, match="the disk is full"):
        runner.run()
    assert started[0] is not None and not is_running(started[0]) and not device_queue.queue()


def test_a_runner_that_a_launcher_has_started_finds_itself(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a virtual environment on Windows, whose python.exe starts the real one."""
    start = jobs.start_detached
    launcher = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"

    def launched(command: Sequence[str], *rest: Any) -> ProcessId | None:
        return start([sys.executable, "-c", launcher, *command], *rest)

    monkeypatch.setattr(jobs, "start_detached", launched)
    wait_for(start_job(project, ["end"], "An end"), DONE)


def test_of_two_resumes_at_the_same_moment_one_counts(project: Project, tmp_path: Path) -> None:
    job = wait_for(start_job(project, ["fail"], "A failure"), FAILED)
    together, ends = threading.Barrier(2), list[str]()

    def resume() -> None:
        together.wait()
        try:
            ends.append(resume_job(job).state)
        except UserError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=resume) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends)[1] == WAITING and "nothing to resume" in sorted(ends)[0]


def test_a_reused_number_is_another_process(project: Project, tmp_path: Path) -> None:
    """After a reboot the number of a runner may be that of any process, here of this test."""
    here = identify(os.getpid())
    assert here is not None and is_running(here)
    later = ProcessId(here.pid, f"{here.mark} of another start")
    assert not is_running(later) and from_json(later.as_json()) == later
    job = begun(start_job(project, ["wait", str(tmp_path / "never")], "A wait"))
    for process in (job.runner, job.command):
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
    record = json.loads(job.file.read_text())
    job.file.write_text(json.dumps(record | {"runner": later.as_json(), "command": None}))
    assert read_job(job.file).state == INTERRUPTED
    job.file.write_text(json.dumps(record | {"runner": here.as_json(), "command": None}))
    assert read_job(job.file).state == RUNNING


BROKEN = ["", "{", "[]", "{}", '{"state": "flying"}', '{"state": "done", "argv": 3}', "\0" * 90]


def test_a_broken_record_is_a_failed_job_and_hides_no_other(project: Project) -> None:
    good = wait_for(start_job(project, ["end"], "good"), DONE)
    broken = project.folder / "jobs" / "0002.json"
    broken.with_suffix(".log").touch()
    for text in BROKEN:
        broken.write_text(text)
        found = list_jobs(project)
        assert [(job.id, job.state) for job in found] == [(2, FAILED), (1, DONE)], text
        assert "can't be read" in found[0].message and not found[0].can_resume
        with pytest.raises(UserError, match="can't be read"):
            resume_job(found[0])
        with pytest.raises(UserError, match="ended already"):
            stop_job(found[0])
    assert find_job(project, 1) == good
    assert wait_for(start_job(project, ["end"], "next"), DONE).id == 3


def test_two_jobs_started_at_once_have_two_numbers(project: Project) -> None:
    started = [start_job(project, ["end"], str(n)) for n in range(3)]
    assert [job.id for job in started] == [1, 2, 3]
    for job in started:
        wait_for(job, DONE)


def test_a_job_waits_until_the_models_have_made_room(project: Project, tmp_path: Path) -> None:
    model = device_queue.register_model(project.folder)
    (device_queue._folder("models") / "1-1.json").write_text(
        json.dumps({"process": {"pid": os.getpid(), "mark": "long ago"}})
    )
    assert device_queue.models() == [model]  # the other one's pages are gone
    job = start_job(project, ["end"], "A job")
    until(device_queue.queue, SECONDS)
    assert wait_for(job, WAITING) and "words" not in job.log.read_text()
    model.unlink()
    wait_for(job, DONE)


def test_the_next_run_takes_its_number_when_its_turn_comes(
    project: Project, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    begun(start_job(project, ["wait", str(go)], "first"))
    second = start_job(project, ["end"], "second", stage="reward")
    until(lambda: len(device_queue.queue()) == 2, SECONDS)
    project.next_run("sft")  # by a command in a terminal
    go.touch()
    done = wait_for(second, DONE)
    assert done.run is not None and done.run.name == "0002-reward"


def test_a_refused_run_leaves_no_folder(project: Project) -> None:
    failed = wait_for(start_job(project, ["fail"], "A run", stage="sft"), FAILED)
    assert failed.run is None and not project.runs()


def test_the_command_lists_stops_and_resumes(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(project.folder)

    def said(*words: str) -> str:
        status = main(["jobs", folder, *words])
        captured = capsys.readouterr()
        assert status == (2 if captured.err else 0)
        return captured.out + captured.err

    assert "has no jobs" in said()
    job = begun(start_job(project, ["wait", str(tmp_path / "go")], "A wait"))
    assert "running" in said() and "A wait" in said()
    assert "Job 1 (A wait): it stops after the running step" in said("--stop", "1")
    wait_for(job, STOPPED)
    (tmp_path / "go").touch()
    assert "waits for its turn again" in said("--resume", "1")
    wait_for(job, DONE)
    data = json.loads(said("--json"))
    assert [one["state"] for one in data["jobs"]] == ["done"] and data["queue"] == []
    assert "has no job 7" in said("--stop", "7")
    assert "ended already" in said("--stop", "1")
