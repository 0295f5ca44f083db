"""The Train page: what can be started, and a run as its files tell it, without a browser."""

import html
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.project.jobs import DONE, RUNNING, STOPPED, Job, list_jobs, start_job
from lorarlhf.project.rounds import MIN_VOTES
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.process import python_command
from lorarlhf.stages.table import STAGES
from lorarlhf_ui.train import Training
from lorarlhf_ui.train_curves import curves, points
from lorarlhf_ui.train_form import form_html, kinds_of
from lorarlhf_ui.train_html import buttons, estimate_html, left_words, samples_html, standing
from lorarlhf_ui.train_run import Progress, Rows, alarms, messages, progress, samples
from tests.job_program import stand_in
from tests.project_rounds import finished_round, vote
from tests.waiting import until

SECONDS = 60.0
HOSTILE = "<img src=x onerror=\"document.title='taken'\">"


# ---- the form


def test_every_stage_can_be_started_and_other_algorithms_too() -> None:
    kinds = kinds_of(STAGES.values())
    assert set(STAGES) | {"rloo", "grpo"} == set(kinds)
    assert kinds["rloo"].stage == "ppo" and kinds["rloo"].sets == ("algorithm=rloo",)
    for kind in kinds.values():
        assert len(kind.on_top) == 3, kind.name
    assert "gamma" in kinds["ppo"].keys and "gamma" not in kinds["rloo"].keys  # it has no critic
    assert "num_generations" in kinds["grpo"].keys
    assert not {"kl_budget", "eval_kl_steps"} & {*kinds["ppo"].keys}  # for --eval alone
    assert kinds["ppo"].on_top == ["updates", "kl_coef", "learning_rate"]
    assert kinds["dpo"].on_top == ["epochs", "learning_rate", "beta"]
    assert kinds["reward"].on_top == ["epochs", "learning_rate", "holdout"]
    words = kinds["rloo"].words({"updates": " 4 ", "kl_coef": ""})
    assert words == ["--set", "algorithm=rloo", "--set", "updates=4"]
    assert kinds["ppo"].title({"updates": "4", "kl_coef": ""}) == "PPO (updates=4)"
    assert kinds["sft"].title({}) == "SFT"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"no_such": "1"}, "no setting no_such"),
        ({"updates": "1\n--json"}, "one line"),
        ({"updates": "1" * 201}, "up to 200 characters"),
    ],
)
def test_what_is_no_setting_is_refused(settings: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        kinds_of(STAGES.values())["ppo"].words(settings)


def test_the_form_has_a_field_for_every_setting() -> None:
    kinds = kinds_of(STAGES.values())
    page = form_html(kinds)
    for kind in kinds.values():
        (group,) = re.findall(rf'<fieldset data-kind="{kind.name}".*?</fieldset>', page)
        named = re.findall(r' name="(\w+)"', group)
        fixed = {text.partition("=")[0] for text in kind.sets}
        assert sorted(named) == sorted(set(kind.keys) - fixed)
        assert named[:3] == kind.on_top and "<details>" in group.split(f'name="{named[2]}"')[1]


# ---- files of a run


def test_the_progress_of_a_command() -> None:
    lines = [
        "$ lorarlhf ppo mine",
        "Memory: about 1.2 GB at the peak.",
        "PPO:   0%|          | 0/24 [00:00<?, ?it/s]",
        "PPO:  12%|█▎        | 3/24 [00:12<01:30,  4.20s/it, score=1.2]",
        "Update 3, kl_runaway: 50% of it | far",
    ]
    assert progress(lines) == Progress("PPO", 3, 24, 90)
    assert left_words(Progress("PPO", 3, 24, 90)) == "About 1 min 30 s left (PPO: 3 of 24)."
    assert progress(lines[:3]) == Progress("PPO", 0, 24, None)
    assert progress([lines[3], "$ lorarlhf ppo mine --resume"]) is None  # of the time before
    assert messages(lines) == [lines[0], lines[1], lines[4]]
    long = progress(["reward model:  50%|#####     | 1200/2400 [1:00:00<1:02:03, 2s/it]"])
    assert long == Progress("reward model", 1200, 2400, 3723)


def test_a_growing_file_is_read_again(tmp_path: Path) -> None:
    rows, file = Rows(), tmp_path / "metrics.jsonl"
    assert rows.of(file) == []
    file.write_text('{"step": 1}\n{"step": ')
    assert rows.of(file) == [{"step": 1}]  # half a line is being written
    assert rows.of(file) is rows.of(file)
    file.write_text('{"step": 1}\n{"step": 2}\n')
    assert rows.of(file) == [{"step": 1}, {"step": 2}]


def test_the_curves_of_a_run() -> None:
    rows: list[dict[str, Any]] = [{"step": n, "loss": 1 / n} for n in range(1, 5)]
    rows += [{"step": 4, "loss": 0.5, "eval_loss": None}, {"step": 5, "loss": float("nan")}]
    assert points(rows, "loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.5)]  # the later of two
    drawn = curves(rows, "dpo")
    assert drawn.count("<svg") == 1 and "loss from 1 to 0.5" in drawn or "train from 1" in drawn
    (line,) = re.findall(r'<polyline class="one" points="([^"]*)"', drawn)
    xs, ys = zip(*(map(float, point.split(",")) for point in line.split()), strict=True)
    assert list(xs) == sorted(xs) and ys[0] < ys[1] < ys[2] and ys[1] == ys[3]  # down is larger
    assert curves([], "dpo") == "" and curves([{"step": 1, "other": 2}], "dpo") == ""
    assert curves([{"step": 1, "loss": 2.0}], "dpo").count("<circle") == 1
    many = [{"step": n, "loss": 1.0} for n in range(10_000)]
    assert len(points(many, "loss")) <= 150


def test_alarms_are_told_once_with_their_newest_words() -> None:
    rows = [
        {"step": 3, "alarm": "ratio", "words": "It was 1.2."},
        {"step": 4, "score": 1.0},
        {"step": 9, "alarm": "ratio", "words": "It is 1.4."},
        {"step": 5, "alarm": "length_drift", "words": "Answers grow."},
    ]
    assert [row["words"] for row in alarms(rows)] == ["It is 1.4.", "Answers grow."]


def test_samples_show_the_first_and_the_newest_answer_and_no_markup() -> None:
    rows = [
        {"step": step, "prompt": "Why?", "completion": f"{HOSTILE} {step}", "score": step / 2}
        for step in (0, 4, 8)
    ]
    (sample,) = samples(rows)
    assert (sample.first["step"], sample.last["step"]) == (0, 8)
    shown = samples_html([sample])
    assert "Step 0, score 0.00" in shown and "Step 8, score 4.00" in shown
    assert "<img" not in shown and html.escape(HOSTILE.split()[0]) in shown
    assert samples([{"step": 1}]) == []


def job(**changes: Any) -> Job:
    """A job that runs."""
    fields: dict[str, Any] = {"file": Path("jobs/0001.json"), "id": 1, "title": "PPO"}
    fields |= {"argv": ("ppo",), "stage": "ppo", "folder": Path(), "state": RUNNING}
    fields |= {"run": Path("runs/0003-ppo"), "queued": 0.0, "started": 10.0, "ended": 70.0}
    return Job(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "It has run for 1 min 0 s. It is getting ready. Its run is 0003-ppo."),
        ({"stops": 1}, "It stops after the running step and saves it."),
        ({"stops": 3}, "It is being ended."),
        ({"state": "waiting", "started": None}, "It waits for 2 other jobs."),
        ({"state": "done"}, "It is done, after 1 min 0 s. Its run is 0003-ppo."),
        ({"state": "stopped"}, "It was stopped after 1 min 0 s, and what it had done is saved."),
        ({"state": "stopped", "stops": 1}, "and what it had done is saved."),
        ({"state": "stopped", "stops": 2}, "after 1 min 0 s. Resume it, and it goes on after its"),
        ({"state": "stopped", "started": None}, "It was stopped before its turn came."),
        ({"state": "failed", "message": "The disk is full."}, "It failed. The disk is full."),
        ({"state": "interrupted", "ended": None}, "as when the machine is switched off. Resume"),
    ],
)
def test_where_a_job_stands(changes: dict[str, Any], said: str) -> None:
    assert said in standing(job(**changes), None, ahead=2)


