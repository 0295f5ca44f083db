"""What a command was asked for: the files that it names survive `--resume`, in every stage."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.cli.parser import Parser, build_parser
from lorarlhf.cli.project_defaults import fill_in, remove_reserved
from lorarlhf.cli.request import NO_RUN, TrainRequest, recorded_fields
from lorarlhf.project.project import create
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.run_folder import log_changed_settings
from lorarlhf.stages.table import STAGES

NOT_FILES = {"PROJECT", "KEY=VALUE", "DIR", "M", None}  # of the run itself, or no file at all


def command_of(stage: str) -> Parser:
    parser = build_parser()
    (commands,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return commands.choices[stage]


def file_options(stage: str) -> dict[str, bool]:
    """The options that name files or runs, by field; whether they may be given several times."""
    actions = [a for a in command_of(stage)._actions if a.metavar not in NOT_FILES]
    return {a.dest: isinstance(a, argparse._AppendAction) for a in actions}


def request(*words: str) -> TrainRequest:
    args = build_parser().parse_args(list(words))
    args.argv = list(words)
    return TrainRequest.of(args)


def files_of(stage: str) -> dict[str, Any]:
    """Every option of a stage that names a file, with a value as run.json has it."""
    options = file_options(stage)
    return {name: [f"{name}-1", f"{name}-2"] if n else f"{name}-1" for name, n in options.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_every_option_that_names_a_file_is_recorded(stage: str) -> None:
    assert file_options(stage).keys() <= set(recorded_fields())
    assert {"data", "init", "config"} <= file_options(stage).keys()


def test_the_stages_together_use_every_recorded_field() -> None:
    assert set().union(*map(file_options, STAGES)) == set(recorded_fields())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("in_project", [True, False])
def test_every_file_survives_resume(stage: str, in_project: bool, tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in ("config.yaml", "new.yaml"))
    for config in (first, second):  # the settings say what a stage needs
        config.write_text("seed: 1\n")
    project, files = create(tmp_path / "mine"), files_of(stage) | {"config": str(first)}
    folder = project.next_run(stage) if in_project else tmp_path / "runs" / stage
    Run(folder, stage, files | {"epochs": 2.0}).finish("stopped")
    where = [str(project.folder)] if in_project else ["--out", str(folder)]
    resumed, _ = fill_in(request(stage, *where, "--resume"))
    assert resumed.recorded() == files
    assert resumed.folder == folder
    # What is named again counts more.
    other, _ = fill_in(
        request(stage, *where, "--resume", "--init", "other", "--config", str(second))
    )
    assert other.recorded() == files | {"init": "other", "config": str(second)}


def test_what_is_recorded_is_what_a_new_run_keeps(tmp_path: Path) -> None:
    words = ("ppo", "--prompts", "p.jsonl", "--eval", "e.jsonl", "--reward-function", "r.py:f")
    asked = request(*words, "--judge-function", "j.py:g", "--judge-function", "j.py:h")
    kept = {"data": "p.jsonl", "eval": "e.jsonl", "reward_function": ["r.py:f"]}
    assert asked.recorded() == kept | {"judge_function": ["j.py:g", "j.py:h"]}
    run = Run(tmp_path, "ppo", asked.recorded())
    saved = read_json(run.folder / "run.json")["config"]
    found = request("ppo").restored(saved, "run.json")
    assert found == request("ppo").restored(asked.recorded(), "run.json")
    assert found.recorded() == asked.recorded() | {"init": NO_RUN}


def test_existing_files_are_recorded_with_their_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("d.jsonl", "r.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "runs/reward").mkdir(parents=True)
    asked = request(
        *("ppo", "--prompts", "d.jsonl", "--reward", "runs/reward", "--eval", "gone.jsonl"),
        *("--reward-function", "r.py:f", "--reward-model", "org/judge#2"),
    )
    assert asked.recorded() == {
        "data": str(tmp_path / "d.jsonl"),
        "eval": "gone.jsonl",
        "reward": str(tmp_path / "runs/reward"),
        "reward_function": [f"{tmp_path / 'r.py'}:f"],
        "reward_model": ["org/judge#2"],  # the name of a model
    }


def test_a_run_that_recorded_relative_paths_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text("")
    (tmp_path / "r.py").write_text("")
    earlier = {"data": "d.jsonl", "reward_function": ["r.py:f"], "epochs": 2.0}
    Run(tmp_path / "ppo", "ppo", earlier).finish("stopped")
    resumed, _ = fill_in(request("ppo", "--out", "ppo", "--resume"))
    assert resumed.data == "d.jsonl" and resumed.init is None
    assert {item.name: item.value for item in resumed.earlier} == earlier
    assert resumed.earlier[0].where == str(Path("ppo/run.json"))
    log_changed_settings(tmp_path / "ppo", resumed.recorded() | {"epochs": 2.0})
    assert capsys.readouterr().err == ""
    log_changed_settings(tmp_path / "ppo", resumed.recorded() | {"epochs": 3.0})
    assert "with other settings: epochs was 2.0 and is 3.0." in capsys.readouterr().err


def test_the_votes_of_a_run_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    votes = tmp_path / "mine/runs/1.votes.jsonl"
    asked = request("reward", "--out", "mine/runs/1")
    asked = replace(
        asked, data="mine/runs/1.votes.jsonl", reserved=True, votes="mine/runs/1.votes.jsonl"
    )
    Run(tmp_path / "mine/runs/1", "reward", {})
    votes.write_text("")
    Run(tmp_path / "mine/runs/1", "reward", asked.recorded())
    remove_reserved(asked)
    assert votes.is_file()
    Run(tmp_path / "mine/runs/1", "reward", {})  # another run's record: this one never began
    remove_reserved(asked)
    assert not votes.exists()


def test_without_resume_nothing_is_taken_from_an_earlier_run(tmp_path: Path) -> None:
    Run(tmp_path / "sft", "sft", {"data": "d.jsonl"})
    with pytest.raises(UserError, match="sft needs --data FILE"):
        fill_in(request("sft", "--out", str(tmp_path / "sft")))
    with pytest.raises(UserError, match="dpo needs --data FILE"):  # another stage's run
        fill_in(request("dpo", "--out", str(tmp_path / "sft"), "--resume"))
