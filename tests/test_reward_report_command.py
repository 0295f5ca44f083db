"""The command `report reward`: the texts of votes, planted verdicts, changes of the look."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.backbone.base import Backbone
from lorarlhf.cli.main import main
from lorarlhf.cli.prepare import fingerprint
from lorarlhf.data.readers import split_by_prompt
from lorarlhf.preferences.records import Verdict
from lorarlhf.project.project import create
from lorarlhf.rewards.role import score_answers
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf.runtime.run import Run
from lorarlhf.stages.reward_model import RewardSettings, train_reward_model
from tests.planted import planted


def rows(count: int, a_prompt: int = 2) -> list[dict[str, str]]:
    """So many pairs of each prompt; the shorter answer is chosen in every third pair."""
    made = []
    for n in range(count):
        answers = [f"Yes, yes, gladly {n}.", f"No {n}."]
        chosen, rejected = answers if n % 3 else answers[::-1]
        made.append(
            {"prompt": f"Question {n // a_prompt}?", "chosen": chosen, "rejected": rejected}
        )
    return made


def run_with_votes(
    folder: Path, file: Path, count: int = 100, a_prompt: int = 2, **plan: Any
) -> VoteFit:
    """A run's folder as the reward stage leaves it, of made-up features; returns its votes."""
    data = rows(count, a_prompt)
    file.write_text("".join(json.dumps(row) + "\n" for row in data), "utf-8")
    run = Run(folder, "reward", {"data": str(file), "seed": 3, "holdout": 0.2})
    run.about["rows"] = fingerprint(data)
    train, held = split_by_prompt(data, 0.2, 3)
    votes = planted(len(train), **({"width": 6} | plan))
    votes.groups = [repr([{"role": "user", "content": row["prompt"]}]) for row in train]
    votes.fit()
    votes.save(folder / "votes.safetensors")
    run.finish("done", {"heldout_accuracy": 0.75, "n": len(held)})
    return votes


def test_the_command_finds_the_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    votes = run_with_votes(tmp_path / "run", tmp_path / "pairs.jsonl")
    words = ["report", "reward", str(tmp_path / "run")]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert f"{len(votes)} votes on 40 prompts" in printed.out and not printed.err
    assert "  the trained model     75%" in printed.out and "rank correlation" in printed.out
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["votes"] == len(votes) and data["accuracy"]["of"] == len(votes)
    train, _ = split_by_prompt(rows(100), 0.2, 3)
    for mistake in data["mistakes"]:
        row = train[mistake["place"]]
        assert (mistake["chosen"], mistake["rejected"]) == (row["chosen"], row["rejected"])
        assert mistake["prompt"] == row["prompt"]
    shorter = sum(len(row["chosen"]) < len(row["rejected"]) for row in train)
    assert data["length"]["shorter_chosen"]["of"] == shorter
    # An easy rule without wrong votes, which has nothing to do with the length.
    assert data["accuracy"]["low"] > 0.85
    assert data["good_enough_for_ppo"] == {"level": "good", "text": "Good enough for PPO."}
    assert data["votes_wanted"]["verdict"] == "enough"
    assert data["run"]["share"] == 0.75 and data["cosmetic"] == []


def test_the_command_on_votes_of_a_coin_and_on_a_rule_that_is_hard_to_learn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(name: str, **plan: Any) -> dict[str, Any]:
        run_with_votes(tmp_path / name, tmp_path / f"{name}.jsonl", **plan)
        assert main(["report", "reward", str(tmp_path / name), "--json"]) == 0
        data: dict[str, Any] = json.loads(capsys.readouterr().out)
        return data

    coin = found("coin", wrong=0.5)
    assert coin["good_enough_for_ppo"]["level"] == "no"
    assert "may be no better than a coin" in coin["good_enough_for_ppo"]["text"]
    assert coin["votes_wanted"]["verdict"] == "unclear"
    hard = found("hard", width=40, count=150, a_prompt=1)  # 120 votes, as in test_learning_curve
    assert hard["votes_wanted"]["verdict"] == "more"


