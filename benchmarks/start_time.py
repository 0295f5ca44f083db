"""Seconds that `lorarlhf --help` and `import lorarlhf` take, including the start of Python.

    .venv/bin/python benchmarks/start_time.py

Prints medians of nine starts each, taken in turn, and those of Python alone for comparison.
"""

import json
import subprocess
import sys
import time
from statistics import median

COMMANDS = {
    "python": ["-c", "pass"],
    "import lorarlhf": ["-c", "import lorarlhf"],
    "lorarlhf --help": ["-m", "lorarlhf.cli", "--help"],
}
ROUNDS = 9


def main() -> None:
    """Run the commands in turn and print JSON."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, words in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started)
    print(json.dumps({name: round(median(times), 3) for name, times in seconds.items()}, indent=2))


if __name__ == "__main__":
    main()
