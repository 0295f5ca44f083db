"""The training commands under `accelerate launch`: two CPU processes give what one gives.

PPO goes through the launcher itself. The others get the processes and variables that it starts them
with, but their processes come from a server that has imported everything.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from lorarlhf.cli.main import main
from lorarlhf.cli.train import _recorded
from lorarlhf.ppo import checkpoint
from lorarlhf.runtime import distributed as group
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_jsonl
from lorarlhf.runtime.run import Run
from lorarlhf.stages.trl import checkpointing
from lorarlhf.stages.trl.arguments import batch_arguments
from tests.forked import run_group

# What the README says, with a free port.
LAUNCH = ("--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m", "lorarlhf.cli")
SETS = ("bits=16", "compute_dtype=float32", "lora_rank=4")
TRAINED = ("learning_rate=0.003", "save_steps=2")
REWARD = """
def length(completions, **columns):
    return [float(len(c[0]["content"])) for c in completions]
"""
# Of weights that have moved by some 0.01; the sums of two processes round otherwise.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data: 13 rows, which no batch size divides, of different lengths."""
    folder = tmp_path_factory.mktemp("work")
    questions = [f"What is {n} and why?" + " Tell me more." * (n % 3) for n in range(13)]
    write_jsonl(folder / "prompts.jsonl", [{"prompt": q} for q in questions])
    answers = [("It is good." + " Yes." * (n % 4), "No idea at all.") for n in range(13)]
    pairs = zip(questions, answers, strict=True)
    rows = [{"prompt": q, "chosen": good, "rejected": bad} for q, (good, bad) in pairs]
    write_jsonl(folder / "pairs.jsonl", rows)
    write_jsonl(
        folder / "demos.jsonl",
        [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows],
    )
    (folder / "rewards.py").write_text(REWARD)
    return folder


def words_of(stage: str, base: Path, out: str, sets: Sequence[str]) -> list[str]:
    files = {"sft": "demos.jsonl", "ditto": "demos.jsonl", "ppo": "prompts.jsonl"}
    data = files.get(stage, "pairs.jsonl")
    words = [stage, "--prompts" if stage == "ppo" else "--data", data, "--base", str(base)]
    if stage == "ppo":
        words += ["--reward-function", "rewards.py:length"]
    return [*words, "--out", out, "--json", *(w for s in (*SETS, *sets) for w in ("--set", s))]


@pytest.fixture
def alone(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`alone(words)`: run a command in this process and in the folder `work`."""
    monkeypatch.chdir(work)

    def run(words: Sequence[str]) -> dict[str, Any]:
        assert main(list(words)) == 0
        return json.loads(capsys.readouterr().out)

    return run


def launch(work: Path, words: Sequence[str]) -> Any:
    """Run a command as the README says; gives what subprocess gives."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, *words],
        env=environment,
        cwd=work,
        capture_output=True,
        text=True,
        timeout=600,
    )


def fork(work: Path, words: Sequence[str]) -> Any:
    """As `launch`, without the half minute in which the launcher and two processes import."""
    return run_group(main, list(words), processes=2, folder=work)


