"""Runs doctor, the quick demo and every stage, and writes a report with the peaks of memory.

    .venv/bin/python benchmarks/on_gpu.py --preset 12gb-7b
    .venv/bin/python benchmarks/on_gpu.py --everything        # all presets of this card's size,
                                                             # ppo_vs_trl.py and ppo_limits.py
    .venv/bin/python benchmarks/on_gpu.py --device cpu        # to test this script

`on_gpu.sh` installs lorarlhf and starts this script. If a stage fails, the report says so, and the
other stages still run. With --preset or --everything on a card of the preset's size, the measured
peaks are saved in recipes/presets/measured.json, and the table of presets is updated.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import presets
from _memory import environment

from lorarlhf.backbone.memory_plan import Plan

HERE = Path(__file__).parent
NEAR = 0.1  # largest relative difference from a card's nominal size
LAST_LINES = 12  # of a failed step's output, for the report
GB = 1e9


def main() -> None:
    """Run the steps, then write and print the report. Exits with 1 if a step failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", help="for example 12gb-7b (default: the small base)")
    parser.add_argument("--everything", action="store_true", help="takes hours; see above")
    parser.add_argument("--base", default="smollm2-135m", help="used without --preset")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("runs/on_gpu"))
    args = parser.parse_args()
    env = environment(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    named = [args.preset]  # None: the small base
    if args.everything:
        named = [None, *(path.stem for path in sorted(presets.FOLDER.glob("*.yaml")))]
        named = [name for name in named if name is None or is_such_a_card(name)]
    plans = {name: what_to_run(name, args.base) for name in named}
    demo = ["demo", "--quick", "--base", args.base, "--out", str(args.out / "demo")]
    steps = [
        step("doctor", lorarlhf("doctor"), args.out, env),
        step("demo", lorarlhf(*demo), args.out, env),
    ]
    for name, (base, stages) in plans.items():
        rows = [measured(base, plan, args, env, name or "") for plan in stages.values()]
        if name is not None and args.device == "cuda" and is_such_a_card(name):
            keep(name, rows)
        steps += rows
    if args.everything:
        steps += [step(name, command, args.out, env) for name, command in comparisons(args)]
    report = as_text(", ".join(base for base, _ in plans.values()), steps)
    (args.out / "report.md").write_text(report, encoding="utf-8")
    print(report)
    sys.exit(1 if any(row["failed"] for row in steps) else 0)


def comparisons(args: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """The commands of PPO's benchmarks. Each writes its figures to a file."""
    limits = ("growth", "ceiling", "adapter", "profile")
    words = {"ppo_vs_trl": ["--device", args.device], "ppo_limits": [f"--{x}" for x in limits]}
    return [
        (name, [sys.executable, str(HERE / f"{name}.py"), *own, "--out", f"{args.out}/{name}.json"])
        for name, own in words.items()
    ]


def what_to_run(preset: str | None, base: str) -> tuple[str, dict[str, Plan]]:
    """The base and a plan for each stage."""
    if preset is None:
        short = {"micro_batch_size": 4, "prompt_tokens": 64, "answer_tokens": 64}
        return base, {stage: Plan(stage, **short) for stage in presets.STAGES}
    card, _, name = preset.partition("gb-")
    if not card.isdecimal() or name not in presets.BASES:
        raise SystemExit(f"There is no preset {preset}. Choose one from recipes/presets.")
    base, shape = presets.BASES[name]
    return base, presets.plans_for(shape, int(card))


def lorarlhf(*words: str) -> list[str]:
    """A lorarlhf command of this environment."""
    return [sys.executable, "-m", "lorarlhf.cli", *words]


def step(name: str, command: list[str], out: Path, env: dict[str, str]) -> dict[str, Any]:
    """Run one command with its output in a log file. Returns the step's row of the report."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    started, log = time.perf_counter(), out / f"{name.replace(' ', '-')}.log"
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=env)
    said = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return {
        "name": name,
        "failed": done.returncode != 0,
        "seconds": round(time.perf_counter() - started),
        "said": said if name == "doctor" else said[-LAST_LINES:],
    }


def measured(
    base: str, plan: Plan, args: argparse.Namespace, env: dict[str, str], preset: str = ""
) -> dict[str, Any]:
    """Measure one stage's peak with stage_memory.py."""
    name = f"{preset} {plan.stage}".strip()
    found = args.out / f"{name.replace(' ', '-')}.json"
    found.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "stage_memory.py"), "--base", base, "--out", str(found)]
    command += ["--stages", plan.stage, "--micro", str(plan.micro_batch_size)]
    command += ["--prompt-tokens", str(plan.prompt_tokens)]
    command += ["--answer-tokens", str(plan.answer_tokens), "--device", args.device]
    command += ["--adapter-layers", str(plan.adapter_layers or "upper-half")]
    command += ["--gradient-checkpointing"] * bool(plan.gradient_checkpointing)
    command += ["--rollout", str(plan.rollout_batch_size)] + ["--reference"] * plan.reference
    row = step(name, command, args.out, env) | {"stage": plan.stage}
    if found.exists():
        (figures,) = json.loads(found.read_text(encoding="utf-8"))
        row["measured"] = (figures["interpreter_mb"] + figures["peak_mb"]) * 1e6
        row |= {"computed": figures["estimate_mb"] * 1e6, "off": figures["off"]}
    return row


def as_text(base: str, steps: list[dict[str, Any]]) -> str:
    """The report: a table, and the output to paste into a bug report."""
    lines = [f"{base}: peaks in GB (10^9 bytes), including the card's context", ""]
    lines += ["| step | computed | measured | off | seconds |", "|---|---|---|---|---|"]
    for row in steps:
        cells = [
            f"{row[name] / GB:.2f}" if name in row else "" for name in ("computed", "measured")
        ]
        state = "FAILED" if row["failed"] else row.get("off", "")
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {state} | {row['seconds']} |")
    shown = [row for row in steps if row["failed"] or row["name"] == "doctor"]
    lines += ["", "For a bug report, paste everything from the table to the end:", "", "```"]
    for row in shown:
        lines += [f"--- {row['name']}", *row["said"]]
    return "\n".join([*lines, "```", ""])


def is_such_a_card(preset: str) -> bool:
    """Whether this machine's card has the preset's size. The peaks of other cards may differ."""
    import torch

    if not torch.cuda.is_available():
        return False
    size = int(preset.partition("gb-")[0]) * 2**30
    return abs(torch.cuda.mem_get_info(0)[1] / size - 1) < NEAR


def keep(preset: str, steps: list[dict[str, Any]]) -> None:
    """Add the measured peaks to the presets' table."""
    path = presets.FOLDER / "measured.json"
    whole = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found = {r["stage"]: round(r["measured"] / GB, 2) for r in steps if "measured" in r}
    whole[preset] = whole.get(preset, {}) | found
    path.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    presets.write(presets.files())


if __name__ == "__main__":
    main()
