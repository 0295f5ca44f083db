"""Make `trl_ppo.json`: what TRL 1.12's PPO computes from fixed tensors, with TRL's own source.

    python tests/golden/make_trl_ppo.py

TRL keeps its rewards, advantages and losses inside one long `train` method. This script installs
trl==1.12.0 into a temporary folder, takes those statements out of the method's syntax tree, and
runs them on the tensors below. Only the resulting numbers are stored. The script needs a package
index; the test that reads the numbers (`tests/test_golden.py`) does not.
"""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch

OUT = Path(__file__).with_name("trl_ppo.json")
B, C, V = 5, 6, 11
LENGTHS = [6, 6, 3, 1, 4]  # real tokens of each answer; TRL pads the others
SETTINGS = {"kl_coef": 0.07, "gamma": 1.0, "lam": 0.95, "temperature": 0.7}
SETTINGS |= {"cliprange": 0.2, "cliprange_value": 0.2, "whiten_rewards": False}


def inputs() -> dict[str, torch.Tensor]:
    """The tensors that both sides start from."""
    generator = torch.Generator().manual_seed(12)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    logprobs = normal(B, C) - 2
    return {
        "logits": 3 * normal(B, C, V),
        "responses": torch.randint(0, V, (B, C), generator=generator),
        "logprobs": logprobs,
        "ref_logprobs": logprobs + 0.5 * normal(B, C),
        "new_logprobs": logprobs + 0.3 * normal(B, C),
        "values": normal(B, C),
        "vpred": normal(B, C),
        "scores": normal(B),
        "lengths": torch.tensor(LENGTHS),
    }


def statements(tree: ast.Module, first: str, last: str) -> Any:
    """The code of `PPOTrainer.train` from the statement that assigns `first` to that of `last`."""
    (trainer,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "PPOTrainer")
    (train,) = (n for n in trainer.body if isinstance(n, ast.FunctionDef) and n.name == "train")
    for node in ast.walk(train):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        places = [(i, ast.unparse(s.targets[0])) for i, s in enumerate(body) if _assigns(s)]
        starts = [i for i, name in places if name == first]
        ends = [i for i, name in places if name == last]
        if starts and ends:
            part = body[starts[0] : ends[-1] + 1]
            return compile(ast.Module(part, type_ignores=[]), "trl", "exec")
    raise SystemExit(f"TRL's train method has no part from {first} to {last}")


def _assigns(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and len(statement.targets) == 1


def run(code: Any, module: Any, **names: Any) -> dict[str, Any]:
    """Run statements among the module's own functions; returns all names."""
    scope = vars(module) | names
    exec(code, scope)
    return scope


def golden(module: Any) -> dict[str, Any]:
    """TRL's numbers for `inputs`."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    rewarding = statements(tree, "logr", "actual_end")
    advantages = statements(tree, "lastgaelam", "returns")
    clipping = statements(tree, "vpredclipped", "pg_loss")
    given, args = inputs(), SimpleNamespace(**SETTINGS, kl_estimator="k1")
    places = torch.arange(C).repeat(B, 1)
    last = given["lengths"] - 1
    padding, padding_p1 = places > last[:, None], places > last[:, None] + 1
    values = given["values"].masked_fill(padding_p1, 0)
    invalid = {
        name: given[name].masked_fill(padding, module.INVALID_LOGPROB)
        for name in ("logprobs", "ref_logprobs", "new_logprobs")
    }
    shaped = run(
        rewarding,
        module,
        args=args,
        logprobs=invalid["logprobs"],
        ref_logprobs=invalid["ref_logprobs"],
        sequence_lengths=last,
        sequence_lengths_p1=last + 1,
    )
    rewards = shaped["rewards"].clone()
    rewards[shaped["actual_start"], shaped["actual_end"]] += given["scores"]
    parts = {"rewards": rewards, "values": values, "responses": given["responses"]}
    found = run(advantages, module, args=args, **parts)
    whitened = module.masked_whiten(found["advantages"], ~padding).masked_fill(padding, 0)
    batch = {
        "vpred": given["vpred"].masked_fill(padding_p1, 0),
        "mb_values": values,
        "mb_return": found["returns"],
        "mb_logprobs": invalid["logprobs"],
        "mb_advantage": whitened,
        "new_logprobs": invalid["new_logprobs"],
    }

    def losses(rows: list[int]) -> dict[str, torch.Tensor]:
        masks = {"padding_mask": padding, "padding_mask_p1": padding_p1, "micro_batch_inds": rows}
        part = {name: tensor[rows] for name, tensor in batch.items()}
        scope = run(clipping, module, args=args, **masks, **part)
        return {name: scope[name] for name in ("pg_loss", "vf_loss", "vf_clipfrac")}

    logits = given["logits"] / (args.temperature + 1e-7)
    return {
        "token_logprobs": module.selective_log_softmax(logits, given["responses"]),
        "rewards": rewards,
        "advantages": found["advantages"],
        "returns": found["returns"],
        "whitened": whitened,
        "masked_mean": module.masked_mean(given["values"], ~padding),
        "losses_full": losses([0, 1]),  # answers that fill the response
        "losses_all": losses(list(range(B))),
        "losses_first": losses([0, 1, 2]),
        "losses_second": losses([3, 4]),
    }


def plain(data: Any) -> Any:
    """Tensors as nested lists."""
    if isinstance(data, dict):
        return {key: plain(value) for key, value in data.items()}
    return data.tolist()


def main() -> None:
    with TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder]
        subprocess.run([*pip, "trl==1.12.0"], check=True)
        sys.path.insert(0, folder)
        module = importlib.import_module("trl.experimental.ppo.ppo_trainer")
        numbers = {"settings": SETTINGS, "inputs": plain(inputs()), "trl": plain(golden(module))}
    OUT.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    print(f"Wrote {OUT}")


if __name__ == "__main__":
    main()
