"""Ctrl-C in a training command, and --resume after it."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.project.project import create
from lorarlhf.runtime.files import read_json, write_json, write_jsonl
from lorarlhf.runtime.run import TIME, Run, earlier_sessions
from tests.training_steps import PPO, QUESTIONS, Train, ctrl_c_at, rows_of, summary_of

pytest_plugins = ("tests.training_steps",)


def test_ctrl_c_ends_after_the_update_and_resume_goes_on(work: Path, train: Train) -> None:
    data = ("--prompts", "prompts.jsonl", "--reward-function", "rewards.py:interrupts")
    words = ("ppo", *data, "--out", "stopped", "--json")
    sets = [*PPO, "updates=4", "save_steps=3"]
    handler = signal.getsignal(signal.SIGINT)
    status, out, err = train(*words, sets=sets)
    assert (status, out) == (130, "")
    assert "To resume where it ended" in err and "--resume" in err
    assert signal.getsignal(signal.SIGINT) is handler
    about = read_json(work / "stopped/run.json")
    assert about["status"] == "stopped"
    assert [row["step"] for row in rows_of(work / "stopped/metrics.jsonl")] == [1, 2]
    began = "2026-11-01T20:00:00"
    write_json(work / "stopped/run.json", about | {"seconds": 1000.0, "started": began})

    status, out, err = train(*words, "--resume", sets=sets)
    assert status == 0 and json.loads(out)["updates"] == 4
    assert "Continuing after update 2." in err and "other settings" not in err
    assert [row["step"] for row in rows_of(work / "stopped/metrics.jsonl")] == [1, 2, 3, 4]
    steps = [row["step"] for row in rows_of(work / "stopped/samples.jsonl")]
    assert steps == [0] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    about = read_json(work / "stopped/run.json")
    assert about["status"] == "done" and about["started"] == began < about["resumed"]
    assert 1000 < about["seconds"] < 1200  # of both sessions


def test_the_time_of_earlier_sessions_is_without_pauses(tmp_path: Path) -> None:
    assert earlier_sessions(tmp_path) == {}
    began = {"started": "2026-11-01T20:00:00"}
    write_json(tmp_path / "run.json", began | {"status": "running"})
    assert earlier_sessions(tmp_path) == began | {"earlier_seconds": 0.0}
    (tmp_path / "metrics.jsonl").touch()  # of a session that was killed a minute after it began
    killed = time.mktime(time.strptime("2026-11-03T08:01:00", TIME))
    os.utime(tmp_path / "metrics.jsonl", (killed, killed))
    resumed = {"resumed": "2026-11-03T08:00:00", "earlier_seconds": 30.0}
    write_json(tmp_path / "run.json", began | resumed)
    assert earlier_sessions(tmp_path) == began | {"earlier_seconds": 90.0}
    write_json(tmp_path / "run.json", began | resumed | {"seconds": 95.5})
    assert earlier_sessions(tmp_path) == began | {"earlier_seconds": 95.5}
    for broken in ({"started": 3}, {"started": "yesterday"}, {"seconds": 3.0}):
        write_json(tmp_path / "run.json", broken)
        assert earlier_sessions(tmp_path) == {}


def test_ctrl_c_ends_a_stage_after_the_step_and_resume_goes_on(work: Path, train: Train) -> None:
    (work / "settings.yaml").write_text("batch_size: 2\nepochs: 3\n")
    words = ("sft", "--data", "demos.jsonl", "--json")
    config = ("--config", "settings.yaml")
    sets = ["batch_size=4", "learning_rate=0.003", "trl.lr_scheduler_type=constant"]
    assert summary_of(train(*words, *config, "--out", "unstopped", sets=sets))["steps"] == 6
    with ctrl_c_at(3):
        status, out, err = train(*words, *config, "--out", "stopped_sft", sets=sets)
    assert (status, out) == (130, "") and "To resume where it ended" in err
    assert read_json(work / "stopped_sft/run.json")["status"] == "stopped"
    assert not (work / "stopped_sft/adapters").exists()
    # The settings are those of the run, without naming them again, and whatever its file says now.
    (work / "settings.yaml").write_text("batch_size: 1\nepochs: 5\n")
    status, out, err = train(*words, "--out", "stopped_sft", "--resume", sets=[])
    assert status == 0 and "Continuing after step 4." in err and "other settings" not in err
    assert json.loads(out)["steps"] == 6
    ours, theirs = (rows_of(work / name / "metrics.jsonl") for name in ("stopped_sft", "unstopped"))
    assert ours == theirs
    file = "adapters/policy/adapter_model.safetensors"
    assert (work / "stopped_sft" / file).read_bytes() == (work / "unstopped" / file).read_bytes()

    words += ("--out", "stopped_sft", "--resume")
    status, _, err = train(*words, *config, sets=[*sets, "lora_rank=8"])
    assert status == 2 and "adapters of another shape" in err


def test_a_project_s_run_goes_on_with_its_own_seed_and_start(work: Path, train: Train) -> None:
    project = create(work / "mine")
    assert "seed: 0" in (project.folder / "project.yaml").read_text(encoding="utf-8")
    words = ("dpo", "mine", "--data", "pairs.jsonl", "--json")
    with ctrl_c_at(0):  # as the first figures are written, before the first step
        assert train(*words, "--seed", "5", sets=["epochs=2", "plain=true"])[0] == 130
    before = read_json(work / "mine/runs/0001-dpo/run.json")["config"]
    assert before["learning_rate"] == 5e-4 and "init" not in before
    # A supervised run that came after it is not what it began with.
    assert train("sft", "mine", "--data", "demos.jsonl", sets=["epochs=1"])[0] == 0
    status, out, err = train("dpo", "mine", "--resume", "--json", sets=[])
    assert status == 0 and "other settings" not in err
    assert json.loads(out)["out"] == "mine/runs/0001-dpo"
    after = read_json(work / "mine/runs/0001-dpo/run.json")["config"]
    assert after == before and (after["seed"], after["plain"]) == (5, True)


def test_resume_without_a_checkpoint_says_so(work: Path, train: Train) -> None:
    data = ("--prompts", "prompts.jsonl", "--reward-function", "rewards.py:length")
    words = ("ppo", *data, "--out", "fresh", "--resume", "--json")
    status, _, err = train(*words, sets=[*PPO, "updates=1"])
    assert status == 0 and "no checkpoint yet" in err
    _, out, err = train(*words, sets=PPO)  # longer than it was meant to be at first
    assert "updates was 1 and is 2" in err and json.loads(out)["updates"] == 2


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (["What is more?"] * 2 + QUESTIONS, "there were 8, and now there are 10"),
        (QUESTIONS[:5], "there were 8, and now there are 5"),
        (QUESTIONS[::-1], "there are 8 as before"),
    ],
)
@pytest.mark.parametrize("stage", ["ppo", "sft"])
def test_a_run_whose_rows_have_changed_is_not_resumed(
    stage: str, rows: list[str], told: str, work: Path, train: Train
) -> None:
    file, out = work / f"{stage}-rows.jsonl", f"rows-{stage}-{len(rows)}"
    answer = {} if stage == "ppo" else {"completion": "A sum."}
    words = ["ppo", "--reward-function", "rewards.py:length", "--prompts", file.name]
    if stage == "sft":
        words = ["sft", "--data", file.name]
    words += ["--out", out]
    sets = [*PPO, "updates=1"] if stage == "ppo" else ["epochs=1", "batch_size=4", "save_steps=1"]
    write_jsonl(file, [{"prompt": q, "kind": "q", **answer} for q in QUESTIONS])
    assert train(*words, sets=sets)[0] == 0
    before = {path.name: path.stat().st_mtime_ns for path in (work / out).iterdir()}
    write_jsonl(file, [{"prompt": q, "kind": "q", **answer} for q in rows])
    status, _, err = train(*words, "--resume", sets=sets)
    assert status == 2 and told in err and "without --resume" in err
    assert {path.name: path.stat().st_mtime_ns for path in (work / out).iterdir()} == before
    # Rows behind the earlier ones change nothing.
    write_jsonl(file, [{"prompt": q, "kind": "q", **answer} for q in [*QUESTIONS, "And this?"]])
    status, _, err = train(*words, "--resume", sets=sets)
    assert status == 0 and "1 rows were added since this run began" in err
    assert read_json(work / out / "run.json")["rows"]["count"] == 8


def test_the_second_ctrl_c_stops_at_once() -> None:
    from lorarlhf.runtime.interrupt import StopAfterUpdate

    with StopAfterUpdate() as stopper:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopper.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("launched", [True, False])
def test_under_a_launcher_the_notice_says_when_it_kills(
    launched: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if launched:
        monkeypatch.setenv("LOCAL_RANK", "0")
    from lorarlhf.runtime.interrupt import StopAfterUpdate

    with StopAfterUpdate() as stopper:
        os.kill(os.getpid(), signal.SIGINT)
    error = capfd.readouterr().err
    assert stopper.requested and "Stopping after this update" in error
    assert ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600" in error) == launched


def test_ctrl_c_elsewhere_is_noted(
    work: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Run, *args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "log", interrupted)
    status, _, err = train("sft", "--data", "demos.jsonl", "--out", "early")
    assert status == 130 and "the same command starts again" in err
    assert read_json(work / "early/run.json")["status"] == "stopped"


def test_interrupts_outside_the_main_thread_are_left_alone() -> None:
    import threading

    from lorarlhf.runtime.interrupt import StopAfterUpdate

    handler = signal.getsignal(signal.SIGINT)
    seen: list[Any] = []

    def enter() -> None:
        with contextlib.suppress(ValueError), StopAfterUpdate():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [handler]