def test_a_run_that_is_gone_starts_again(tmp_path: Path) -> None:
    assert ">Resume<" in buttons(job(state="stopped", run=tmp_path))
    for gone in (None, tmp_path / "gone"):
        assert ">Start again<" in buttons(job(state="stopped", run=gone))
    assert ">Resume<" in buttons(job(state="failed", stage="", run=None))  # a round


# ---- requests


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Training]:
    """The page of a project whose jobs run the stand-in."""
    with stand_in(tmp_path, monkeypatch) as project:
        yield Training(project, STAGES.values())


def now(training: Training) -> Job:
    return list_jobs(training.project)[0]


def test_a_run_is_started_stopped_and_resumed(training: Training) -> None:
    view = training.look("me", {})
    assert "Nothing has been started" in view["sections"]["now"] and not view["busy"]
    chosen = {"kind": "ppo", "settings": {"updates": "4", "kl_coef": ""}, "anyway": True}
    view = training.start("me", chosen)
    assert view["busy"] and 'data-state="' in view["sections"]["now"]
    folder = training.project.folder.resolve()
    started = now(training)
    assert started.argv == ("ppo", str(folder), "--set", "updates=4", "--no-memory-check")
    assert (started.title, started.stage) == ("PPO (updates=4)", "ppo")
    until(lambda: now(training).state == DONE, SECONDS)  # the stand-in ends at once
    view = training.look("me", {})
    assert "It is done" in view["sections"]["now"] and "words: ppo" in view["sections"]["log"]
    until(lambda: not training.look("me", {})["busy"], SECONDS)
    assert "Nothing runs or waits" in training.look("me", {})["sections"]["queue"]


