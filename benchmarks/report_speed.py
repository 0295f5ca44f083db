"""`lorarlhf report` on many votes: the seconds of the whole command, its start included.

    python benchmarks/report_speed.py
    python benchmarks/report_speed.py --votes 2000 50000

A project with votes of three raters, as in `insights_speed.py`, and a reward run that was fitted to
as many votes, of random features as wide as those of the small base (1,152) with its 20 axes.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from fit_speed import AXES, WIDTH
from insights_speed import fill

from lorarlhf.project.project import create
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf.runtime.run import Run
from lorarlhf_ui.hidden_states import HiddenStates

KINDS = ("raters", "tastes", "reward")


def main() -> None:
    """Print a Markdown table of seconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--votes", type=int, nargs="+", default=[200, 2000, 50_000])
    args = parser.parse_args()
    print(f"| votes | {' | '.join(f'report {kind}, s' for kind in KINDS)} |")
    print("|---|" + "---|" * len(KINDS))
    for count in args.votes:
        with TemporaryDirectory() as folder:
            project, run = made(Path(folder), count)
            places = {"raters": project, "tastes": run, "reward": run}
            row = " | ".join(f"{seconds(kind, places[kind]):.1f}" for kind in KINDS)
        print(f"| {count:,} | {row} |", flush=True)


def made(folder: Path, count: int) -> tuple[Path, Path]:
    """A project with so many votes, and a reward run on as many."""
    project = create(folder / "project")
    fill(project.store(), HiddenStates(folder / "states.sqlite"), count)
    rng = np.random.default_rng(0)
    truth = rng.normal(size=WIDTH)
    first, second = rng.normal(size=(2, count, WIDTH)).astype(np.float32)
    swapped = (first - second) @ truth < 0
    first[swapped], second[swapped] = second[swapped], first[swapped]
    votes = VoteFit(rng.normal(size=(AXES, WIDTH)))
    votes.add_all(first, second, [f"prompt {place // 4}" for place in range(count)])
    votes.fit()
    run = Run(folder / "run", "reward", {"seed": 0})
    votes.save(run.folder / "votes.safetensors")
    run.finish("done", {"heldout_accuracy": 0.75, "n": 100})
    return project.folder, run.folder


def seconds(kind: str, place: Path) -> float:
    """Of the whole command."""
    command = [sys.executable, "-m", "lorarlhf.cli", "report", kind, str(place)]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
