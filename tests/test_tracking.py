"""`report_to` in every stage: nothing is reported unasked, TensorBoard's files are the run's."""

import importlib.util
import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lorarlhf.project.settings import resolve
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json
from lorarlhf.runtime.run_folder import archive_earlier_run, restore_earlier_run
from lorarlhf.stages.table import STAGES
from lorarlhf.stages.trl.arguments import Placement
from tests.training_steps import Train, rows_of, summary_of

pytest_plugins = ("tests.training_steps",)

ROWS = {"sft": "demos.jsonl", "ditto": "demos.jsonl", "ppo": "prompts.jsonl"}
SMALL: dict[str, list[str]] = {
    "ppo": ["updates=1", "rollout_batch_size=4", "max_new_tokens=3", "critic_warmup=0"],
    "ditto": ["rounds=1", "steps=1", "answers=1", "max_new_tokens=3", "sft_epochs=1"],
}


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers find two trackers, as if they were installed."""
    found = importlib.util.find_spec

    def find(name: str, *more: Any) -> Any:
        known = name in ("trackio", "tensorboard")
        return ModuleSpec(name, None) if known else found(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find)


def arguments(stage: str, folder: Path, *sets: str) -> Any:
    settings = resolve(STAGES[stage], sets=sets)
    own = STAGES[stage].make_settings(settings.own, settings.trl)
    placement = Placement(torch.device("cpu"), torch.float32, folder, 0)
    return STAGES[stage].make_arguments(placement, own)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.usefixtures("trackers")
def test_nothing_is_reported_unasked_and_a_tracker_that_is_named_is(
    stage: str, tmp_path: Path
) -> None:
    folder = tmp_path / "0003-mine"
    assert arguments(stage, folder).report_to == []
    asked = arguments(stage, folder, "report_to=tensorboard, trackio")
    assert asked.report_to == ["tensorboard", "trackio"]
    assert (asked.run_name, asked.project) == ("0003-mine", "lorarlhf")
    assert arguments(stage, folder, "report_to=none").report_to == []


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
@pytest.mark.usefixtures("trackers")
def test_rloo_and_grpo_hand_it_on(algorithm: str, tmp_path: Path) -> None:
    from lorarlhf.stages.critic_free import critic_free_arguments

    sets = (f"algorithm={algorithm}", "report_to=tensorboard")
    settings = resolve(STAGES["ppo"], sets=sets)
    own = STAGES["ppo"].make_settings(settings.own, settings.trl)
    placement = Placement(torch.device("cpu"), torch.float32, tmp_path, 0)
    args = STAGES["ppo"].make_arguments(placement, own)
    assert critic_free_arguments(placement, args, own).report_to == ["tensorboard"]


def test_a_missing_tracker_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trackio, which is not installed.*`pip install trackio`"):
        arguments("sft", tmp_path, "report_to=trackio")
    with pytest.raises(UserError, match="no service of transformers. Did you mean tensorboard"):
        arguments("sft", tmp_path, "report_to=none,tensorbord")


class Writer:
    """TensorBoard's writer, as far as transformers calls it."""

    made: list["Writer"] = []

    def __init__(self, log_dir: str) -> None:
        self.folder, self.scalars = Path(log_dir), list[tuple[str, float, int]]()
        self.folder.mkdir(parents=True)
        (self.folder / "events").write_text("")
        Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def add_text(self, *args: Any) -> None:
        assert "What is" not in json.dumps(args)  # no prompt or answer is reported

    def flush(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> type[Writer]:
    module = ModuleType("torch.utils.tensorboard")
    module.__dict__["SummaryWriter"] = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    Writer.made.clear()
    return Writer


@pytest.mark.parametrize("stage", ["sft", "ppo", "ditto"])
@pytest.mark.usefixtures("trackers")
def test_the_metrics_go_to_the_runs_folder_and_stay_in_its_own_file(
    stage: str, writer: type[Writer], work: Path, train: Train
) -> None:
    data = "--prompts" if stage == "ppo" else "--data"
    words = [stage, data, ROWS[stage], "--out", f"tracked-{stage}", "--json"]
    words += ["--reward-function", "rewards.py:length"] if stage == "ppo" else []
    sets = ["report_to=tensorboard", *SMALL.get(stage, ["epochs=1"])]
    summary_of(train(*words, sets=sets))
    folder = work / f"tracked-{stage}"
    assert read_json(folder / "run.json")["config"]["report_to"] == "tensorboard"
    parts = [folder / "rounds/0", folder / "rounds/1"] if stage == "ditto" else [folder]
    assert [one.folder for one in writer.made] == [
        Path(f"tracked-{stage}") / part.relative_to(folder) / "tensorboard" for part in parts
    ]
    name = "score" if stage == "ppo" else "loss"
    ours = [row[name] for row in rows_of(folder / "metrics.jsonl") if name in row]
    theirs = [v for one in writer.made for n, v, _ in one.scalars if n == f"train/{name}"]
    assert ours == pytest.approx(theirs) and ours


def test_a_tracker_that_is_installed_and_not_named_gets_nothing(
    trackers: None, writer: type[Writer], work: Path, train: Callable[..., Any]
) -> None:
    summary_of(train("sft", "--data", "demos.jsonl", "--out", "quiet", "--json", sets=["epochs=1"]))
    assert writer.made == [] and not (work / "quiet/tensorboard").exists()


def test_the_trackers_files_are_archived_with_their_run(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "tensorboard/events", "rounds/1/pairs.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("first")
    kept = archive_earlier_run(tmp_path)
    assert kept is not None and not (tmp_path / "tensorboard").exists()
    assert (kept / "tensorboard/events").read_text() == "first"
    # A new run that fails at its first step has opened the tracker, and has no metrics yet.
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard/events").write_text("second")
    restore_earlier_run(tmp_path, kept)
    assert (tmp_path / "tensorboard/events").read_text() == "first"
    assert (tmp_path / "rounds/1/pairs.jsonl").read_text() == "first" and not kept.exists()