def test_what_runs_is_shown_before_what_is_newer(training: Training, tmp_path: Path) -> None:
    go = tmp_path / "go"
    start_job(training.project, ["wait", str(go)], f"first {HOSTILE}")
    until(lambda: now(training).state == RUNNING, SECONDS)
    until(lambda: "words" in now(training).log.read_text(), SECONDS)
    start_job(training.project, ["end"], "second")
    until(lambda: training.look("me", {})["sections"]["queue"].count("<li>") == 2, SECONDS)
    view = training.look("me", {})["sections"]
    assert "first" in view["now"] and "Stop after this step" in view["now"]
    assert "second" in view["earlier"] and "Take it out of the queue" in view["earlier"]
    assert not [part for part in view.values() if "<img" in part]
    training.stop("me", {"job": 2})
    training.stop("me", {"job": 1})
    until(lambda: not [one for one in list_jobs(training.project) if one.alive], SECONDS)
    assert [one.state for one in list_jobs(training.project)] == [STOPPED, STOPPED]
    go.touch()
    view = training.resume("me", {"job": 1})
    until(lambda: list_jobs(training.project)[1].state == DONE, SECONDS)
    for wrong in ({}, {"job": "1"}, {"job": True}, {"job": 9}):
        with pytest.raises(UserError):
            training.stop("me", wrong)


def test_a_round_is_one_job_at_a_time(training: Training) -> None:
    with pytest.raises(UserError, match="votes"):
        training.tonight("me", {})
    vote(training.project, range(MIN_VOTES))
    training.tonight("me", {})
    assert now(training).argv == ("round", str(training.project.folder.resolve()))
    if now(training).alive:
        with pytest.raises(UserError, match="A round"):
            training.tonight("me", {})
    until(lambda: now(training).state == DONE, SECONDS)
    assert "No round yet" in training.look("me", {})["sections"]["round"]


def test_a_round_waits_until_the_last_one_is_decided(training: Training) -> None:
    vote(training.project, range(3 * MIN_VOTES))
    finished_round(training.project, 1)
    with pytest.raises(UserError, match=r"nobody has said what becomes of it\. Keep or drop it"):
        training.tonight("me", {})
    assert list_jobs(training.project) == []


