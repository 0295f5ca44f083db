"""PPO beside another process that computes: seconds an update by how waiting threads behave.

    .venv/bin/python benchmarks/busy_machine.py
    .venv/bin/python benchmarks/busy_machine.py --avx2 --rounds 1

The other process keeps one core busy without a break. Between two parallel steps OpenMP's threads
spin, and a thread that spins takes the core from one that computes. Each row is one setting of the
environment, in turn: alone, and beside the other process. A figure is the median of the updates of
all rounds, without each round's first one.
"""

import argparse
import json
import os
import subprocess
import sys
from statistics import median

from _memory import environment

SETTINGS: dict[str, dict[str, str]] = {
    "GOMP_SPINCOUNT=300000, OpenMP's own": {"GOMP_SPINCOUNT": "300000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000, as lorarlhf sets it": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread less": {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) - 1))},
}
BUSY = "while True: pass"


def main() -> None:
    """Measure every setting in turn, round after round, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--updates", type=int, default=3, help="in a round, after a first one")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--avx2", action="store_true", help="compute as a processor with AVX2 only")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(updates(args.updates)))
        return
    found: dict[tuple[str, bool], list[float]] = {}
    for _ in range(args.rounds):
        for name in args.settings:
            for busy in (False, True):
                found.setdefault((name, busy), []).extend(in_a_process(name, busy, args))
                print(name, busy, found[name, busy], file=sys.stderr, flush=True)
    print("| | alone, s | beside another process, s |\n|---|---|---|")
    for name in args.settings:
        print(f"| {name} | {median(found[name, False]):.1f} | {median(found[name, True]):.1f} |")


def in_a_process(name: str, busy: bool, args: argparse.Namespace) -> list[float]:
    """Seconds of the updates of one round."""
    command = [sys.executable, __file__, "--one", "--updates", str(args.updates)]
    env = environment("cpu", args.avx2)
    for variable in {key for setting in SETTINGS.values() for key in setting}:
        env.pop(variable, None)
    other = subprocess.Popen([sys.executable, "-c", BUSY]) if busy else None
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=env | SETTINGS[name]
        )
    finally:
        if other is not None:
            other.kill()
            other.wait()
    return json.loads(done.stdout.splitlines()[-1])


def updates(count: int) -> list[float]:
    """Seconds of so many updates of 16 prompts and 32 tokens, after a first one."""
    from ppo_limits import make_trainer

    trainer, folder = make_trainer(32, 16, "upper-half")
    with folder:
        return [trainer.update()["seconds"] for _ in range(count + 1)][1:]


if __name__ == "__main__":
    main()
