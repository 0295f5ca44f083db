"""Two processes with half the batch each take the steps of one process with the whole batch."""

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.forked import run_group, run_script

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from lorarlhf.backbone.base import Backbone
from lorarlhf.runtime import distributed
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.trainer import PPOTrainer

base, folder, updates, resume = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "resume"
torch.set_num_threads(1)

def length(completions, **columns):
    return [float(len(text)) if len(text) % 3 else None for text in completions]

def steady(completions, **columns):
    return [1.0 for _ in completions]

backbone = Backbone.load(base, bits=16, compute_dtype="float32", adapter_layers=2, lora_rank=4)
backbone.add_role("reward")
backbone.heads["reward"].weight.data.copy_(torch.linspace(-1, 1, backbone.hidden_size))
args = PPOConfig(
    output_dir=folder, use_cpu=True, disable_tqdm=True, updates=updates, rollout_batch_size=8,
    micro_batch_size=2, num_minibatches=2, num_ppo_epochs=2, max_new_tokens=6, critic_warmup=1,
    learning_rate=1e-3, value_learning_rate=1e-3, adam_epsilon=1e-3, save_steps=2, eval_steps=2,
    kl_target=0.1, policy_layers=1,
)
rows = [{"prompt": f"What is {n}?" + " And why?" * (n % 3)} for n in range(9)]
trainer = PPOTrainer(backbone, args, rows, ["reward", length, steady], [1.0, 0.1, 1.0],
                     eval_dataset=rows[:3], judge_funcs=[steady])
trainer.train(resume_from_checkpoint=resume)
weights = {role: torch.cat([p.detach().flatten() for p in backbone.parameters_of(role)]).tolist()
           for role in ("policy", "value")}
result = {"rows": trainer.state.log_history, "weights": weights}
result["processes"] = distributed.world_size()
name = f"result-{trainer.args.process_index}.json"
(Path(folder) / name).write_text(json.dumps(result))
"""


def run(folder: Path, base: Path, processes: int, updates: int = 4, resume: bool = False) -> Any:
    """Train in this process, or in several, as under torchrun; gives each one's result."""
    folder.mkdir(exist_ok=True)
    script = folder / "train.py"
    script.write_text(SCRIPT)
    words = [str(base), str(folder), str(updates), "resume" if resume else "new"]
    if processes == 1:
        threads = torch.get_num_threads()
        with patch.object(sys, "argv", []):
            try:
                run_script(script, words)
            finally:
                torch.set_num_threads(threads)
    else:
        done = run_group(run_script, script, words, processes=processes, folder=folder)
        assert done.returncode == 0, done.stderr[-3000:]
    files = [folder / f"result-{rank}.json" for rank in range(processes)]
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.slow
def test_two_processes_equal_one_and_resume(tiny_base: Path, tmp_path: Path) -> None:
    (one,) = run(tmp_path / "one", tiny_base, 1)
    both = run(tmp_path / "two", tiny_base, 2)
    assert [result["processes"] for result in both] == [2, 2]
    assert both[0]["weights"] == both[1]["weights"]
    _same(both[0], one)
    # Two processes are stopped after two updates, and one goes on; and the other way round.
    for name, first, rest in (("two-one", 2, 1), ("one-two", 1, 2)):
        run(tmp_path / name, tiny_base, first, updates=2)
        _same(run(tmp_path / name, tiny_base, rest, resume=True)[0], one)


def _same(ours: Any, theirs: Any) -> None:
    assert len(ours["rows"]) == len(theirs["rows"]) == 4 + 3
    for mine, other in zip(ours["rows"], theirs["rows"], strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            if "seconds" not in name:
                assert value == pytest.approx(other[name], rel=1e-3, abs=1e-4), name
    for role, weights in ours["weights"].items():
        assert weights == pytest.approx(theirs["weights"][role], rel=0, abs=1e-4)
