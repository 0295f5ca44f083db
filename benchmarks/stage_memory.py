"""Measured peak memory of every stage on one base, and the estimate of `lorarlhf estimate`.

    .venv/bin/python benchmarks/stage_memory.py                    # the small base, every stage
    .venv/bin/python benchmarks/stage_memory.py --base 1b          # random weights of that size
    .venv/bin/python benchmarks/stage_memory.py --prompt-tokens 256 --answer-tokens 256 --micro 2

Every row has exactly the given lengths, so every batch is the longest one. Each stage runs in a
process of its own and takes two optimizer steps. The peak is that of the process after the base is
loaded, and `interpreter` is the process with its libraries before that. On a GPU the peak is what
PyTorch has reserved, and `interpreter` is the GPU's context.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _memory import environment, forget_peak, has_card, held_mb, interpreter_mb, peak_mb

from lorarlhf.backbone.memory import estimate
from lorarlhf.backbone.memory_plan import Plan

RANDOM: dict[str, dict[str, int]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28}
    | {"num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128},
}
ROWS = 16
STAGES = ("sft", "reward", "dpo", "orpo", "kto", "ppo", "rloo")  # those that `run_stage` can run


def main() -> None:
    """Measure the stages and print a table; --out also writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--base", default="smollm2-135m", help="1b or 3b (random weights), or any base"
    )
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=STAGES)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--micro", type=int, default=4, help="sequences or pairs in a forward")
    parser.add_argument("--adapter-layers", default="upper-half")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--rollout", type=int, help="PPO's rollout batch (default: twice --micro)")
    parser.add_argument("--reference", action="store_true", help="give PPO's reference an adapter")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), help="default: the GPU if there is one"
    )
    parser.add_argument("--avx2", action="store_true", help="compute as a processor with AVX2 only")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.rollout = args.rollout or 2 * args.micro
    if args.one:
        print(json.dumps(measure(args)))
        return
    with TemporaryDirectory() as folder:
        base = args.base if args.base not in RANDOM else write_random(Path(folder), args.base)
        rows = [row_of(stage, base, args) for stage in args.stages]
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def write_random(folder: Path, size: str) -> str:
    """Write a base of that size with random weights and the small base's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from lorarlhf.backbone.fetch import find_base

    small = find_base("smollm2-135m")
    config = AutoConfig.from_pretrained(small, **RANDOM[size])
    torch.set_default_dtype(torch.bfloat16)
    model = AutoModelForCausalLM.from_config(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder / size, max_shard_size="500MB")
    AutoTokenizer.from_pretrained(small).save_pretrained(folder / size)
    return str(folder / size)


def row_of(stage: str, base: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one stage in a process of its own: the measured and the estimated memory."""
    command = [sys.executable, __file__, "--one", stage, "--base", base]
    for name in ("prompt_tokens", "answer_tokens", "micro", "adapter_layers", "bits", "rollout"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    command += ["--gradient-checkpointing"] * args.gradient_checkpointing
    command += ["--reference"] * args.reference
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=environment(args.device, args.avx2)
    )
    if done.returncode:
        raise SystemExit(f"{stage} failed with status {done.returncode}; its output is above")
    row = {"stage": stage, "base": args.base} | json.loads(done.stdout.splitlines()[-1])
    row |= estimated(stage, base, args, row)
    print(f"{stage}: {row}", file=sys.stderr)
    return row


