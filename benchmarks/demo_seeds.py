"""The demo with several raters and seeds: win rates, KL, reward accuracy, time, memory of each.

    python benchmarks/demo_seeds.py --seeds 0 1 2 --out runs/seeds
    python benchmarks/demo_seeds.py --full
    python benchmarks/demo_seeds.py --raters cheerful brief plain --pairs 100 --out runs/hundred

Each of them runs `lorarlhf demo` in a process of its own, with the other options passed on. Runs
that are done are kept. `best_of_n.py --demos FOLDER` goes on from there.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from _memory import environment

from lorarlhf.rewards.raters import RATERS


def run_demo(rater: str, seed: int, args: argparse.Namespace, more: list[str]) -> dict:
    """Run one demo, if it is not done, and return its summary."""
    folder = args.out / f"{rater}-{seed}"
    if not (folder / "summary.json").exists():
        command = [sys.executable, "-m", "lorarlhf.cli", "demo", "--seed", str(seed)]
        command += ["--rater", rater, "--out", str(folder), *more]
        subprocess.run(command, check=True, env=environment(None, args.avx2))
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def row(summary: dict) -> list[str]:
    """One row of the table."""
    ppo, reward, rule = summary["ppo"], summary["reward_model"], summary["rule_score"]
    wins = (summary["win_rate"], summary["best_of_n"]["win_rate"])
    return [
        summary["rater"],
        str(summary["seed"]),
        *(f"{won['rate']:.1%} ({won['ci95'][0]:.0%} to {won['ci95'][1]:.0%})" for won in wins),
        f"{rule['before']:.2f} -> {rule['after']:.2f}",
        f"{ppo['kl_per_sequence']:.1f}",
        f"{ppo['mean_length_before']:.1f} -> {ppo['mean_length_after']:.1f}",
        f"{reward['heldout_accuracy']:.0%} of {reward['n']}",
        f"{ppo['seconds_per_update']:.1f}",
        f"{summary['seconds']['total'] / 60:.1f}",
        f"{summary['peak_rss_mb'] / 1000:.2f}",
    ]


def main() -> None:
    """Run the demos one after another and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--raters", nargs="+", default=["cheerful"], choices=sorted(RATERS))
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--pairs", type=int, help="votes of each, at most")
    parser.add_argument("--avx2", action="store_true", help="compute as a processor with AVX2 only")
    args, more = parser.parse_known_args()
    more += ["--pairs", str(args.pairs)] if args.pairs else []
    head = ["rater", "seed", "win rate (95%)", "best of 4", "rule's mean", "KL, nats", "tokens"]
    head += ["reward accuracy", "s/update", "minutes", "peak GB"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    print("\n".join(lines), flush=True)
    for rater in args.raters:
        for seed in args.seeds:
            print("| " + " | ".join(row(run_demo(rater, seed, args, more))) + " |", flush=True)


if __name__ == "__main__":
    main()