def done(result: Any) -> dict[str, Any]:
    """The one object on standard output of a command that went well."""
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted((folder / "adapters").rglob("*.safetensors"))
    return {f"{f.parent.name}.{n}": t for f in files for n, t in load_file(f).items()}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def check_same(ours: Path, theirs: Path, tolerance: float = TOLERANCE) -> None:
    mine, other = weights(ours), weights(theirs)
    assert mine.keys() == other.keys() and mine
    for name, weight in mine.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=tolerance)
    steps = [[(row["stage"], row["step"]) for row in rows_of(place)] for place in (ours, theirs)]
    assert steps[0] == steps[1]
    losses = [[r["loss"] for r in rows_of(place) if "loss" in r] for place in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_two_processes_equal_one_and_go_on(
    stage: str, tiny_base: Path, work: Path, alone: Any
) -> None:
    sets = (*TRAINED, "epochs=4", "batch_size=8", "micro_batch_size=2")
    one, two = f"{stage}-one", f"{stage}-two"
    summary = alone(words_of(stage, tiny_base, one, sets))
    launched = fork(work, words_of(stage, tiny_base, two, sets))
    both = done(launched)
    for name in summary.keys() - {"out", "stage", "seconds_total", "peak_rss_mb"}:
        assert both[name] == pytest.approx(summary[name], rel=1e-5), name
    check_same(work / two, work / one)
    if stage == "reward":
        assert summary["adapter_steps_kept"] > 0
    assert launched.stderr.count("Loading ") == launched.stderr.count("Report: ") == 1
    assert read_json(work / two / "run.json")["status"] == "done"

    # As a kill leaves it: the newest checkpoint is older than the log.
    before, newest = sorted((work / two / "checkpoints").iterdir())
    assert {file.suffix for file in before.iterdir()} == {".json", ".safetensors"}
    for place in (work / two / "adapters", work / two / "summary.json", newest):
        os.rename(place, work / two / f"away-{place.name}")
    resumed = fork(work, [*words_of(stage, tiny_base, two, sets), "--resume"])
    done(resumed)
    assert resumed.stderr.count(f"Continuing after step {before.name.split('-')[1]}.") == 1
    check_same(work / two, work / one)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["kto", "orpo"])
