"""bfloat16 and float32 on this processor: seconds of an update of PPO, and the peak of memory.

    OMP_NUM_THREADS=1 python benchmarks/compute_dtypes.py

The small base is tuned to answer briefly, by a function, in bfloat16 and in float32 in turn. The
first update is left out. All of them train both policy and value role.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from lorarlhf.data.readers import bundled
from lorarlhf.runtime.files import read_json, readable_rows

DTYPES = ("bfloat16", "float32")
PHASES = ("seconds", "seconds_rollout", "seconds_optimize")
REWARD = (
    "def short(completions, **kwargs):\n    return [-len(str(one)) / 50 for one in completions]\n"
)


def main() -> None:
    """Measure both in turn and print a Markdown table of medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="of both dtypes")
    parser.add_argument("--updates", type=int, default=2, help="measured in each round")
    parser.add_argument("--tokens", type=int, default=48, help="of the longest answer")
    args = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {dtype: [] for dtype in DTYPES}
    for _ in range(args.rounds):
        for dtype in DTYPES:
            found[dtype] += measured(dtype, args)
    print(
        "| dtype | an update, s | sampling, s | optimization, s | peak, GB |\n|---|---|---|---|---|"
    )
    for dtype, rows in found.items():
        times = (f"{median(row[phase] for row in rows):.1f}" for phase in PHASES)
        print(f"| {dtype} | {' | '.join(times)} | {max(row['peak'] for row in rows) / 1e3:.1f} |")


def measured(dtype: str, args: argparse.Namespace) -> list[dict[str, float]]:
    """The updates of one run, each with the peak of its process."""
    with TemporaryDirectory() as folder:
        reward = Path(folder) / "reward.py"
        reward.write_text(REWARD, encoding="utf-8")
        out = Path(folder) / "run"
        settings = {
            "compute_dtype": dtype,
            "updates": args.updates + 1,
            "max_new_tokens": args.tokens,
            "rollout_batch_size": 16,
            "critic_warmup": 0,
        }
        words = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        files = ["--prompts", str(bundled("prompts")), "--reward-function", f"{reward}:short"]
        command = [sys.executable, "-m", "lorarlhf.cli", "ppo", *files, "--out", str(out), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = [row for row in readable_rows(out / "metrics.jsonl") if "seconds" in row]
        peak = read_json(out / "run.json")["peak_rss_mb"]
    return [{phase: row[phase] for phase in PHASES} | {"peak": peak} for row in rows[1:]]


if __name__ == "__main__":
    main()
