"""PPO beside what people train without a critic: RLOO and GRPO by TRL's own trainers, in turn.

    .venv/bin/python benchmarks/critic_free.py
    .venv/bin/python benchmarks/critic_free.py --avx2 --sides ppo trl-grpo --rounds 1

An update answers 16 prompts (without a critic 4 prompts, 4 times each) with exactly 32 tokens,
scores them by a Python function and trains on them. TRL loads its own model in 4 bit and trains
LoRA of rank 16 on all linear layers of all layers, with one pass over the answers, its default.
`ppo` has the defaults of lorarlhf, with four passes; `ppo-1` has one pass; `ppo-all` has four
passes over adapters on all layers, like TRL's; `rloo` and `grpo` are TRL's trainers on the shared
backbone. A figure is the median of the updates of all rounds, without each round's first one.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from _memory import environment, forget_peak, interpreter_mb, peak_mb
from stages_vs_trl import LORA, load_for_trl, step_ends, train_in_compute_dtype

SIDES = ("ppo", "ppo-1", "ppo-all", "rloo", "grpo", "trl-rloo", "trl-grpo")
EACH = 4  # answers to one prompt without a critic


def main() -> None:
    """Measure all sides in turn, round after round, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=SIDES)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--answers", type=int, default=16, help="in an update")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--micro", type=int, default=16, help="answers in a forward that trains")
    parser.add_argument("--updates", type=int, default=3, help="in a round, after a first one")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", choices=("cuda", "cpu"))
    parser.add_argument("--avx2", action="store_true", help="compute as a processor with AVX2 only")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args)))
        return
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in args.sides}
    for _ in range(args.rounds):
        for side in args.sides:
            rounds[side].append(in_a_process(side, args))
            print(side, rounds[side][-1], file=sys.stderr, flush=True)
    print("| | seconds an update | peak, MB |\n|---|---|---|")
    for side, rows in rounds.items():
        seconds = median(second for row in rows for second in row["seconds"])
        print(f"| {side} | {seconds:.1f} | {median(row['peak_mb'] for row in rows):.0f} |")


def in_a_process(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """One round of one side."""
    names = ("base", "answers", "tokens", "micro", "updates")
    words = [part for name in names for part in (f"--{name}", str(getattr(args, name)))]
    done = subprocess.run(
        [sys.executable, __file__, "--one", side, *words],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(args.device, args.avx2),
    )
    if done.returncode:
        raise SystemExit(f"{side} failed; its output is above")
    return json.loads(done.stdout.splitlines()[-1])


def measure(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train in this process; seconds of each update, and the peak above the libraries."""
    import bitsandbytes  # noqa: F401

    before = interpreter_mb()
    forget_peak()
    with TemporaryDirectory() as folder:
        run = run_ppo if side.startswith("ppo") else run_critic_free
        seconds = run(side, args, Path(folder))
    return {"seconds": seconds, "peak_mb": round(peak_mb() - before)}


def prompts_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The bundled prompts, as conversations, enough for all updates."""
    from lorarlhf.data.readers import as_conversation, bundled, read_prompts

    rows = [{"prompt": as_conversation(row["prompt"])} for row in read_prompts(bundled("prompts"))]
    return rows[: args.answers * (args.updates + 1)]


def reward(completions: list[Any], **columns: Any) -> list[float]:
    """Letters e in the answer: any number that differs between answers will do."""
    return [float(str(answer).count("e")) for answer in completions]


def sizes_of(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What PPO and RLOO of lorarlhf have in common."""
    return {
        "output_dir": str(folder),
        "updates": args.updates + 1,
        "rollout_batch_size": args.answers,
        "micro_batch_size": args.micro,
        "max_new_tokens": args.tokens,
    }


def run_ppo(side: str, args: argparse.Namespace, folder: Path) -> list[float]:
    """PPO by lorarlhf; seconds of each update but the first."""
    from lorarlhf import Backbone, PPOConfig, PPOTrainer

    layers = "all" if side == "ppo-all" else "upper-half"
    backbone = Backbone.load(args.base, adapter_layers=layers)
    type(backbone).stop_ids = property(lambda self: [10**7])  # no answer ends by itself
    trained = backbone.adapter_layers if layers == "all" else None
    config = PPOConfig(
        **sizes_of(args, folder),
        num_ppo_epochs=1 if side == "ppo-1" else 4,
        critic_warmup=0,
        policy_layers=trained,
        value_layers=trained,
        use_cpu=backbone.device.type == "cpu",
        disable_tqdm=True,
    )
    trainer = PPOTrainer(backbone, config, prompts_of(args), reward_funcs=[reward])
    trainer.train()
    return [row["seconds"] for row in trainer.state.log_history if "seconds" in row][1:]


def run_critic_free(side: str, args: argparse.Namespace, folder: Path) -> list[float]:
    """RLOO or GRPO, on TRL's own model or on the shared backbone; seconds as in `run_ppo`."""
    import trl

    ended = step_ends()
    rows = prompts_of(args)
    always = {"min_new_tokens": args.tokens}
    if side in ("rloo", "grpo"):
        from lorarlhf import Backbone, PPOConfig
        from lorarlhf.runtime.run import Run
        from lorarlhf.stages.critic_free import train_critic_free
        from lorarlhf.stages.inputs import PPOSettings, RewardSpec

        config = PPOConfig(**sizes_of(args, folder), num_ppo_epochs=1)
        backbone = Backbone.load(args.base)
        settings = PPOSettings(side, num_generations=EACH, trl={"generation_kwargs": always})
        run = Run(folder / "run", "ppo", {"seed": 0})
        train_critic_free(backbone, rows, run, config, RewardSpec([reward]), settings)
    else:
        from datasets import Dataset
        from peft import LoraConfig

        name = side.removeprefix("trl-").upper()
        model, tokenizer, places = load_for_trl(args.base)
        config = getattr(trl, f"{name}Config")(
            output_dir=str(folder),
            max_steps=args.updates + 1,
            per_device_train_batch_size=args.micro,
            gradient_accumulation_steps=args.answers // args.micro,
            steps_per_generation=args.answers // args.micro,
            num_generations=EACH,
            max_completion_length=args.tokens,
            generation_kwargs=always,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **places,
        )
        trainer = getattr(trl, f"{name}Trainer")(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        )
        train_in_compute_dtype(trainer)
        trainer.train()
    return [b - a for a, b in zip(ended, ended[1:], strict=False)]


if __name__ == "__main__":
    main()
