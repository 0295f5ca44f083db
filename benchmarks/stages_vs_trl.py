"""Each stage beside TRL's own trainer: the same rows, the same base in 4 bit, in turn.

    .venv/bin/python benchmarks/stages_vs_trl.py                        # about a quarter of an hour
    .venv/bin/python benchmarks/stages_vs_trl.py --stages sft dpo --rounds 3

TRL loads its own model and trains LoRA of rank 16 on all linear layers of all layers, as its
documentation shows. lorarlhf is measured with adapters on all layers too, and on the upper half,
which is its default. Every row has exactly the given lengths; neither side checkpoints activations.
A figure is the median of the optimizer steps of all rounds, without each round's first one.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from _memory import environment, forget_peak, interpreter_mb, peak_mb
from stage_memory import words

STAGES = ("sft", "reward", "dpo", "orpo", "kto")
SIDES = ("trl", "all", "upper-half")
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
Row = dict[str, Any]


def main() -> None:
    """Measure all sides in turn, round after round, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=STAGES)
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=SIDES)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8, help="rows in an optimizer step")
    parser.add_argument("--micro", type=int, default=4, help="rows in one forward")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps in a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", choices=("cuda", "cpu"))
    parser.add_argument("--avx2", action="store_true", help="compute as a processor with AVX2 only")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.batch % args.micro:
        raise SystemExit("--batch is a multiple of --micro.")
    if args.one:
        print(json.dumps(measure(*args.one, args)))
        return
    lines = ["| stage | " + " | ".join(f"{side}: s a step, peak MB" for side in args.sides) + " |"]
    lines.append("|---|" + "---|" * len(args.sides))
    found: dict[str, dict[str, Row]] = {}
    for stage in args.stages:
        rounds: dict[str, list[Row]] = {side: [] for side in args.sides}
        for _ in range(args.rounds):
            for side in args.sides:
                rounds[side].append(in_a_process(stage, side, args))
        found[stage] = {side: summed_up(some) for side, some in rounds.items()}
        cells = [f"{row['seconds']:.2f}, {row['peak_mb']:.0f}" for row in found[stage].values()]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
        if args.out:
            args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print("\n".join(lines))


def in_a_process(stage: str, side: str, args: argparse.Namespace) -> Row:
    """One round of one side."""
    names = ("base", "prompt_tokens", "answer_tokens", "batch", "micro", "steps")
    more = [part for n in names for part in (f"--{n.replace('_', '-')}", str(getattr(args, n)))]
    command = [sys.executable, __file__, "--one", stage, side, *more]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=environment(args.device, args.avx2)
    )
    if done.returncode:
        raise SystemExit(f"{stage} by {side} failed; its output is above")
    return json.loads(done.stdout.splitlines()[-1])


def summed_up(rounds: list[Row]) -> Row:
    """Medians over all rounds."""
    steps = [seconds for row in rounds for seconds in row["steps"]]
    peaks = [row["peak_mb"] for row in rounds]
    return {"seconds": median(steps), "peak_mb": median(peaks), "rounds": rounds}


def measure(stage: str, side: str, args: argparse.Namespace) -> Row:
    """Train in this process; the seconds of each step but the first, and the peak."""
    import bitsandbytes  # noqa: F401

    ended = step_ends()
    before = interpreter_mb()
    forget_peak()
    with TemporaryDirectory() as folder:
        os.environ["LORARLHF_CACHE"] = own_cache(folder)  # states that were read in another round
        if side == "trl":
            run_trl(stage, args, folder)
        else:
            run_ours(stage, side, args, Path(folder))
    spans = [b - a for a, b in zip(ended, ended[1:], strict=False)]
    return {"steps": spans, "peak_mb": round(peak_mb()), "interpreter_mb": round(before)}


def step_ends() -> list[float]:
    """A list into which the Trainer of transformers, from now on, writes when a step has ended."""
    from transformers.trainer_callback import DefaultFlowCallback

    ended: list[float] = []
    own = DefaultFlowCallback.on_step_end

    def on_step_end(self: Any, *words: Any, **named: Any) -> Any:
        ended.append(time.perf_counter())
        return own(self, *words, **named)

    DefaultFlowCallback.on_step_end = on_step_end
    return ended


def own_cache(folder: str) -> str:
    """A cache folder with nothing but the converted bases."""
    from lorarlhf.backbone.base_cache import cache_folder

    cache = Path(folder) / "cache"
    cache.mkdir()
    (cache / "bases").symlink_to((cache_folder() / "bases").resolve())
    return str(cache)


