"""The command `round` from votes to the card, on the tiny base."""

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.cli import eval_answers, round_steps
from lorarlhf.cli.main import main
from lorarlhf.preferences.blind_comparisons import comparisons, count_items
from lorarlhf.preferences.queue import next_shown
from lorarlhf.project.project import Project
from lorarlhf.project.rounds import make_round, rounds
from lorarlhf.runtime.files import append_jsonl, read_json, write_json, write_jsonl
from tests.project_rounds import small_project, vote
from tests.training_steps import ctrl_c_at

Command = Callable[..., dict[str, Any]]


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A small project with enough votes for a round; `eval` writes few tokens."""
    for name, tokens in (("ANSWER_TOKENS", 6), ("TASK_TOKENS", 3)):
        monkeypatch.setattr(eval_answers, name, tokens)
    monkeypatch.setattr(round_steps, "MAX_NEW_TOKENS", 6)
    monkeypatch.chdir(tmp_path)
    made = small_project(tmp_path / "mine", tiny_base)
    vote(made, range(20))
    return made


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: str) -> dict[str, Any]:
        status = main(["round", "mine", *words, "--json"])
        out, err = capsys.readouterr()
        assert status == 0 and "Traceback" not in err, err
        return json.loads(out) | {"err": err}

    return run


def config_of(project: Project, run: str) -> dict[str, Any]:
    return read_json(project.folder / run / "run.json")["config"]


def test_rounds_one_after_the_other(project: Project, command: Command) -> None:
    """A round by PPO from the base; then one by DPO from it, once it was kept."""
    first = command("--judge-function", "mine/judge.py:longer")
    steps = first["steps"]
    assert steps["reward"]["run"] == "runs/0001-reward"
    assert steps["method"]["run"] == "runs/0002-ppo"
    assert all(step["done"] and step["seconds"] >= 0 for step in steps.values())
    assert first["votes"] == {"count": 20, "new": 20, "newest": 20}
    assert first["parents"] == {"round": None, "policy": None}
    for place in range(1, 6):
        assert f"Round 1, step {place} of 5: " in first["err"]
        assert f"Step {place} of 5 took " in first["err"]
    config = config_of(project, "runs/0002-ppo")
    assert config["reward"].endswith("runs/0001-reward") and "init" not in config
    assert config["updates"] == 3 and config["data"] == str(project.folder / "prompts.jsonl")
    found = first["result"]
    judges = {one["judge"]: one["independent"] for one in found["judges"]}
    assert judges == {"function longer": True, "reward of 0001-reward": False}
    assert found["tasks"]["base"]["tasks"] == 100
    assert found["tasks"]["base"] == found["tasks"]["previous"]
    assert found["previous"]["kl"] == 0 and found["policy"]["kl"] != 0
    assert found["reward"]["of"] == 16  # of 20: a fifth is held out from the fit
    assert 0 <= found["reward"]["low"] <= found["reward"]["high"]
    store = project.store()
    (asked,) = comparisons(store)
    assert (asked.first, asked.second, asked.wanted) == ("base", "runs/0002-ppo", 4)
    assert count_items(store, asked.id) == 4
    shown = next_shown(store, "ann", purpose="compare", comparison=asked.id)
    assert shown is not None and len(shown.completions) == 2  # what the Compare page asks
    folder = project.folder / "rounds/0001"
    assert "Round 1: ppo, from the base" in (folder / "card.html").read_text()
    assert (folder / "card.txt").is_file() and (folder / "eval/report.html").is_file()

    command("--keep")
    vote(project, range(20, 40))
    with project.settings_file.open("a") as file:
        file.write("method: dpo\n")
    second = command()
    assert second["votes"] == {"count": 40, "new": 20, "newest": 40}
    assert second["parents"] == {"round": 1, "policy": "runs/0002-ppo"}
    assert second["steps"]["method"]["run"] == "runs/0004-dpo"
    config = config_of(project, "runs/0004-dpo")
    assert config["init"].endswith("runs/0002-ppo")
    assert config["data"].endswith("rounds/0002/votes-trl.jsonl")
    assert second["steps"]["reward"]["summary"]["pairs"] == 32  # of all 40, a fifth held out
    assert [one["previous"] is not None for one in second["result"]["judges"]] == [True]
    newest = comparisons(store, newest=1)[0]
    assert (newest.first, newest.second) == ("runs/0002-ppo", "runs/0004-dpo")

    command("--drop")
    policy = project.newest_with("policy")
    assert policy is not None and policy.name == "0002-ppo"
    assert rounds(project)[0].verdict == "dropped" and rounds(project)[1].verdict == "kept"


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_a_round_by_an_algorithm_without_a_critic_goes_on_after_its_checkpoint(
    project: Project, command: Command, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    from lorarlhf.stages.critic_free import UpdateLog

    with project.settings_file.open("a") as file:
        file.write(f"method: {algorithm}\n")
    text = "compute_dtype: float32\nlora_rank: 4\nreward: {epochs: 0}\n"
    (project.folder / "round.yaml").write_text(text)
    sets = ["updates=2", "rollout_batch_size=4", "max_new_tokens=4", "save_steps=1"]
    words = [part for one in sets for part in ("--set", one)]

    def on_step_begin(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.steps:
            raise RuntimeError("the power is gone")

    with monkeypatch.context() as patch:  # the first update is saved, and the second one begins
        patch.setattr(UpdateLog, "on_step_begin", on_step_begin)
        assert main(["round", "mine", *words]) == 1
    run = project.folder / "runs/0002-ppo"
    one = rounds(project)[0]
    assert one.is_done("reward") and not one.is_done("method")
    one.note("method", seconds=one.steps["method"]["seconds"] + 1000)
    assert [path.name for path in run.glob("checkpoints/*")] == ["checkpoint-1"]
    append_jsonl(project.prompts, {"prompt": "Typed on the Rate page?"})
    again = command("--resume")
    assert "1 rows were added since this run began" in again["err"]
    assert "Round 1 continues." in again["err"] and "Continuing after update 1." in again["err"]
    assert again["steps"]["method"]["run"] == "runs/0002-ppo"
    assert again["steps"]["method"]["seconds"] > 1000  # with the time before the stop
    assert config_of(project, "runs/0002-ppo")["algorithm"] == algorithm
    assert not list(run.glob("earlier-*"))


def test_a_round_by_iterated_dpo(project: Project, command: Command) -> None:
    with project.settings_file.open("a") as file:
        file.write("method: dpo\n")
    sets = ("dpo.rounds=1", "dpo.round_prompts=4", "dpo.max_new_tokens=6")
    steps = command(*[part for text in sets for part in ("--set", text)])["steps"]
    config = config_of(project, steps["method"]["run"])
    assert config["rounds"] == 1
    assert Path(config["reward"]) == project.folder / "runs/0001-reward"
    assert (project.folder / steps["method"]["run"] / "rounds/1/pairs.jsonl").is_file()
    assert steps["card"]["done"]


def test_rounds_of_new_answers_take_the_reward_role_of_their_round(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no newer one, which somebody may have trained since the round was stopped."""
    asked = []

    def train(one: Any, stage: Any, run: Path, words: list[str]) -> dict[str, Any]:
        asked.append(words)
        return {}

    monkeypatch.setattr(round_steps, "_train", train)
    for sets in (["dpo.rounds=1"], []):
        one = make_round(project, "dpo", {"set": sets})
        one.save()
        one.note("reward", run="runs/0001-reward", done=True)
        round_steps.method_step(project, one)
    named = [words[words.index("--reward") + 1] for words in asked if "--reward" in words]
    assert len(asked) == 2
    assert named == [str(project.folder / "runs/0001-reward")]  # the pairs alone need none


def test_ctrl_c_in_the_last_update_stops_the_round(project: Project, command: Command) -> None:
    with ctrl_c_at(3, "ppo"):  # the last one
        assert main(["round", "mine"]) == 130
    one = rounds(project)[0]
    assert read_json(project.folder / "runs/0002-ppo/run.json")["status"] == "done"
    assert one.is_done("reward") and not one.is_done("compare") and one.result is None
    assert command("--resume")["result"]


def test_a_round_from_the_base_takes_no_other_run(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither stage of it starts from a supervised run that a round made and nobody kept."""
    asked = []

    def train(args: Namespace) -> None:
        asked.append((args.command, args.init))
        write_json(Path(args.out) / "run.json", {"status": "done", "summary": {}})

    monkeypatch.setattr("lorarlhf.cli.train.train", train)
    monkeypatch.setattr(round_steps, "write_report", lambda run: None)
    one = make_round(project, "ppo", {})
    one.save()
    write_jsonl(round_steps.votes_file(one, round_steps.REWARD), [])
    for step in ("reward", "method"):
        round_steps.FUNCTIONS[step](project, one)
    assert asked == [("reward", "base"), ("ppo", "base")]
