"""Computes settings by card and base with `lorarlhf.backbone.memory`, and writes recipes/presets/.

    .venv/bin/python benchmarks/presets.py            # write the files and their table
    .venv/bin/python benchmarks/presets.py --check    # only check that they are up to date

For each card and base the script takes the longest rows and then the largest micro-batch that fit,
with adapters on the upper half of the layers if possible, and on a quarter otherwise. Peaks that
were measured on a card (`measured.json`, written by benchmarks/on_gpu.sh) are in the table too.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lorarlhf.backbone.memory import estimate
from lorarlhf.backbone.memory_plan import Plan
from lorarlhf.backbone.shape import Shape

FOLDER = Path(__file__).parents[1] / "recipes" / "presets"
CARDS = (8, 12, 16, 24)  # gigabytes of 2^30 bytes, as cards are sold
USABLE = 0.85  # share of a card; the rest is for desktop, driver and fragmentation
TIGHT = 0.92  # share that is taken where rows of that length do not fit otherwise
GB = 1e9
LENGTHS = {  # tokens of a prompt and its answer, half for each, and what they are enough for
    1024: "chat answers of a page",
    512: "short answers",
}
MICRO = (8, 4, 2, 1)  # TRL's stages take 8 rows in a step
MICRO_PPO = (32, 16, *MICRO)
ROLLOUT = 64  # prompts in an update of PPO
SMALLEST = {"kto": 2}  # its loss compares the answers of a forward
STAGES = ("sft", "reward", "dpo", "orpo", "kto", "ppo")

# Sizes from each base's config.json on the hub. All of them have the Apache licence.
# None of them thinks before it answers (SmolLM3 does not as it is loaded here).
BASES: dict[str, tuple[str, Shape]] = {
    "1.5b": ("Qwen/Qwen2.5-1.5B-Instruct", Shape(1536, 28, 12, 2, 128, 8960, 151936, tied=True)),
    "3b": ("HuggingFaceTB/SmolLM3-3B", Shape(2048, 36, 16, 4, 128, 11008, 128256, tied=True)),
    "4b": ("Qwen/Qwen3-4B-Instruct-2507", Shape(2560, 36, 32, 8, 128, 9728, 151936, tied=True)),
    "7b": ("Qwen/Qwen2.5-7B-Instruct", Shape(3584, 28, 28, 4, 128, 18944, 152064, tied=False)),
    "14b": ("Qwen/Qwen2.5-14B-Instruct", Shape(5120, 48, 40, 8, 128, 13824, 152064, tied=False)),
    "32b": ("Qwen/Qwen2.5-32B-Instruct", Shape(5120, 64, 40, 8, 128, 27648, 152064, tied=False)),
}


INTRODUCTION = """# Presets by card

Each file has the settings of every stage for one card and one base. Use the same file for all
stages: `lorarlhf sft --config recipes/presets/12gb-7b.yaml --data FILE`, then `reward`, `ppo`,
`dpo`, `orpo` or `kto`. `--set` overrides a setting. If a base is missing for a card, none of its
stages fits with prompts of 256 tokens and answers of 256.

