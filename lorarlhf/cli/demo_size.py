"""How large the demo is: the machine's speed is measured, and the loop chosen that ends in time."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import generate_ids
from lorarlhf.runtime.files import read_json, write_json

BATCH_SIZE = 60  # answers sampled at a time
SAMPLES = 2  # answers a prompt, for the votes and for the comparison
LONGEST_MINUTES = 12
PROBED = 6  # tokens
FILE = "size.json"

# What the other steps take, in steps of sampling 60 answers with 48 tokens. Measured by
# benchmarks/demo_seeds.py on processors with and without bfloat16; what it was is in
# docs/benchmarks.md.
READING = 0.7  # an answer, for the reward role
UPDATE = 98  # of PPO


@dataclass(frozen=True)
class Size:
    """How many prompts are answered and voted on, and how many updates PPO makes."""

    prompts: int
    updates: int

    def seconds(self, step: float, tokens: int, heldout: int) -> float:
        """How long the loop takes.

        Args:
            step: seconds for one token of 60 answers.
            tokens: length of an answer.
            heldout: prompts for the comparison, which base and policy answer.
        """
        answers = SAMPLES * (self.prompts + 2 * heldout)
        sampling = answers / BATCH_SIZE * tokens
        read = SAMPLES * (self.prompts + heldout) * READING
        return step * (sampling + (read + self.updates * UPDATE) * tokens / 48)


WHOLE = Size(prompts=280, updates=24)
SMALL = Size(prompts=200, updates=12)
QUICK = Size(prompts=24, updates=2)


def choose_size(
    backbone: Backbone,
    prompts: list[list[int]],
    tokens: int,
    heldout: int,
    full: bool,
    log: Callable[[str], None],
) -> Size:
    """The whole loop if it ends within `LONGEST_MINUTES` here or is asked for, else a smaller one.

    Args:
        prompts: token ids of some prompts, for the measurement.
        tokens, heldout: see `Size.seconds`.
    """
    step = seconds_per_step(backbone, prompts)
    whole, small = (size.seconds(step, tokens, heldout) / 60 for size in (WHOLE, SMALL))
    if full or whole <= LONGEST_MINUTES:
        log(f"The whole loop takes about {whole:.0f} minutes on this machine.")
        return WHOLE
    log(
        f"The loop takes about {small:.0f} minutes on this machine, with {SMALL.prompts} prompts "
        f"and {SMALL.updates} updates of PPO. With --full it has {WHOLE.prompts} and "
        f"{WHOLE.updates}, and takes about {whole:.0f}."
    )
    return SMALL


def seconds_per_step(backbone: Backbone, prompts: list[list[int]]) -> float:
    """Seconds in which the base samples one more token for each of 60 answers."""
    batch = (prompts * BATCH_SIZE)[:BATCH_SIZE]
    spent = []
    with backbone.role("base"), backbone.dequantised():
        for tokens in (1, 1 + PROBED):  # the prompts are run in both
            started = time.perf_counter()
            generate_ids(backbone, batch, max_new_tokens=tokens)
            spent.append(time.perf_counter() - started)
    return max(spent[1] - spent[0], 1e-3) / PROBED


def read_size(folder: Path) -> Size | None:
    """The size of a run that is resumed; None for a new one."""
    found = read_json(folder / FILE)
    if found:
        return Size(**found)
    # A run of an earlier version, which knew one size.
    return WHOLE if (folder / "answers.jsonl").exists() else None


def write_size(folder: Path, size: Size) -> None:
    """Keep the size of a run, for `--resume`."""
    write_json(folder / FILE, asdict(size))
