"""Seconds from the start of Python to the end of `lorarlhf --help` and of `import lorarlhf`.

    .venv/bin/python benchmarks/start_time.py

Medians of nine starts each, in turn, and a bare start of Python beside them.
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
    """Run them in turn and print JSON."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, words in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - started)
    print(json.dumps({name: round(median(times), 3) for name, times in seconds.items()}, indent=2))


if __name__ == "__main__":
    main()
