"""`kill -9` of GRPO; `--resume` gives the run never killed. RLOO shares all of its code."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.runtime.files import write_jsonl
from tests.forked import context
from tests.invariants.test_stage_kills import results, run_command

SETS = ["bits=16", "compute_dtype=float32", "lora_rank=4", "lora_dropout=0.1", "save_steps=1"]
SETS += ["learning_rate=0.003", "updates=4", "rollout_batch_size=4", "micro_batch_size=2"]
SETS += ["max_new_tokens=6", "num_minibatches=2", "num_ppo_epochs=2", "num_generations=2"]
SETS += ["algorithm=grpo"]
REWARD = """
def length(completions, **columns):
    return [float(len(c[0]["content"])) for c in completions]
"""


@pytest.mark.slow
def test_grpo_killed_and_resumed_is_the_run_never_killed(tiny_base: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"What is {n}?"} for n in range(5)])
    (tmp_path / "rewards.py").write_text(REWARD)
    server = context()
    phase, starts = server.Value("i", -1), server.Value("i", 0)

    def start(folder: Path) -> Any:
        words = ["ppo", "--prompts", str(tmp_path / "prompts.jsonl"), "--base", str(tiny_base)]
        words += ["--reward-function", f"{tmp_path / 'rewards.py'}:length", "--resume"]
        words += ["--out", str(folder)]
        words += [part for text in SETS for part in ("--set", text)]
        phase.value, starts.value = -1, 0
        process = server.Process(target=run_command, args=(words, phase, starts))
        process.start()
        return process

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = start(whole)
    process.join()
    assert process.exitcode == 0
    process = start(parts)
    while process.is_alive() and starts.value < 10:  # in the third update: each has 4 forwards
        time.sleep(0.0002)
    assert process.is_alive(), "the run ended before it was killed"
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list((parts / "checkpoints").glob("checkpoint-*"))
    process = start(parts)
    process.join()
    assert process.exitcode == 0
    ours, theirs = results(parts), results(whole)
    assert ours[0] == theirs[0] and sum("kl" in row for row in ours[0]) == 4
    assert ours[1] == theirs[1] and ours[1]