def estimated(
    stage: str, base: str, args: argparse.Namespace, measured: dict[str, Any]
) -> dict[str, Any]:
    """The estimate for the whole process, and its relative error."""
    from lorarlhf.backbone.limits import count_adapter_layers
    from lorarlhf.backbone.shape import read_shape

    shape = read_shape(base)
    plan = Plan(
        stage,
        bits=args.bits,
        adapter_layers=count_adapter_layers(args.adapter_layers, shape.layers),
        micro_batch_size=args.micro,
        rollout_batch_size=args.rollout,
        prompt_tokens=args.prompt_tokens,
        answer_tokens=args.answer_tokens,
        float_bytes=measured["float_bytes"],
        device=measured["device"],
        gradient_checkpointing=args.gradient_checkpointing or None,
        reference=args.reference,
    )
    total = estimate(shape, plan)["total"] / 1e6
    real = measured["interpreter_mb"] + measured["peak_mb"]
    return {"estimate_mb": round(total), "off": f"{total / real - 1:+.1%}"}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run one stage in this process and measure its memory."""
    import bitsandbytes  # noqa: F401
    import trl

    for name in ("SFTTrainer", "RewardTrainer", "DPOTrainer"):
        getattr(trl, name)
    from lorarlhf import Backbone

    interpreter = interpreter_mb()
    before = 0.0 if has_card() else interpreter  # `held_mb` does not include a GPU's context
    backbone = Backbone.load(args.base, adapter_layers=args.adapter_layers, bits=args.bits)
    loaded = held_mb()
    forget_peak()
    started = time.perf_counter()
    with TemporaryDirectory() as folder:
        run_stage(args.one, backbone, args, Path(folder))
    return {
        "device": backbone.device.type,
        "float_bytes": backbone.compute_dtype.itemsize,
        "interpreter_mb": round(interpreter),
        "loaded_mb": round(loaded - before),
        "peak_mb": round(peak_mb() - before),
        "seconds": round(time.perf_counter() - started, 1),
    }


def run_stage(stage: str, backbone: Any, args: argparse.Namespace, folder: Path) -> None:
    """Run two optimizer steps of one micro-batch each (PPO: two updates)."""
    from lorarlhf import train_direct, train_kto, train_reward_model, train_sft
    from lorarlhf.runtime.run import Run
    from lorarlhf.stages.dpo_orpo import DirectSettings
    from lorarlhf.stages.kto import KTOSettings
    from lorarlhf.stages.reward_model import RewardSettings
    from lorarlhf.stages.sft import SFTSettings

    backbone.tokenizer.chat_template = None
    prompts = [words(backbone, args.prompt_tokens, seed) for seed in range(ROWS)]
    answers = [words(backbone, args.answer_tokens - 1, 99 + seed) for seed in range(ROWS)]
    others = [words(backbone, args.answer_tokens - 1, 999 + seed) for seed in range(ROWS)]
    pairs = [
        {"prompt": p, "chosen": c, "rejected": r}
        for p, c, r in zip(prompts, answers, others, strict=True)
    ]
    sizes = {"batch_size": args.micro, "micro_batch_size": args.micro, "plain": True}
    once: dict[str, Any] = {"trl": {"max_steps": 2}}
    if args.gradient_checkpointing:
        once["trl"]["gradient_checkpointing"] = True
    run = Run(folder / "run", stage, {"seed": 0})
    if stage == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
        train_sft(backbone, rows, run, SFTSettings(max_tokens=4096, **sizes, **once))
    elif stage == "reward":
        settings = RewardSettings(evaluations=1, **sizes, **once)
        train_reward_model(backbone, pairs[4:], run, settings, pairs[:4])
    elif stage in ("dpo", "orpo"):
        settings = DirectSettings(max_tokens=4096, **sizes, **once)
        train_direct(backbone, pairs, run, stage, settings)
    elif stage == "kto":
        train_kto(backbone, pairs, run, KTOSettings(max_tokens=4096, **sizes, **once))
    else:
        run_sampling(stage, backbone, args, run, [{"prompt": prompt} for prompt in prompts])


def run_sampling(
    stage: str, backbone: Any, args: argparse.Namespace, run: Any, rows: list[dict[str, Any]]
) -> None:
    """Run two updates of PPO or RLOO, whose answers all have the longest length."""
    from lorarlhf import PPOConfig, PPOTrainer

    backbone.add_role("reward")
    if args.reference:
        backbone.freeze_reference()
    config = PPOConfig(
        output_dir=str(run.folder.parent),
        updates=2,
        rollout_batch_size=args.rollout,
        micro_batch_size=args.micro,
        max_prompt_tokens=4096,
        max_new_tokens=args.answer_tokens,
        critic_warmup=0,
        num_ppo_epochs=1,  # more take time, not memory
        gradient_checkpointing=args.gradient_checkpointing,
        use_cpu=backbone.device.type == "cpu",
        disable_tqdm=True,
    )
    type(backbone).stop_ids = property(lambda self: [self.tokenizer.eos_token_id + 10**6])
    if stage == "ppo":
        PPOTrainer(backbone, config, rows).train()
        return
    # Imported here, since it would count in the memory of PPO.
    from lorarlhf.stages.critic_free import train_critic_free
    from lorarlhf.stages.inputs import PPOSettings, RewardSpec

    whole = {"generation_kwargs": {"min_new_tokens": args.answer_tokens}}
    settings = PPOSettings(stage, plain=True, trl=whole)
    train_critic_free(backbone, rows, run, config, RewardSpec(), settings)


def words(backbone: Any, tokens: int, seed: int) -> str:
    """A text of exactly this many tokens, different for each seed."""
    start = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    text = " ".join(random.Random(seed).choices(start, k=2 * tokens))
    ids = backbone.tokenizer(f" {text}")["input_ids"][:tokens]
    return backbone.tokenizer.decode(ids)


if __name__ == "__main__":
    main()
