"""`kill -9` of `lorarlhf ppo` in rollout, update and saving; `--resume` gives the run never killed.

Real processes are killed. They come from a server that has imported everything, so that a start
takes half a second; what they run is the command line's own `main`.
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

PHASES = ("rollout", "update", "saving")
KILLS = 24
UPDATES = 24
SETS = ["bits=16", "compute_dtype=float32", "lora_rank=4", f"updates={UPDATES}", "save_steps=2"]
SETS += ["rollout_batch_size=4", "micro_batch_size=2", "max_new_tokens=8", "num_minibatches=2"]
SETS += ["num_ppo_epochs=2", "critic_warmup=1", "kl_target=0.5", "eval_steps=3", "kl_budget=1000"]
REWARD = """
import random
def lucky(completions, **columns):
    return [len(c[0]["content"]) + random.random() for c in completions]
"""


def run_command(words: list[str], phase: "Synchronized[int]", starts: "Synchronized[int]") -> None:
    """In a process of its own: note which phase runs, and run the command."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from lorarlhf.cli import main as cli
    from lorarlhf.ppo import checkpoint, trainer
    from lorarlhf.ppo.learner import Learner

    def noted(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            before = phase.value
            phase.value = number
            if number == 0:
                starts.value += 1
            try:
                return function(*args, **kwargs)
            finally:
                phase.value = before

        return call

    trainer.collect = noted(0, trainer.collect)
    Learner.run_epochs = noted(1, Learner.run_epochs)  # type: ignore[method-assign]
    checkpoint.save = noted(2, checkpoint.save)
    raise SystemExit(cli.main(words))


def results(folder: Path) -> tuple[list[Any], str, dict[str, bytes]]:
    """Metrics without seconds, samples, and the adapters' bytes."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]
    files = sorted((folder / "adapters").rglob("*.safetensors"))
    adapters = {str(file.relative_to(folder)): file.read_bytes() for file in files}
    return kept, (folder / "samples.jsonl").read_text(), adapters


@pytest.mark.slow
def test_a_run_killed_at_24_random_moments_is_the_run_never_killed(
    tiny_base: Path, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"What is {n}?"} for n in range(10)])
    write_jsonl(tmp_path / "heldout.jsonl", [{"prompt": f"Why is {n}?"} for n in range(3)])
    (tmp_path / "rewards.py").write_text(REWARD)
    server = context()
    phase, starts = server.Value("i", -1), server.Value("i", 0)

    def start(folder: Path) -> Any:
        words = ["ppo", "--prompts", str(tmp_path / "prompts.jsonl"), "--base", str(tiny_base)]
        words += ["--reward-function", f"{tmp_path / 'rewards.py'}:lucky", "--resume"]
        words += ["--eval", str(tmp_path / "heldout.jsonl"), "--out", str(folder)]
        words += [part for text in SETS for part in ("--set", text)]
        phase.value, starts.value = -1, 0
        process = server.Process(target=run_command, args=(words, phase, starts))
        process.start()
        return process

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = start(whole)  # --resume starts from nothing where there is nothing
    process.join()
    assert process.exitcode == 0

    chance, hit = random.Random(0), Counter[str]()
    while hit.total() < KILLS:
        process = start(parts)
        wanted, after = hit.total() % 3, chance.randint(1, 2)
        while process.is_alive() and not (phase.value == wanted and starts.value >= after):
            time.sleep(0.0005)
        time.sleep(chance.random() * (0.03, 0.05, 0.015)[wanted])
        assert process.is_alive(), f"the run ended before it was killed {KILLS} times: {hit}"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        hit[PHASES[phase.value] if phase.value >= 0 else "between"] += 1
    process = start(parts)
    process.join()
    assert process.exitcode == 0

    assert min(hit[name] for name in PHASES) >= 4, hit
    ours, theirs = results(parts), results(whole)
    assert ours[0] == theirs[0]
    assert sum("kl" in row for row in ours[0]) == UPDATES
    assert ours[1] == theirs[1]
    assert ours[2] == theirs[2] and len(ours[2]) >= 2
