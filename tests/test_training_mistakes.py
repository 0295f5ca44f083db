"""Training commands that fail: what is said, and what is left in the folder."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.cli.main import main
from lorarlhf.runtime.files import read_json
from lorarlhf.runtime.run import Run
from tests.training_steps import PPO, Train

pytest_plugins = ("tests.training_steps",)


def test_a_full_disk_is_named(work: Path, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Run, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")

    monkeypatch.setattr(Run, "log", full)
    status, _, err = train("sft", "--data", "demos.jsonl", "--out", "full")
    assert status == 2 and "The disk is full while writing metrics.jsonl." in err
    assert read_json(work / "full/run.json")["status"] == "failed"


def test_an_unexpected_failure_says_how_to_see_more(
    work: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Run, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Run, "log", fails)
    status, out, err = train("sft", "--data", "demos.jsonl", "--out", "bug", "--json")
    assert (status, out) == (1, "")
    assert "sft failed: RuntimeError: a bug. Run it again with --debug" in err


BY_LENGTH = ("--reward-function", "rewards.py:length")


@pytest.mark.parametrize(
    ("words", "sets", "said"),
    [
        (("sft", "--data", "none.jsonl"), (), "no such file"),
        (("sft", "--data", "pairs.jsonl"), (), 'pairs.jsonl, line 1, field "completion"'),
        (("reward", "--data", "demos.jsonl"), (), 'field "chosen"'),
        (("reward", "--data", "pairs.jsonl", "--eval", "empty.jsonl"), (), "empty file"),
        (("sft", "--data", "demos.jsonl"), ("epoch=2",), "Did you mean epochs?"),
        (("sft", "--data", "demos.jsonl"), ("trl.max_step=2",), "Did you mean trl.max_steps?"),
        (("sft", "--data", "demos.jsonl"), ("trl.optim=no",), "The settings of sft don't fit"),
        (("sft", "--data", "demos.jsonl"), ("adapter_layers=9",), "a number from 1 to 4, not 9"),
        (("sft", "--data", "demos.jsonl"), ("device=cuda:7",), "device is cuda:7"),
        (("sft", "--data", "demos.jsonl"), ("chat_template=no.jinja",), "no chat template file"),
        (("sft", "--data", "demos.jsonl", "--init", "none"), (), "no such folder"),
        (("sft", "--data", "demos.jsonl", "--out", "demos.jsonl"), (), "can't be written"),
        (("ppo", "--prompts", "prompts.jsonl"), (), "PPO needs a reward"),
        (("ppo", "--prompts", "prompts.jsonl", *BY_LENGTH, "--reward", "x"), (), "no such folder"),
        (
            ("ppo", "--prompts", "prompts.jsonl", *BY_LENGTH),
            ("max_prompt_tokens=5",),
            'prompts.jsonl, line 1, field "prompt": the prompt has ',
        ),
        (
            ("ppo", "--prompts", "prompts.jsonl", *BY_LENGTH),
            ("rollout_batch_size=5", "num_minibatches=2"),
            "must be a multiple of num_minibatches",
        ),
        (
            ("ppo", "--prompts", "prompts.jsonl", "--reward-function", "rewards.py:lenght"),
            (),
            "Did you mean 'length'?",
        ),
    ],
)
def test_mistakes_are_reported_before_anything_is_written(
    words: tuple[str, ...], sets: tuple[str, ...], said: str, work: Path, train: Train
) -> None:
    (work / "empty.jsonl").write_text("")
    if "--out" not in words:
        words += ("--out", "mistaken")
    status, out, err = train(*words, sets=sets)
    assert (status, out) == (2, "") and said in err
    assert not (work / "mistaken").exists()


def test_an_error_in_a_reward_function_names_its_line(work: Path, train: Train) -> None:
    words = ("ppo", "--prompts", "prompts.jsonl", "--reward-function", "rewards.py:broken")
    status, _, err = train(*words, "--out", "division", sets=PPO)
    assert status == 2 and "'broken' raised ZeroDivisionError" in err
    assert "rewards.py, line 14" in err and err.splitlines()[-1].startswith("The reward function")
    assert read_json(work / "division/run.json")["status"] == "failed"


def test_unusable_bases_are_named(train: Train, tmp_path: Path, tiny_base: Path) -> None:
    words = ("sft", "--data", "demos.jsonl", "--out", "nobase")
    assert "There is no model folder" in train(*words, base=str(tmp_path / "no"))[2]
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    status, _, err = train(*words, base=str(tmp_path))
    assert status == 2 and "is not a causal language model" in err


def test_a_base_without_a_chat_template_says_how_to_name_one(
    train: Train, tmp_path: Path, tiny_base: Path
) -> None:
    for file in tiny_base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    config = read_json(tmp_path / "tokenizer_config.json")
    config.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    for words in (("sft", "--data", "demos.jsonl"), ("dpo", "--data", "pairs.jsonl")):
        status, _, err = train(*words, "--out", "no_template", base=str(tmp_path))
        assert status == 2 and "--set chat_template=FILE" in err and "plain=true" in err


def test_adapters_of_another_base_are_refused(
    sft_run: Path, train: Train, make_base: Callable[..., Path]
) -> None:
    other = str(make_base(seed=1))
    words = ("orpo", "--data", "pairs.jsonl", "--init", "runs/sft", "--out", "refused")
    status, _, err = train(*words, base=other)
    assert status == 2 and other in err and "Adapters fit only the base" in err


def test_runs_on_two_bases_cannot_share_one(
    sft_run: Path,
    work: Path,
    tiny_base: Path,
    make_base: Callable[..., Path],
    train: Train,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = str(make_base(seed=1))
    train("reward", "--data", "pairs.jsonl", "--out", "other", sets=["epochs=0"], base=other)
    words = ["ppo", "--prompts", "prompts.jsonl", "--init", "runs/sft", "--reward", "other"]
    assert main([*words, "--out", "refused"]) == 2
    error = capsys.readouterr().err
    assert str(tiny_base) in error and other in error and "Loading" not in error


def test_a_report_that_fails_does_not_fail_the_run(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorarlhf.cli import train as training
    from lorarlhf.runtime.errors import UserError

    def fails(folder: Path) -> Path:
        raise UserError("no report")

    monkeypatch.setattr(training, "write_report", fails)
    words = ("sft", "--data", "demos.jsonl", "--out", "unreported", "--json")
    status, out, err = train(*words, sets=["trl.max_steps=1"])
    assert status == 0 and json.loads(out)["steps"] == 1 and "no report" in err
