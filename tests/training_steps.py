"""What the tests of the training commands share: data, reward functions and finished runs.

A plugin, as tests/pages.py. PYTEST_DONT_REWRITE
"""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.cli.main import main
from lorarlhf.runtime.files import write_jsonl
from lorarlhf.runtime.run import Run

Train = Callable[..., tuple[int, str, str]]
QUESTIONS = [f"What is {number} and why?" for number in range(8)]
PPO = ["updates=2", "rollout_batch_size=4", "max_new_tokens=6", "critic_warmup=0", "save_steps=1"]


REWARDS = """
import os, signal

def length(prompts, completions, kind, **columns):
    print("printed by a reward function")
    assert prompts[0][0]["role"] == "user" and kind == ["q"] * len(prompts)
    return [float(len(c[0]["content"])) for c in completions]

def texts(prompts, completions, **columns):
    assert all(isinstance(text, str) for text in (*prompts, *completions))
    return [1.0 for _ in completions]

def broken(prompts, completions, **columns):
    return 1 / 0

def interrupts(prompts, completions, trainer_state, **columns):
    if trainer_state.global_step == 1:
        os.kill(os.getpid(), signal.SIGINT)
    return [float(len(c[0]["content"])) for c in completions]
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data files, reward functions, and the runs that the tests make in it."""
    folder = tmp_path_factory.mktemp("work")
    write_jsonl(folder / "prompts.jsonl", [{"prompt": q, "kind": "q"} for q in QUESTIONS])
    answers = {"chosen": "It is good.", "rejected": "No idea at all, sorry."}
    write_jsonl(folder / "pairs.jsonl", [{"prompt": q, **answers} for q in QUESTIONS])
    others = [{"prompt": f"Who is {q}", **answers} for q in QUESTIONS]
    write_jsonl(folder / "heldout_pairs.jsonl", others)
    write_jsonl(folder / "demos.jsonl", [{"prompt": q, "completion": "A sum."} for q in QUESTIONS])
    (folder / "rewards.py").write_text(REWARDS)
    return folder


@pytest.fixture
def train(
    work: Path,
    tiny_base: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Train:
    """Run a command in that folder on the tiny base; `sets` become --set."""
    monkeypatch.chdir(work)
    monkeypatch.delenv("LORARLHF_DEBUG", raising=False)

    def run(*words: str, sets: Sequence[str] = (), base: str = "") -> tuple[int, str, str]:
        options = ["--base", base or str(tiny_base)]
        for text in ("bits=16", "compute_dtype=float32", "lora_rank=4", *sets):
            options += ["--set", text]
        status = main([*words, *options])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return run


@contextmanager
def ctrl_c_at(step: int, of: str | None = None) -> Iterator[None]:
    """Inside, Ctrl-C is pressed when a run logs a row of this step, of one stage or of any."""
    log = Run.log

    def presses(self: Run, row: dict[str, Any], stage: str | None = None) -> None:
        log(self, row, stage)
        if row.get("step") == step and of in (None, self.stage):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log", presses)
        yield


def summary_of(result: tuple[int, str, str]) -> dict[str, Any]:
    """The one object on standard output of a command that went well."""
    status, out, err = result
    assert status == 0, err
    assert out.count("\n") == 1
    return json.loads(out)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def sft_run(work: Path, train: Train) -> Path:
    """A finished run of sft, made once."""
    if not (work / "runs/sft").exists():
        summary_of(train("sft", "--data", "demos.jsonl", "--json", sets=["epochs=1"]))
    return work / "runs/sft"


@pytest.fixture
def reward_run(work: Path, train: Train) -> Path:
    """A finished run of reward, made once."""
    if not (work / "runs/reward").exists():
        words = ("reward", "--data", "pairs.jsonl", "--eval", "heldout_pairs.jsonl", "--json")
        summary = summary_of(train(*words, sets=["epochs=0"]))
        assert summary["n"] == len(QUESTIONS) and 0 <= summary["heldout_accuracy"] <= 1
    return work / "runs/reward"
