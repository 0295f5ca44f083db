"""`kill -9` of the stages that TRL trains; `--resume` gives the run never killed.

As in `test_kills.py`, real processes are killed, while they train and while they save.
"""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.runtime.files import write_jsonl
from tests.forked import context

SETS = ["bits=16", "compute_dtype=float32", "lora_rank=4", "save_steps=2", "lora_dropout=0.1"]
SETS += ["batch_size=4", "micro_batch_size=2", "learning_rate=0.003", "epochs=8"]
# DITTO saves after its supervised part, which has seven forwards here, and after each round.
DITTO = ["rounds=3", "steps=2", "answers=1", "max_new_tokens=4", "sft_epochs=1"]
KILLS = {"sft": 3, "reward": 3, "dpo": 1, "orpo": 1, "kto": 1, "ditto": 1}
TRAINING, SAVING = 0, 1


def run_command(words: list[str], phase: "Synchronized[int]", starts: "Synchronized[int]") -> None:
    """In a process of its own: note steps and saving, and run the command."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import transformers

    from lorarlhf.cli import main as cli
    from lorarlhf.runtime import checkpoints

    def noted(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            before = phase.value
            phase.value = number
            starts.value += number == TRAINING
            try:
                return function(*args, **kwargs)
            finally:
                phase.value = before

        return call

    step = noted(TRAINING, transformers.Trainer.training_step)
    transformers.Trainer.training_step = step  # type: ignore[method-assign]
    checkpoints.publish = noted(SAVING, checkpoints.publish)
    raise SystemExit(cli.main(words))


def results(folder: Path) -> tuple[list[Any], dict[str, bytes]]:
    """Metrics without seconds, and the adapters' bytes."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "_runtime", "_per_second")
    kept = [{k: v for k, v in row.items() if not k.endswith(timed)} for row in rows]
    files = sorted((folder / "adapters").rglob("*"))
    files = [file for file in files if file.is_file()]
    return kept, {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.slow
@pytest.mark.parametrize("stage", KILLS)
def test_a_stage_killed_and_resumed_is_the_one_never_killed(
    stage: str, tiny_base: Path, tmp_path: Path
) -> None:
    questions = [f"What is {n}?" + " And why?" * (n % 3) for n in range(13)]
    answers = {"chosen": "It is good.", "rejected": "No idea at all, sorry."}
    rows = [{"prompt": q, "completion": "A sum.", **answers} for q in questions]
    answers_of = {"sft": ("completion",), "ditto": ("completion",)}
    wanted = ("prompt", *answers_of.get(stage, ("chosen", "rejected")))
    sets = SETS
    if stage == "ditto":
        sets = [text for text in SETS if not text.startswith(("save_steps", "epochs"))] + DITTO
    write_jsonl(tmp_path / "data.jsonl", [{name: row[name] for name in wanted} for row in rows])
    held = [row | {"prompt": f"And {row['prompt']}"} for row in rows]
    measured = [{name: row[name] for name in wanted} for row in held]
    write_jsonl(tmp_path / "held.jsonl", measured)
    server = context()
    phase, starts = server.Value("i", -1), server.Value("i", 0)

    def start(folder: Path) -> Any:
        words = [stage, "--data", str(tmp_path / "data.jsonl"), "--base", str(tiny_base)]
        words += ["--resume", "--out", str(folder)]
        words += [part for text in sets for part in ("--set", text)]
        if stage in ("dpo", "orpo", "kto"):  # the best weights are in the checkpoints, too
            words += ["--eval", str(tmp_path / "held.jsonl")]
        phase.value, starts.value = -1, 0
        process = server.Process(target=run_command, args=(words, phase, starts))
        process.start()
        return process

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = start(whole)  # --resume starts from nothing where there is nothing
    process.join()
    assert process.exitcode == 0

    chance, hit = random.Random(0), Counter[int]()
    while hit.total() < KILLS[stage]:
        process = start(parts)
        wanted_phase, after = hit.total() % 2, chance.randint(2, 9)
        while process.is_alive() and not (phase.value == wanted_phase and starts.value >= after):
            time.sleep(0.0002)
        assert process.is_alive(), f"the run ended before it was killed often enough: {hit}"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        hit[phase.value] += 1
    assert list((parts / "checkpoints").glob("checkpoint-*"))
    for _ in range(2 if stage == "reward" else 1):  # once more: there is nothing left to do
        process = start(parts)
        process.join()
        assert process.exitcode == 0
        ours, theirs = results(parts), results(whole)
        assert ours[0] == theirs[0]
        assert ours[1] == theirs[1] and ours[1]
    assert KILLS[stage] == 1 or min(hit[TRAINING], hit[SAVING]) >= 1, hit