def test_a_process_without_rows_in_the_last_step_runs_along(
    stage: str, tiny_base: Path, work: Path, alone: Any
) -> None:
    """Nine rows in steps of eight: the last one belongs to one of the two processes."""
    rows = [json.loads(line) for line in (work / "pairs.jsonl").read_text().splitlines()][:9]
    if stage == "kto":
        names = ("chosen", "rejected") * 5
        rows = [
            {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
            for row, name in zip(rows, names, strict=False)
        ]
    write_jsonl(work / "nine.jsonl", rows)
    sets = (*TRAINED, "epochs=3", "batch_size=8", "micro_batch_size=2")
    one, two = f"{stage}-nine-one", f"{stage}-nine-two"
    data = ("--data", "nine.jsonl")
    alone([*words_of(stage, tiny_base, one, sets), *data])
    done(fork(work, [*words_of(stage, tiny_base, two, sets), *data]))
    check_same(work / two, work / one, tolerance=1e-5)  # six steps, whose sums round otherwise


@pytest.mark.slow
def test_ditto_compares_with_the_same_answers_in_both(
    tiny_base: Path, work: Path, alone: Any
) -> None:
    sets = ("rounds=1", "steps=2", "answers=1", "max_new_tokens=4", "sft_epochs=1")
    sets += ("batch_size=8", "micro_batch_size=2", "learning_rate=0.003")
    one, two = ([*words_of("ditto", tiny_base, f"ditto-{n}", sets)] for n in ("one", "two"))
    assert alone(one)["steps"] == 4
    assert done(fork(work, two))["rows"] == 13
    check_same(work / "ditto-two", work / "ditto-one", tolerance=1e-5)
    pairs = [(work / f"ditto-{n}/rounds/1/pairs.jsonl").read_bytes() for n in ("one", "two")]
    assert pairs[0] == pairs[1]


@pytest.mark.slow
def test_ppo_equals_one_process(tiny_base: Path, work: Path, alone: Any) -> None:
    sets = ("updates=2", "rollout_batch_size=4", "max_new_tokens=6", "critic_warmup=0")
    assert alone(words_of("ppo", tiny_base, "ppo-one", (*sets, *TRAINED)))["updates"] == 2
    assert done(launch(work, words_of("ppo", tiny_base, "ppo-two", (*sets, *TRAINED))))["episodes"]
    check_same(work / "ppo-two", work / "ppo-one")
    samples = [(work / name / "samples.jsonl").read_text() for name in ("ppo-one", "ppo-two")]
    assert samples[0] == samples[1] and samples[0].count("\n") == 8


def test_a_mistake_is_told_once_and_ends_both(tiny_base: Path, work: Path) -> None:
    words = words_of("dpo", tiny_base, "mistaken", ("batch_size=3",))
    result = fork(work, words)
    assert result.returncode != 0 and result.stdout == ""
    assert result.stderr.count("make it a multiple of 2") == 1
    assert not (work / "mistaken").exists()


def test_processes_share_the_rows_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert tuple(batch_arguments(8, 4).values()) == (2, 1)
    assert tuple(batch_arguments(24, 4).values()) == (3, 2)
    with pytest.raises(UserError, match="batch_size is 6, and 4 processes"):
        batch_arguments(6, 4)


def test_commands_of_one_process_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["demo", "--quick"]) == 2
    assert "demo runs in one process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rank", "local_rank", "wanted"),
    [("0", "0", "make wait wait"), ("4", "0", "wait make wait"), ("5", "1", "wait wait make")],
)
def test_the_first_process_fetches_then_one_on_each_machine(
    rank: str, local_rank: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORLD_SIZE", "8"), ("RANK", rank), ("LOCAL_RANK", local_rank)):
        monkeypatch.setenv(name, value)
    done: list[str] = []
    monkeypatch.setattr(group, "barrier", lambda: done.append("wait"))
    group.main_process_first(lambda: done.append("make"))
    assert " ".join(done) == wanted


def test_a_checkpoint_that_a_process_does_not_see_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = tmp_path / "far" / "checkpoint-4"
    monkeypatch.setattr(group, "broadcast_from_main", lambda make: far)
    with pytest.raises(UserError, match=r"checkpoint-4\. .*on a disk that all machines share"):
        checkpointing.has_checkpoint(tmp_path)
    (tmp_path / "far" / "checkpoint-4").mkdir(parents=True)
    (far / "files.json").write_text("{}")
    assert checkpointing.has_checkpoint(tmp_path)  # what the first one sees counts
    trainer = SimpleNamespace(args=SimpleNamespace(output_dir=str(tmp_path)))
    loaded: list[Path] = []
    monkeypatch.setattr(checkpoint, "_load", lambda trainer, place: loaded.append(place))
    checkpoint.load_newest(cast(Any, trainer), True)
    assert loaded == [far]
    (far / "files.json").unlink()
    with pytest.raises(UserError, match="on a disk that all machines share"):
        checkpoint.load_newest(cast(Any, trainer), True)


@pytest.mark.parametrize(
    ("local", "told"),
    [("4", "the same command with --resume on every machine"), ("8", "--num_processes 8 ")],
)
def test_a_stopped_run_says_what_goes_on(
    local: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    (tmp_path / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    args = argparse.Namespace(argv=["sft", "--data", "demos.jsonl"])
    with pytest.raises(KeyboardInterrupt), _recorded(Run(tmp_path, "sft", {}), args, None):
        raise KeyboardInterrupt
    error = capsys.readouterr().err
    assert told in error and "--resume" in error
    assert ("accelerate launch" in error) == (local == "8")


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 5, 12, 13, 23])
def test_each_row_is_dealt_once_and_weighs_alike(
    rows: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils.data import SequentialSampler

    from lorarlhf.stages.trl.even_steps import BatchSampler

    def share(count: int, rank: int) -> range:
        return range(rank * count // processes, (rank + 1) * count // processes)

    monkeypatch.setenv("WORLD_SIZE", str(processes))
    weight, sizes = {}, set()
    for rank in range(processes):
        monkeypatch.setattr(group, "own_share", partial(share, rank=rank))
        sampler = BatchSampler(SequentialSampler(range(rows)), 2, 2, lambda: 0)
        dealt = list(sampler)
        sizes.add(len(dealt))
        assert len(sampler) == len(dealt)
        steps = -(-len(dealt) // 2)
        pieces = [piece for step in range(steps) for piece in sampler.micro_batches(step)]
        for batch, piece in zip(dealt, pieces, strict=True):
            for row in batch if piece.weight else []:
                assert row not in weight
                weight[row] = piece.weight / len(batch) / processes
    assert len(sizes) == 1  # or one would wait for the others for ever
    assert sorted(weight) == list(range(rows))
    size = 4 * processes
    assert weight == pytest.approx(
        {row: 1 / min(size, rows - row // size * size) for row in range(rows)}
    )
