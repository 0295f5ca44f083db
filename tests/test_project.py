"""A project's folder: made readable, taken by every command, and never written over."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.cli.main import main
from lorarlhf.preferences.records import Verdict
from lorarlhf.project.project import Project, create
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json

FAST = ["bits=16", "compute_dtype=float32", "lora_rank=4"]
PPO = ["updates=1", "rollout_batch_size=4", "max_new_tokens=4", "critic_warmup=0"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder; `sets` become --set."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str, sets: list[str] | None = None) -> tuple[int, str, str]:
        status = main([*words, *(part for text in sets or [] for part in ("--set", text))])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def vote(space: Project, number: int, edited: str | None = None) -> None:
    store = space.store()
    item = store.add_item(f"What is {number}?", [("It is good.", "base"), ("No idea.", "base")])
    verdict = Verdict("ranked", [[0], [1]], edited=edited)
    store.judge(store.present(item, "ann").token, verdict)


def test_a_project_is_readable_and_made_once(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("new", "mine", "--json")
    assert status == 0 and json.loads(out)["prompts"] == 280
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == [
        "preferences.sqlite",
        "project.yaml",
        "prompts.jsonl",
        "runs",
    ]
    text = (tmp_path / "mine/project.yaml").read_text()
    assert 'base: "smollm2-135m"\n' in text and "\n# Of everything that is drawn at random." in text
    (tmp_path / "mine/project.yaml").write_text(text.replace("seed: 0", "seed: 5"))
    status, _, err = run("new", "mine")
    assert status == 2 and "is a project already; nothing was changed" in err
    assert "seed: 5" in (tmp_path / "mine/project.yaml").read_text()


def test_own_prompts_and_another_base(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Why?\nWhat?\n")
    status, out, _ = run(
        "new", "a b", "--prompts", "mine.txt", "--base", "org/model", "--bits", "8"
    )
    assert status == 0 and "2 prompts" in out
    assert 'base: "org/model"\n' in (tmp_path / "a b/project.yaml").read_text()
    status, _, err = run("new", "other", "--prompts", "none.jsonl")
    assert status == 2 and "no such file" in err and not (tmp_path / "other").exists()


def test_runs_are_numbered_and_found(tmp_path: Path) -> None:
    space = create(tmp_path / "mine")
    assert space.next_run("sft").name == "0001-sft" and space.newest_with("policy") is None
    for name, status, role in (
        ("0001-sft", "done", "policy"),
        ("0002-reward", "done", "reward"),
        ("0010-ppo", "done", "policy"),
        ("0011-ppo", "stopped", "policy"),
    ):
        folder = space.folder / "runs" / name / "adapters" / role
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
        about = {"stage": name.split("-")[1], "status": status}
        (space.folder / "runs" / name / "run.json").write_text(json.dumps(about))
    assert space.next_run("dpo").name == "0012-dpo"
    newest = space.newest_with("policy")
    assert newest is not None and newest.name == "0010-ppo"  # 0011 did not finish
    supervised = space.newest_with("policy", ("sft",))
    assert supervised is not None and supervised.name == "0001-sft"
    unfinished = space.unfinished("ppo")
    assert unfinished is not None and unfinished.name == "0011-ppo"
    assert space.unfinished("reward") is None and space.unfinished("dpo") is None
    with pytest.raises(UserError, match="lorarlhf new"):
        Project(tmp_path)


def test_the_whole_loop_in_a_project(run: Run, tmp_path: Path, tiny_base: Path) -> None:
    """Votes, reward, PPO from it, a supervised run from the edits, chat and score: one folder."""
    run("new", "mine", "--base", str(tiny_base), "--bits", "16")
    space = Project(tmp_path / "mine")
    status, _, err = run("reward", "mine", sets=FAST)
    assert status == 2 and "votes that name a better answer on 0 prompts" in err
    status, _, err = run("ppo", "mine", sets=FAST)
    assert status == 2 and "has no reward yet" in err
    status, _, err = run("chat", "mine", "--prompt", "Hi", "--max-new-tokens", "3", "--json")
    assert status == 0 and "has no policy yet: this is its base" in err
    for number in range(8):
        vote(space, number, edited="It is a number." if number < 3 else None)
    store = space.store()
    shown = store.present(store.add_item("Tie?", [("a", "x"), ("b", "x")]), "ann")
    store.judge(shown.token, Verdict("tie"))

    status, _, err = run("reward", "mine", sets=[*FAST, "epochs=0"])
    assert status == 0, err
    assert "9 votes give 11 rows for reward. Not used: 1 ties" in err
    status, _, err = run("sft", "mine", sets=FAST)
    assert status == 0 and "9 votes give 3 rows for sft" in err, err
    status, _, err = run("ppo", "mine", sets=[*FAST, *PPO])
    assert status == 0, err
    config = read_json(space.folder / "runs/0003-ppo/run.json")["config"]
    assert config["base"] == str(tiny_base) and config["bits"] == 16
    assert config["init"].endswith("0002-sft") and config["reward"].endswith("0001-reward")
    status, _, err = run("dpo", "mine", "--out", "elsewhere", sets=FAST)
    assert status == 0 and (tmp_path / "elsewhere/run.json").is_file(), err
    before = {file: file.read_bytes() for file in tmp_path.glob("else*/**/*.*")}
    votes = (tmp_path / "elsewhere.votes.jsonl").read_bytes()
    vote(space, 9)
    status, _, err = run("dpo", "mine", "--out", "elsewhere", sets=[*FAST, "trl.optim=no"])
    assert status == 2 and [f.read_bytes() for f in tmp_path.glob("*.votes*.jsonl")] == [votes]
    assert {file: file.read_bytes() for file in tmp_path.glob("else*/**/*.*")} == before
    assert [path.name for path in space.runs()] == ["0003-ppo", "0002-sft", "0001-reward"]

    words = ("--prompt", "What is 1?", "--answer", "Good.", "--answer", "Bad!", "--json")
    status, out, err = run("score", "mine", *words)
    assert status == 0 and len(json.loads(out)) == 2 and "0001-reward" in err
    status, _, err = run("chat", "mine", "--prompt", "Hi", "--max-new-tokens", "3", "--json")
    assert status == 0 and "policy of" in err and "0003-ppo" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sft",), "sft needs --data FILE with demonstrations, or a project's folder"),
        (("ppo",), "ppo needs --prompts FILE with prompts, or a project's folder"),
        (("reward", "nothing"), "nothing is not a project: it has no project.yaml"),
        (("score", "mine", "--prompt", "a", "--answer", "b"), "has no reward yet"),
        (("chat", "mine", "--role", "policy", "--prompt", "a"), "has no policy yet"),
    ],
)
def test_what_is_missing_is_told(run: Run, words: tuple[str, ...], said: str) -> None:
    run("new", "mine")
    status, _, err = run(*words)
    assert status == 2 and said in err


def test_a_key_that_no_project_holds_is_named(run: Run, tmp_path: Path) -> None:
    run("new", "mine")
    with (tmp_path / "mine/project.yaml").open("a") as file:
        file.write("updates: 3\n")
    status, _, err = run("sft", "mine")
    line = (tmp_path / "mine/project.yaml").read_text().count("\n")
    assert status == 2 and f"line {line}: updates does not belong in a project" in err


def test_a_project_that_cannot_be_written_says_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    status, _, err = run("new", "file/mine")
    assert status == 2 and "can't be made" in err
    status, _, err = run("sft", "--data", "file")
    assert status == 2  # a file is no project, and is read as before


def test_votes_are_kept_out_of_training_where_they_are_taste_tests(
    run: Run, tmp_path: Path
) -> None:
    run("new", "mine")
    store = Project(tmp_path / "mine").store()
    items: list[Any] = [
        store.add_item(f"{n}?", [("a", "x"), ("b", "x")], purpose="compare") for n in range(9)
    ]
    for item in items:
        store.judge(store.present(item, "ann").token, Verdict("ranked", [[0], [1]]))
    status, _, err = run("dpo", "mine")
    assert status == 2 and "votes that name a better answer on 0 prompts" in err


def test_an_unfinished_run_goes_on_where_it_stopped(
    run: Run, tmp_path: Path, tiny_base: Path
) -> None:
    """`--resume` on a project finds the run and the parents it began with, however new others are.

    A killed run is one whose `run.json` does not say `done`; it is made so by hand here, and
    tests/invariants/test_kills.py kills processes.
    """
    run("new", "mine", "--base", str(tiny_base), "--bits", "16")
    (tmp_path / "reward.py").write_text(
        "def same(completions, **_): return [1.0 for _ in completions]"
    )
    status, _, err = run("ppo", "mine", "--resume", sets=[*FAST, *PPO])
    assert status == 2 and "no unfinished run of ppo to resume" in err
    words = ("ppo", "mine", "--reward-function", "reward.py:same")
    status, _, err = run(*words, sets=[*FAST, *PPO, "save_steps=1"])
    assert status == 0, err
    about = tmp_path / "mine/runs/0001-ppo/run.json"
    killed = read_json(about) | {"status": "running"}
    about.write_text(json.dumps(killed))
    space = Project(tmp_path / "mine")
    for number in range(4):
        vote(space, number)
    assert run("reward", "mine", sets=[*FAST, "epochs=0"])[0] == 0
    status, _, err = run("ppo", "mine", "--resume", sets=[*FAST, *PPO, "save_steps=1"])
    assert status == 0, err
    after = read_json(about)
    assert after["status"] == "done" and "reward" not in after["config"]
    assert [path.name for path in space.runs()] == ["0002-reward", "0001-ppo"]


def test_a_run_that_never_began_leaves_no_folder(run: Run, tmp_path: Path, tiny_base: Path) -> None:
    run("new", "mine", "--base", str(tiny_base), "--bits", "16")
    status, _, err = run("sft", "mine", "--data", "none.jsonl")
    assert status == 2 and "no such file" in err
    assert list((tmp_path / "mine/runs").iterdir()) == []
