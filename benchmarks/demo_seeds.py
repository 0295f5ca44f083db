"""The demo with several seeds: win rate, KL, length, reward accuracy, time and memory of each.

    .venv/bin/python benchmarks/demo_seeds.py --seeds 0 1 2 --out runs/seeds
    .venv/bin/python benchmarks/demo_seeds.py --full

Each seed runs `lorarlhf demo` in a process of its own.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from _memory import environment


def run_seed(seed: int, args: argparse.Namespace, more: list[str]) -> dict:
    """Run one demo and return its summary."""
    folder = args.out / f"seed{seed}"
    command = [sys.executable, "-m", "lorarlhf.cli", "demo", "--seed", str(seed)]
    command += ["--out", str(folder), *more]
    subprocess.run(command, check=True, env=environment(None, args.avx2))
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def row(summary: dict) -> list[str]:
    """One row of the table."""
    won, ppo = summary["win_rate"], summary["ppo"]
    reward, rule = summary["reward_model"], summary["rule_score"]
    return [
        str(summary["seed"]),
        f"{won['rate']:.1%} ({won['ci95'][0]:.0%} to {won['ci95'][1]:.0%})",
        f"{rule['before']:.2f} -> {rule['after']:.2f}",
        f"{ppo['kl_per_sequence']:.1f}",
        f"{ppo['mean_length_before']:.1f} -> {ppo['mean_length_after']:.1f}",
        f"{reward['heldout_accuracy']:.0%} of {reward['n']}",
        f"{ppo['seconds_per_update']:.1f}",
        f"{summary['seconds']['total'] / 60:.1f}",
        f"{summary['peak_rss_mb'] / 1000:.2f}",
    ]


def main() -> None:
    """Run the seeds one after another and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--avx2", action="store_true", help="compute as a processor with AVX2 only")
    args, more = parser.parse_known_args()
    head = ["seed", "win rate (95%)", "rule's mean", "KL, nats", "tokens", "reward accuracy"]
    head += ["s/update", "minutes", "peak GB"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for seed in args.seeds:
        lines.append("| " + " | ".join(row(run_seed(seed, args, more))) + " |")
        print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
