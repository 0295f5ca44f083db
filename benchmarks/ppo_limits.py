"""How PPO's cost grows, how close it is to the machine's limit, and what an adapter costs.

    .venv/bin/python benchmarks/ppo_limits.py --ceiling      # a few minutes
    .venv/bin/python benchmarks/ppo_limits.py --ceiling --base 1b     # a random model of that size
    .venv/bin/python benchmarks/ppo_limits.py --growth       # half an hour
    .venv/bin/python benchmarks/ppo_limits.py --adapter
    .venv/bin/python benchmarks/ppo_limits.py --profile

`--ceiling` compares the floating-point rate of the optimization with that of the machine's own
matrix product in the same dtype. `--growth` measures seconds and peak memory by answer length,
prompts per update and layers with adapters, each size in a process of its own, and the slopes
between the sizes (1: twice the work takes twice as long). `--adapter` compares sampling with a LoRA
adapter to sampling from the bare 4-bit base, in turn. `--profile` shows what the time of the
optimization is spent on.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from _memory import forget_peak, held_mb, peak_mb
from stage_memory import RANDOM, words, write_random

LENGTHS = (32, 64, 128, 256, 512)
BATCHES = (4, 8, 16, 32, 64, 128)
LAYERS = (4, 8, 15, 30)
SQUARE = 2048
GROWING = 8  # micro-batch for all sizes of `growth`
MICRO = 16  # micro-batch elsewhere; the fastest one for updates of 16 prompts
PROMPT = 32  # tokens
SLOPES = ("generate", "update", "seconds", "peak_mb")
SMALL = "smollm2-135m"


def main() -> None:
    """Run the requested measurements and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ceiling", action="store_true")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--adapter", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument(
        "--base", default=SMALL, help="1b or 3b (random weights), or any base; --growth ignores it"
    )
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(**json.loads(args.one))))
        return
    result: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        base = write_random(Path(folder), args.base) if args.base in RANDOM else args.base
        if args.ceiling:
            result["ceiling"] = ceiling(base)
        if args.growth:
            result["growth"] = growth()
        if args.adapter:
            result["adapter"] = adapter(base)
        if args.profile:
            result["profile"] = profile(base)
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


# ---- growth


def growth() -> dict[str, Any]:
    """Figures for each size, and the slopes between neighbouring sizes."""
    kinds: dict[str, list[dict[str, Any]]] = {
        "answer_tokens": [{"answer_tokens": n} for n in LENGTHS],
        "batch": [{"batch": n} for n in BATCHES],
        "layers": [{"layers": n} for n in LAYERS],
    }
    found = {}
    for name, sizes in kinds.items():
        rows = [size | apart(**size) for size in sizes]
        for row in rows:
            print(name, row, file=sys.stderr)
        slopes = {key: slope(rows, name, key) for key in SLOPES}
        found[name] = {"rows": rows, "slopes": slopes}
    return found


def slope(rows: list[dict[str, Any]], name: str, key: str) -> list[float]:
    """Slopes between neighbouring sizes: log(ratio of times) / log(ratio of sizes)."""
    return [
        round(math.log(b[key] / a[key]) / math.log(b[name] / a[name]), 2)
        for a, b in zip(rows, rows[1:], strict=False)
    ]