def rows_of(stage: str, tokenizer: Any, args: argparse.Namespace) -> list[Row]:
    """Rows of exactly the given lengths, as plain text."""

    class Texts:
        pass

    texts: Any = Texts()
    texts.tokenizer = tokenizer
    count = args.batch * args.steps + (args.batch if stage == "reward" else 0)
    rows = [
        {
            "prompt": words(texts, args.prompt_tokens, seed),
            "chosen": words(texts, args.answer_tokens - 1, 9999 + seed),
            "rejected": words(texts, args.answer_tokens - 1, 99999 + seed),
        }
        for seed in range(count)
    ]
    if stage == "sft":
        return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    if stage == "kto":
        sides = ("rejected", "chosen")
        return [
            {"prompt": row["prompt"], "completion": row[sides[n % 2]], "label": n % 2 == 1}
            for n, row in enumerate(rows)
        ]
    return rows


def run_ours(stage: str, layers: str, args: argparse.Namespace, folder: Path) -> None:
    """The stage by lorarlhf."""
    from lorarlhf import Backbone, train_direct, train_kto, train_reward_model, train_sft
    from lorarlhf.runtime.run import Run
    from lorarlhf.stages.dpo_orpo import DirectSettings
    from lorarlhf.stages.kto import KTOSettings
    from lorarlhf.stages.reward_model import RewardSettings
    from lorarlhf.stages.sft import SFTSettings

    backbone = Backbone.load(args.base, adapter_layers=layers)
    backbone.tokenizer.chat_template = None
    rows = rows_of(stage, backbone.tokenizer, args)
    sizes: Row = {"batch_size": args.batch, "micro_batch_size": args.micro, "plain": True}
    sizes |= {"epochs": 1.0, "trl": {"gradient_checkpointing": False}}
    run = Run(folder / "run", stage, {"seed": 0})
    if stage == "sft":
        train_sft(backbone, rows, run, SFTSettings(**sizes))
    elif stage == "reward":
        # What is held out for the decision is left away, so that a step is a step.
        settings = RewardSettings(evaluations=1, holdout=0.01, **sizes)
        train_reward_model(backbone, rows[args.batch :], run, settings, rows[:1])
    elif stage == "kto":
        train_kto(backbone, rows, run, KTOSettings(evaluations=0, **sizes))
    else:
        train_direct(backbone, rows, run, stage, DirectSettings(evaluations=0, **sizes))


def run_trl(stage: str, args: argparse.Namespace, folder: str) -> None:
    """The stage by TRL's own trainer on a model of its own."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    kinds = {
        "sft": (trl.SFTTrainer, trl.SFTConfig),
        "reward": (trl.RewardTrainer, trl.RewardConfig),
        "dpo": (trl.DPOTrainer, trl.DPOConfig),
        "orpo": (ORPOTrainer, ORPOConfig),
        "kto": (trl.KTOTrainer, trl.KTOConfig),
    }
    trainer_class, config_class = kinds[stage]
    headed = stage == "reward"
    model, tokenizer, places = load_for_trl(args.base, headed=headed)
    tokenizer.chat_template = None
    config = config_class(
        output_dir=folder,
        max_steps=args.steps,
        per_device_train_batch_size=args.micro,
        gradient_accumulation_steps=args.batch // args.micro,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **places,
    )
    rows = rows_of(stage, tokenizer, args)
    trainer = trainer_class(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="SEQ_CLS" if headed else "CAUSAL_LM", **LORA),
    )
    train_in_compute_dtype(trainer)
    trainer.train()


def load_for_trl(base: str, *, headed: bool = False) -> tuple[Any, Any, Row]:
    """A model of TRL's own in 4 bit, its tokenizer, and the fields that say where it computes.

    Args:
        headed: with a scalar head, for a reward model.
    """
    import torch
    import transformers
    from transformers import AutoTokenizer, BitsAndBytesConfig

    from lorarlhf.backbone.devices import best_device, compute_dtype_for
    from lorarlhf.backbone.fetch import find_base

    path, device = find_base(base), best_device(4)
    dtype = compute_dtype_for(device)
    tokenizer = AutoTokenizer.from_pretrained(path)
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    kind = "AutoModelForSequenceClassification" if headed else "AutoModelForCausalLM"
    model = getattr(transformers, kind).from_pretrained(
        path,
        quantization_config=four_bit,
        dtype=dtype,
        device_map={"": device},
        **({"num_labels": 1} if headed else {}),
    )
    if headed:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer, {"bf16": dtype == torch.bfloat16, "use_cpu": device.type == "cpu"}


def train_in_compute_dtype(trainer: Any) -> None:
    """Put what a trainer of TRL trains into the dtype that it computes in.

    Beside a 4-bit base TRL casts it to bfloat16, which a CPU without bfloat16 has to emulate, and
    with which its reward trainer stops: states in float32 meet a head in bfloat16.
    """
    import torch

    if not trainer.args.bf16:
        for weight in trainer.model.parameters():
            if weight.requires_grad and weight.dtype == torch.bfloat16:
                weight.data = weight.data.float()


if __name__ == "__main__":
    main()
