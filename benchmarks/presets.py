"""Settings by card and base, computed by `lorarlhf.backbone.memory`: writes recipes/presets/.

    .venv/bin/python benchmarks/presets.py            # writes the files and their table
    .venv/bin/python benchmarks/presets.py --check    # only says whether they are up to date

For each card and base the longest rows and the largest micro-batch that fit are taken, with
adapters on the upper half of the layers where that is possible, else on a quarter. What has been
measured on a card (`measured.json`, filled by benchmarks/on_gpu.sh) stands beside it.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lorarlhf.backbone.memory import Plan, estimate
from lorarlhf.backbone.shape import Shape

FOLDER = Path(__file__).parents[1] / "recipes" / "presets"
CARDS = (8, 12, 16, 24)  # gigabytes of 2^30 bytes, as cards are sold
USABLE = 0.92  # of a card: the rest is the desktop's, the driver's and what stands in holes
GB = 1e9
LENGTHS = (1024, 512, 256)  # tokens of prompt and answer together, half of them each
MICRO = (8, 4, 2, 1)
STAGES = ("sft", "reward", "dpo", "orpo", "ppo")

# Sizes from the config.json of each base on the hub, all of them under the Apache licence.
BASES: dict[str, tuple[str, Shape]] = {
    "1.5b": ("Qwen/Qwen2.5-1.5B-Instruct", Shape(1536, 28, 12, 2, 128, 8960, 151936, tied=True)),
    "3b": ("HuggingFaceTB/SmolLM3-3B", Shape(2048, 36, 16, 4, 128, 11008, 128256, tied=True)),
    "8b": ("Qwen/Qwen3-8B", Shape(4096, 36, 32, 8, 128, 12288, 151936, tied=False)),
    "14b": ("Qwen/Qwen3-14B", Shape(5120, 40, 40, 8, 128, 17408, 151936, tied=False)),
    "32b": ("Qwen/Qwen3-32B", Shape(5120, 64, 64, 8, 128, 25600, 151936, tied=False)),
}


INTRODUCTION = """# Presets by card

Settings for a card and a base, for every stage: `lorarlhf sft --config recipes/presets/12gb-8b.yaml
--data FILE`, then `reward`, `ppo`, `dpo`, `orpo` with the same file. Any setting can be overridden
with `--set`. Where a base is missing for a card, no stage of it fits with 128 tokens a prompt and
128 an answer.

Computed by `python benchmarks/presets.py` from what `lorarlhf.backbone.memory` says of cards. The
columns give the expected peak in GB (10^9 bytes); those with * what was **measured** on such a card
by `benchmarks/on_gpu.sh`, and - where nobody has yet. Every run says what it expects before it
loads anything, and stops where that is more than is free.
""".splitlines()


def plan_for(stage: str, shape: Shape, upper: int, room: float) -> Plan | None:
    """The longest rows, then the largest micro-batch, that fit; without checkpointing first."""
    for length in LENGTHS:
        # TRL's stages recompute activations on a card anyway.
        for checkpointed in (False, True) if stage == "ppo" else (None,):
            for size in MICRO:
                plan = Plan(
                    stage,
                    adapter_layers=upper,
                    micro_batch_size=size,
                    prompt_tokens=length // 2,
                    answer_tokens=length // 2,
                    gradient_checkpointing=checkpointed,
                )
                if estimate(shape, plan)["total"] <= room:
                    return plan
    return None


def plans_for(shape: Shape, room: float) -> dict[str, Plan]:
    """A plan for each stage that fits, all with adapters on the same layers."""
    best: dict[str, Plan] = {}
    for upper in (shape.layers - shape.layers // 2, shape.layers // 4):
        found = {stage: plan_for(stage, shape, upper, room) for stage in STAGES}
        fits = {stage: plan for stage, plan in found.items() if plan is not None}
        if len(fits) > len(best):
            best = fits
    return best


def settings_of(plan: Plan) -> dict[str, Any]:
    """A plan as the settings of its stage."""
    own: dict[str, Any] = {"micro_batch_size": plan.micro_batch_size}
    if plan.stage == "ppo":
        own |= {"max_prompt_tokens": plan.prompt_tokens, "max_new_tokens": plan.answer_tokens}
        return own | {"gradient_checkpointing": bool(plan.gradient_checkpointing)}
    tokens = plan.prompt_tokens + plan.answer_tokens
    return own if plan.stage == "reward" else own | {"max_tokens": tokens}


def as_yaml(card: int, name: str, plans: dict[str, Plan]) -> str:
    """A settings file: what all stages share, then each stage's own."""
    base, shape = BASES[name]
    peaks = ", ".join(f"{s} {estimate(shape, p)['total'] / GB:.1f}" for s, p in plans.items())
    lines = [
        f"# {base} on a card with {card} GB. Computed by benchmarks/presets.py; what was measured",
        "# stands in README.md. Expected peaks in GB (10^9 bytes) with rows as long as given here:",
        f"# {peaks}.",
        f"# lorarlhf sft --config recipes/presets/{card}gb-{name}.yaml --data FILE",
        f"base: {base}",
        "bits: 4",
        f"adapter_layers: {next(iter(plans.values())).adapter_layers}",
    ]
    for stage, plan in plans.items():
        lines.append(f"{stage}:")
        lines += [f"  {key}: {json.dumps(value)}" for key, value in settings_of(plan).items()]
        if stage == "reward":  # reads rows of any length
            lines.append(f"  # for rows of up to {plan.prompt_tokens + plan.answer_tokens} tokens")
    if missing := [stage for stage in STAGES if stage not in plans]:
        lines.append(f"# Too large for this card: {', '.join(missing)}.")
    return "\n".join(lines) + "\n"


def table(presets: dict[tuple[int, str], dict[str, Plan]], measured: dict[str, Any]) -> str:
    """The README of the folder."""
    head = [
        "card",
        "base",
        "layers",
        *(f"{stage}{sort}" for stage in STAGES for sort in ("", " *")),
    ]
    lines = [*INTRODUCTION, "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (card, name), plans in presets.items():
        shape, found = BASES[name][1], measured.get(f"{card}gb-{name}", {})
        cells = [f"{card} GB", BASES[name][0], str(next(iter(plans.values())).adapter_layers)]
        for stage in STAGES:
            plan = plans.get(stage)
            cells.append(
                "too large" if plan is None else f"{estimate(shape, plan)['total'] / GB:.1f}"
            )
            cells.append(f"{found[stage]:.1f}" if stage in found else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def files() -> dict[str, str]:
    """Name and content of every file of the folder."""
    presets = {
        (card, name): plans
        for card in CARDS
        for name, (_, shape) in BASES.items()
        if (plans := plans_for(shape, USABLE * card * 2**30))
    }
    kept = FOLDER / "measured.json"
    measured = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    made = {f"{card}gb-{name}.yaml": as_yaml(card, name, p) for (card, name), p in presets.items()}
    return made | {"README.md": table(presets, measured)}


def main() -> None:
    """Write the folder, or with --check compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    args = parser.parse_args()
    made = files()
    if args.check:
        there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.[ym]*")}
        sys.exit(0 if there == made else "recipes/presets is not what benchmarks/presets.py writes")
    write(made)


def write(made: dict[str, str]) -> None:
    """The files, and no other settings beside them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in FOLDER.glob("*.yaml"):
        path.unlink()
    for name, content in made.items():
        (FOLDER / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