def apart(**size: Any) -> dict[str, Any]:
    """Run `one` in a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def one(answer_tokens: int = 32, batch: int = 16, layers: Any = "upper-half") -> dict[str, Any]:
    """Seconds by phase of the second update, and the peak above the loaded base in MB."""
    trainer, folder = make_trainer(answer_tokens, batch, layers, micro=min(GROWING, batch))
    with folder:
        forget_peak()
        loaded = held_mb()
        trainer.update()
        row = trainer.update()
    return {
        "seconds": round(row["seconds"], 2),
        "generate": round(row["seconds_rollout"], 2),
        "update": round(row["seconds_optimize"], 2),
        "peak_mb": round(peak_mb() - loaded),
    }


def make_trainer(
    answer_tokens: int, batch: int, layers: Any, base: str = SMALL, micro: int = MICRO
) -> Any:
    """A trainer whose answers all have the same length, and its folder."""
    from lorarlhf import Backbone, PPOConfig, PPOTrainer

    backbone = Backbone.load(base, adapter_layers=layers)
    backbone.add_role("reward")
    backbone.heads["reward"].weight.data.normal_(0, 0.02)
    type(backbone).stop_ids = property(lambda self: [10**7])  # no answer ends by itself
    rows = [{"prompt": words(backbone, PROMPT, seed)} for seed in range(max(16, batch))]
    folder = TemporaryDirectory()
    config = PPOConfig(
        output_dir=folder.name,
        updates=3,
        rollout_batch_size=batch,
        micro_batch_size=micro,
        max_new_tokens=answer_tokens,
        critic_warmup=0,
        use_cpu=backbone.device.type == "cpu",
        disable_tqdm=True,
    )
    return PPOTrainer(backbone, config, rows), folder


# ---- the machine's limit


def ceiling(base: str) -> dict[str, Any]:
    """Billions of operations per second, of one matrix product and of the optimization."""
    trainer, folder = make_trainer(32, 16, "upper-half", base)
    with folder:
        trainer.update()
        shares = []
        for _ in range(3):  # in turn, because the machine's speed drifts
            limit = matrix_speed(trainer.backbone)
            seconds = trainer.update()["seconds_optimize"]
            shares.append((limit, optimization_work(trainer) / seconds / 1e9))
    limit, reached = (median(x) for x in zip(*shares, strict=True))
    share = median(b / a for a, b in shares)
    return {"matrix_gflops": round(limit), "reached": round(reached), "share": round(share, 3)}


def matrix_speed(backbone: Any) -> float:
    """The highest rate that a matrix product reaches, in 10^9 operations per second.

    It tries products with 1,024 rows and the model's own widths, and a large square one. On a CPU
    it also tries packed weights, which the optimization uses.
    """
    import torch

    from lorarlhf.backbone.kernels.dequantised import _can_pack, _packed, _packed_product

    hidden, wide = backbone.hidden_size, backbone.causal.config.intermediate_size
    best = 0.0
    for rows, inner, outer in ((1024, hidden, wide), (1024, wide, hidden), (SQUARE,) * 3):
        like: Any = {"dtype": backbone.compute_dtype, "device": backbone.device}
        a, b = torch.randn(rows, inner, **like), torch.randn(outer, inner, **like)
        products: list[Callable[[], Any]] = [lambda a=a, b=b: a @ b.T]  # type: ignore[misc]
        if backbone.device.type == "cpu" and _can_pack(a.dtype):
            weight = _packed(b)
            products.append(lambda a=a, b=weight: _packed_product(a, b, None))  # type: ignore[misc]
        work = 2 * rows * inner * outer
        best = max(best, *(work / seconds_of(product) / 1e9 for product in products))
    return best


def seconds_of(product: Callable[[], Any]) -> float:
    """Median over a few rounds. Each round waits for its last product only."""
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        for _ in range(5):
            last = product()
        last[0, 0].item()
        seconds.append((time.perf_counter() - started) / 5)
    return median(seconds)


def optimization_work(trainer: Any) -> float:
    """Operations in the epochs of one update.

    Counted are the products with the base's weights (forward, and backward to the inputs), with
    LoRA's weights (forward, and backward to inputs and weights) and with the LM head.
    """
    from lorarlhf.backbone.memory import adapter_bytes
    from lorarlhf.backbone.memory_plan import Plan
    from lorarlhf.backbone.shape import read_shape

    backbone, args = trainer.backbone, trainer.args
    shape = read_shape(backbone.base)
    rows = args.rollout_batch_size * (PROMPT + args.max_new_tokens)
    layers = sum(trainer.learner.layers.values())
    matrices = sum(a * b for a, b in shape.matrices)
    low_rank = adapter_bytes(shape, Plan("ppo", adapter_layers=1)) / 4
    answers = args.rollout_batch_size * args.max_new_tokens
    head = answers * shape.vocabulary * shape.hidden
    roles = rows * layers * (2 * 2 * matrices + 3 * 2 * low_rank)
    return args.num_ppo_epochs * (roles + 2 * 2 * head)


# ---- where the time of the optimization goes


def profile(base: str) -> dict[str, float]:
    """How the time of one update's optimization is divided between kinds of operators."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watching

    trainer, folder = make_trainer(32, 16, "upper-half", base)
    epochs, spent = trainer.learner.run_epochs, {}
    words, rank = trainer.backbone.lm_head.weight.shape[0], trainer.backbone._config.r
    on_card = trainer.backbone.device.type == "cuda"
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_card

    def watched(*args: Any) -> Any:
        with watching(activities=kinds, record_shapes=True) as seen:
            result = epochs(*args)
        for event in seen.key_averages(group_by_input_shape=True):
            if event.device_type != DeviceType.CPU:
                continue  # a kernel; its operator already has its time
            kind = kind_of(
                event.key, [n for shape in event.input_shapes for n in shape], words, rank
            )
            took = event.self_device_time_total if on_card else event.self_cpu_time_total
            spent[kind] = spent.get(kind, 0.0) + took
        return result

    with folder:
        trainer.update()
        trainer.learner.run_epochs = watched
        trainer.update()
    total = sum(spent.values())
    return {kind: round(time / total, 3) for kind, time in sorted(spent.items())}


def kind_of(operator: str, sizes: list[int], words: int, rank: int) -> str:
    """The kind of an operator with inputs of these sizes."""
    if words in sizes:
        return "LM head"
    if operator.endswith(("bmm", "softmax", "softmax_backward_data")):
        return "attention"
    if operator.endswith(("::mm", "addmm_", "linear_pointwise", "_4bit", "_blockwise")):
        return "LoRA's products" if rank in sizes else "the layers' products"
    return "others"


# ---- what an adapter costs


def adapter(base: str) -> dict[str, Any]:
    """Seconds to sample 16 answers of 32 tokens from the bare base and from the policy, in turn."""
    from lorarlhf.backbone.generation import generate_ids, weights_for_sampling

    trainer, folder = make_trainer(32, 16, "upper-half", base)
    backbone = trainer.backbone
    encoded = [backbone.encode(row["prompt"]) for row in trainer.rows]
    seconds: dict[str, list[float]] = {"base": [], "policy": []}
    with folder:
        for _ in range(6):
            for role, times in seconds.items():
                started = time.perf_counter()
                # Weights are made ready as in PPO's own sampling, which counts.
                with backbone.role(role), weights_for_sampling(backbone):
                    generate_ids(backbone, encoded, max_new_tokens=32)
                times.append(time.perf_counter() - started)
    middle = {role: round(median(times[1:]), 3) for role, times in seconds.items()}
    return middle | {"ratio": round(middle["policy"] / middle["base"], 3)}


if __name__ == "__main__":
    main()