def test_texts_that_are_gone_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, words = tmp_path / "pairs.jsonl", ["report", "reward", str(tmp_path / "run")]
    run_with_votes(tmp_path / "run", file)
    text = file.read_text("utf-8")
    file.write_text("".join(text.splitlines(keepends=True)[:-20]), "utf-8")  # changed
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "the file that it was trained from is missing or has changed" in printed.err
    assert "predicted right" in printed.out and "rank correlation" not in printed.out
    file.unlink()
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["length"] is None and "chosen" not in data["mistakes"][0]
    assert main([*words, "--cosmetic"]) == 2
    assert "--cosmetic changes the texts of answers, and they are gone" in capsys.readouterr().err
    assert main(["report", "raters", str(tmp_path / "run"), "--cosmetic"]) == 2
    assert "--cosmetic belongs to `lorarlhf report reward`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[::-1],
        lambda lines: [line.replace("Question", "Another question") for line in lines],
        lambda lines: [line.replace("gladly", "sadly") for line in lines],
    ],
    ids=["reversed", "other prompts", "other answers"],
)
def test_a_file_of_the_same_length_with_other_rows_is_not_shown(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[list[str]], list[str]],
) -> None:
    """One vote on each prompt, so that the pattern of the prompts is always the same."""
    file, run = tmp_path / "pairs.jsonl", tmp_path / "run"
    run_with_votes(run, file, count=60, a_prompt=1)
    lines = file.read_text("utf-8").splitlines(keepends=True)
    assert main(["report", "reward", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["length"] is not None
    file.write_text("".join(change(lines)), "utf-8")
    assert main(["report", "reward", str(run), "--json"]) == 0
    printed = capsys.readouterr()
    assert "is missing or has changed" in printed.err
    data = json.loads(printed.out)
    assert data["length"] is None and "chosen" not in data["mistakes"][0]


def test_an_older_run_without_a_hash_is_known_by_its_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, run = tmp_path / "pairs.jsonl", tmp_path / "run"
    run_with_votes(run, file)
    about = json.loads((run / "run.json").read_text("utf-8"))
    del about["rows"]
    (run / "run.json").write_text(json.dumps(about), "utf-8")
    assert main(["report", "reward", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["length"] is not None
    text = file.read_text("utf-8")
    file.write_text("".join(text.splitlines(keepends=True)[:-20]), "utf-8")
    assert main(["report", "reward", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["length"] is None


def test_a_project_that_was_moved_has_its_texts_and_repeats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = create(tmp_path / "before")
    run = project.next_run("reward")
    run_with_votes(run, run.with_name(f"{run.name}.votes.jsonl"))
    store = project.store()
    for n in range(4):
        item = store.add_item(f"Question {n}?", [("Yes.", "base"), ("No.", "base")])
        first = store.present(item, "ann")
        store.judge(first.token, Verdict("ranked", [[0], [1]]))
        again = store.present(item, "ann", repeats=first.id)
        store.judge(again.token, Verdict("ranked", [[n // 3], [1 - n // 3]]))
    store.close()
    shutil.move(project.folder, tmp_path / "after")
    assert main(["report", "reward", str(tmp_path / "after" / "runs" / run.name), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["same_again"]["share"] == 0.75 and data["same_again"]["of"] == 4
    assert data["same_again"]["most_reachable"] == pytest.approx((1 + 0.5**0.5) / 2)
    assert data["length"] is not None
    assert main(["report", "reward", str(tmp_path / "after")]) == 2  # it has no adapter
    assert "has no reward yet" in capsys.readouterr().err


def test_no_torch_is_loaded(tmp_path: Path) -> None:
    run_with_votes(tmp_path / "run", tmp_path / "pairs.jsonl")
    code = (
        "import sys; from lorarlhf.cli.main import main; "
        f"status = main(['report', 'reward', {str(tmp_path / 'run')!r}]); "
        "sys.exit(status or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_trained_run_with_changes_of_the_look(
    tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(60)), "utf-8")
    settings = {"data": str(file), "seed": 0, "compute_dtype": "float32", "holdout": 0.2}
    run = Run(tmp_path / "run", "reward", settings)
    run.base(tiny)
    summary = train_reward_model(tiny, rows(60), run, RewardSettings(epochs=0))
    run.finish("done", summary)
    public = tmp_path / "public.jsonl"
    public.write_text("".join(json.dumps(row) + "\n" for row in rows(4)), "utf-8")
    words = ["report", "reward", str(run.folder), "--cosmetic", "--pairs", str(public)]
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["length"] is not None  # the texts fit the votes that the stage has written
    assert [effect["name"] for effect in data["cosmetic"]] == [
        "made a list",
        "the first words in bold",
        'opened with "Great question!"',
        "its last sentence twice",
    ]
    assert all(effect["low"] <= effect["change"] <= effect["high"] for effect in data["cosmetic"])
    assert any(effect["change"] for effect in data["cosmetic"])
    (found,) = data["sets"]
    pairs = rows(4)
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in pairs]
    chosen, other = (
        score_answers(tiny, prompts, [row[side] for row in pairs])
        for side in ("chosen", "rejected")
    )
    right = sum((a > b) + 0.5 * (a == b) for a, b in zip(chosen, other, strict=True))
    assert (found["name"], found["pairs"], found["accuracy"]["of"]) == ("public.jsonl", 4, 4)
    assert found["accuracy"]["share"] == right / 4
    longer = [len(row["chosen"].split()) > len(row["rejected"].split()) for row in pairs]
    assert found["longer"]["share"] == sum(longer) / 4
    assert main([*words[:3], "--pairs", str(tmp_path / "missing.jsonl")]) == 2