`python benchmarks/presets.py` computes the settings with `lorarlhf.backbone.memory`. The columns
give the expected peak in GB (10^9 bytes). Columns with * give the peak that `benchmarks/on_gpu.sh`
**measured** on such a card; a - means that it has not been measured. *tight* says that the largest
stage takes more than 85% of the card: close the browser, or use a smaller base. PPO's prompts and
answers have half of the tokens each. Every run prints its expected peak before it loads anything,
and stops if that is more than is free.
""".splitlines()


def plan_for(stage: str, shape: Shape, upper: int, card: int) -> Plan | None:
    """The longest rows that fit, then the largest micro-batch; checkpointing only if needed.

    Args:
        card: gigabytes of 2^30 bytes.
    """
    for length in LENGTHS:
        for share in (USABLE, TIGHT):
            # TRL's stages recompute activations on a card by default.
            for checkpointed in (False, True) if stage == "ppo" else (None,):
                for micro in MICRO_PPO if stage == "ppo" else MICRO:
                    if micro < SMALLEST.get(stage, 1):
                        continue
                    plan = Plan(
                        stage,
                        adapter_layers=upper,
                        micro_batch_size=micro,
                        rollout_batch_size=ROLLOUT,
                        prompt_tokens=length // 2,
                        answer_tokens=length // 2,
                        gradient_checkpointing=checkpointed,
                    )
                    if estimate(shape, plan)["total"] <= share * card * 2**30:
                        return plan
    return None


def plans_for(shape: Shape, card: int) -> dict[str, Plan]:
    """A plan for each stage that fits, with adapters on the same layers in all of them."""
    best: dict[str, Plan] = {}
    for upper in (shape.layers - shape.layers // 2, shape.layers // 4):
        found = {stage: plan_for(stage, shape, upper, card) for stage in STAGES}
        fits = {stage: plan for stage, plan in found.items() if plan is not None}
        if len(fits) > len(best):
            best = fits
    return best


def settings_of(plan: Plan) -> dict[str, Any]:
    """The settings of a stage for this plan."""
    own: dict[str, Any] = {"micro_batch_size": plan.micro_batch_size}
    if plan.stage == "ppo":
        own |= {"rollout_batch_size": plan.rollout_batch_size}
        own |= {"max_prompt_tokens": plan.prompt_tokens, "max_new_tokens": plan.answer_tokens}
        return own | {"gradient_checkpointing": bool(plan.gradient_checkpointing)}
    tokens = plan.prompt_tokens + plan.answer_tokens
    return own if plan.stage == "reward" else own | {"max_tokens": tokens}


def as_yaml(card: int, name: str, plans: dict[str, Plan]) -> str:
    """A settings file: the shared settings, then those of each stage."""
    base, shape = BASES[name]
    peaks = ", ".join(f"{s} {estimate(shape, p)['total'] / GB:.1f}" for s, p in plans.items())
    lines = [
        f"# {base} on a card with {card} GB. Computed by benchmarks/presets.py; README.md has the",
        "# measured peaks. Expected peaks in GB (10^9 bytes) with rows of the lengths given here:",
        f"# {peaks}.",
        f"# lorarlhf sft --config recipes/presets/{card}gb-{name}.yaml --data FILE",
        f"base: {base}",
        "bits: 4",
        f"adapter_layers: {next(iter(plans.values())).adapter_layers}",
    ]
    for stage, plan in plans.items():
        lines.append(f"{stage}:")
        lines += [f"  {key}: {json.dumps(value)}" for key, value in settings_of(plan).items()]
        if stage == "reward":  # it has no setting for the length
            lines.append(f"  # for rows of up to {plan.prompt_tokens + plan.answer_tokens} tokens")
    if missing := [stage for stage in STAGES if stage not in plans]:
        lines.append(f"# Too large for this card: {', '.join(missing)}.")
    return "\n".join(lines) + "\n"


def purpose(card: int, shape: Shape, plans: dict[str, Plan]) -> str:
    """What the rows are long enough for, and whether the card is nearly full."""
    parts = []
    for length, words in LENGTHS.items():
        stages = [s for s, p in plans.items() if p.prompt_tokens + p.answer_tokens == length]
        if stages:
            parts.append(words if len(stages) == len(plans) else f"{words}: {', '.join(stages)}")
    parts += [f"no {stage}" for stage in STAGES if stage not in plans]
    most = max(estimate(shape, plan)["total"] for plan in plans.values())
    return "; ".join(parts) + (" (*tight*)" if most > USABLE * card * 2**30 else "")


def table(presets: dict[tuple[int, str], dict[str, Plan]], measured: dict[str, Any]) -> str:
    """The README of the folder, with the table."""
    head = [
        "card",
        "base",
        "for",
        "layers",
        *(f"{stage}{sort}" for stage in STAGES for sort in ("", " *")),
    ]
    lines = [*INTRODUCTION, "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (card, name), plans in presets.items():
        shape, found = BASES[name][1], measured.get(f"{card}gb-{name}", {})
        layers = next(iter(plans.values())).adapter_layers
        cells = [f"{card} GB", BASES[name][0], purpose(card, shape, plans), str(layers)]
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
        if (plans := plans_for(shape, card))
    }
    kept = FOLDER / "measured.json"
    measured = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    made = {f"{card}gb-{name}.yaml": as_yaml(card, name, p) for (card, name), p in presets.items()}
    return made | {"README.md": table(presets, measured)}


def main() -> None:
    """Write the folder, or compare it with --check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare, change nothing")
    args = parser.parse_args()
    made = files()
    if args.check:
        there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.[ym]*")}
        sys.exit(
            0 if there == made else "recipes/presets differs from what benchmarks/presets.py writes"
        )
    write(made)


def write(made: dict[str, str]) -> None:
    """Write the files and remove all other settings files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in FOLDER.glob("*.yaml"):
        path.unlink()
    for name, content in made.items():
        (FOLDER / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
