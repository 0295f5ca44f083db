"""How large the demo is: the machine's speed is measured, and the loop chosen that ends in time."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.sampler import Sampler
from lorarlhf.runtime.files import read_json, write_json

BATCH_SIZE = 60  # answers sampled at a time
SAMPLES = 2  # answers a prompt, for the votes and for the comparison
LONGEST_MINUTES = 12
PROBED = 6  # tokens
FILE = "size.json"

# Seconds of the other steps, where sampling one token for each of 60 answers takes a second and an
# answer has 48 tokens. From runs on processors with and without bfloat16 (docs/benchmarks.md).
READING = 0.7  # one answer, for the reward role
UPDATE = 96  # one update of PPO


@dataclass(frozen=True)
class Size:
    """How many prompts are answered and voted on, and how PPO trains.

    Attributes:
        updates: of PPO.
        minibatches: PPO's optimizer steps in each pass over a rollout. Two make as much progress in
            fewer updates, by steps that are noisier.
        length: of an answer, as a share of the rater's usual one.
    """

    prompts: int
    updates: int
    minibatches: int = 1
    length: float = 1.0

    def tokens(self, longest: int) -> int:
        """Tokens of an answer, where the rater's usual ones have `longest`."""
        return round(self.length * longest)

    def seconds(self, step: float, longest: int, heldout: int) -> float:
        """How long the loop takes.

        Args:
            step: seconds for one token of each of 60 answers.
            longest: tokens of an answer that the rater usually gets.
            heldout: prompts for the comparison, which base and policy answer.
        """
        tokens = self.tokens(longest)
        answers = SAMPLES * (self.prompts + 2 * heldout)
        sampling = answers / BATCH_SIZE * tokens
        read = SAMPLES * (self.prompts + heldout) * READING
        return step * (sampling + (read + self.updates * UPDATE) * tokens / 48)


WHOLE = Size(prompts=280, updates=24)
SMALL = Size(prompts=200, updates=13, minibatches=2, length=5 / 6)
QUICK = Size(prompts=24, updates=2)


def choose_size(
    step: float,
    longest: int,
    heldout: int,
    log: Callable[[str], None],
    *,
    full: bool = False,
    updates: int | None = None,
) -> Size:
    """The whole loop if it ends within `LONGEST_MINUTES` here or is asked for, else a smaller one.

    Args:
        step, longest, heldout: see `Size.seconds`.
        updates: of PPO, if they are given.
    """
    whole, small = (
        size if updates is None else replace(size, updates=updates) for size in (WHOLE, SMALL)
    )
    minutes = [size.seconds(step, longest, heldout) / 60 for size in (whole, small)]
    if full or minutes[0] <= LONGEST_MINUTES:
        log(f"The whole loop takes about {max(1, round(minutes[0]))} minutes on this machine.")
        return whole
    log(
        f"The loop takes about {round(minutes[1])} minutes on this machine, with {small.prompts} "
        f"prompts and {small.updates} updates of PPO. With --full it has {whole.prompts} and "
        f"{whole.updates}, and takes about {round(minutes[0])}."
    )
    return small


def seconds_per_step(backbone: Backbone, prompts: list[list[int]]) -> float:
    """Seconds in which the base samples one more token for each of 60 answers.

    Args:
        prompts: token ids of some prompts.
    """
    batch = (prompts * BATCH_SIZE)[:BATCH_SIZE]
    # Not `sampler_for`: on a card its first steps capture a graph.
    sampler = Sampler(
        backbone, batch, seeds=range(BATCH_SIZE), max_new_tokens=2 + PROBED, temperature=1.0
    )
    with backbone.role("base"), backbone.dequantised():
        for _ in range(2):  # the prompts, and a step that sets up the libraries
            sampler.step()
        started = time.perf_counter()
        for _ in range(PROBED):
            if sampler.done:
                break
            sampler.step()
        return (time.perf_counter() - started) / PROBED


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