def test_a_round_shows_the_curves_of_the_run_that_it_makes_now(training: Training) -> None:
    vote(training.project, range(MIN_VOTES))
    earlier = training.project.next_run("sft")
    (earlier / "run.json").write_text("{}")
    os.utime(earlier / "run.json", (1.0, 1.0))
    training.tonight("me", {})
    until(lambda: now(training).state == DONE, SECONDS)
    assert training._run_made_by(now(training)) is None
    run = training.project.next_run("reward")
    (run / "run.json").write_text("{}")
    rows = [{"stage": "reward", "step": n, "loss": 1.0 / n} for n in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    began = now(training).started
    assert began is not None
    os.utime(run / "run.json", (began, began))
    assert training._run_made_by(now(training)) == run
    assert "<svg" in training.look("me", {})["sections"]["curves"]


def test_the_newest_round_is_kept_or_dropped(training: Training) -> None:
    for wrong in ({}, {"round": "1"}, {"round": 1}):
        with pytest.raises(UserError, match="does not know this round"):
            training.drop("me", wrong)
    one = finished_round(training.project, 1)
    training._card = -1e9, ""
    shown = training.look("me", {})["sections"]["round"]
    assert "Keep round 1" in shown and "Drop round 1" in shown
    kept = training.keep("me", {"round": one.number})["sections"]["round"]
    assert "Keep round 1" not in kept and "Drop round 1" in kept
    dropped = training.drop("me", {"round": one.number})["sections"]["round"]
    assert "Keep round 1" in dropped and "Drop round 1" not in dropped


def test_a_double_click_stops_a_job_once(training: Training, tmp_path: Path) -> None:
    start_job(training.project, ["stubborn", str(tmp_path / "go")], "Stubborn")
    until(lambda: "words" in now(training).log.read_text(), SECONDS)
    for _ in range(2):
        view = training.stop("me", {"job": 1})
    assert now(training).stops == 1 and "Stop at once" in view["sections"]["now"]
    training._stopped[1] -= 1
    training.stop("me", {"job": 1})
    assert now(training).stops == 2
    (tmp_path / "go").touch()


def test_an_estimate_that_makes_no_sense_is_an_error_and_the_next_one_counts(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, b"Some library says hello.", b"")

    chosen = {"kind": "ppo", "settings": {}}
    with monkeypatch.context() as patch:
        patch.setattr("lorarlhf_ui.train.subprocess.run", run)
        training.estimate("me", chosen)
        with pytest.raises(UserError, match="could not be computed"):
            until(lambda: not training.estimate("me", chosen)["busy"], SECONDS)
    assert asked[0][1:6] == python_command("lorarlhf.cli")[1:6]
    other = {"kind": "sft", "settings": {}}
    assert until(lambda: not training.estimate("me", other)["busy"], SECONDS)


def test_what_is_free_is_not_shown_while_a_job_has_the_device() -> None:
    found = {"needed": 2e9, "free": None, "busy": True, "advice": "", "seconds": None}
    shown = estimate_html(found | {"time": "it can't be estimated."})
    assert "how much will be free when its turn comes is not known yet" in shown
    assert "<p>Time: it can&#x27;t be estimated.</p>" in shown


def test_what_is_wrong_is_said_at_the_start_without_an_estimate_before(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"kind": "ppo", "settings": {"updates": "many"}}
    with pytest.raises(UserError, match="A setting is a number"):
        training.start("me", wrong)
    monkeypatch.setattr("lorarlhf_ui.train.ERROR_KEPT_SECONDS", 0.5)
    time.sleep(0.6)  # it is found out once more
    with pytest.raises(UserError, match="A setting is a number"):
        training.start("me", wrong)
    assert list_jobs(training.project) == []
    # An estimate that takes too long keeps nobody from starting: the run checks the same.
    monkeypatch.setattr("lorarlhf_ui.train.CHECKED_SECONDS", 0.0)
    assert training.start("me", {"kind": "sft", "settings": {"epochs": "x"}})["busy"]
    assert now(training).title == "SFT (epochs=x)"


def test_memory_and_time_before_the_start(training: Training) -> None:
    chosen = {"kind": "ppo", "settings": {"updates": "4"}}

    def told(chosen: dict[str, Any]) -> dict[str, Any]:
        return until(lambda: (view := training.estimate("me", chosen))["busy"] or view, SECONDS)

    assert training.estimate("me", chosen) == {"busy": True}
    view = until(lambda: (v := training.estimate("me", chosen)) and not v["busy"] and v, SECONDS)
    assert "about 1.5 GB at the peak; 4.0 GB are free now" in view["html"]
    assert "Time: about 4 minutes." in view["html"]
    assert view["values"] == {"updates": "20", "kl_coef": "0.05", "kl_target": ""}
    wrong = {"kind": "ppo", "settings": {"updates": "many"}}
    training.estimate("me", wrong)
    with pytest.raises(UserError, match="^A setting is a number.$"):
        until(lambda: not training.estimate("me", wrong)["busy"], SECONDS)
    with pytest.raises(UserError, match="A setting is a number"):
        training.start("me", wrong)
    assert list_jobs(training.project) == []
    for nonsense in ({}, {"kind": "no"}, {"kind": "ppo", "settings": 3}):
        with pytest.raises(UserError, match="Reload"):
            training.estimate("me", nonsense)
