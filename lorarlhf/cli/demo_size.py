"""How large the demo is, and how long it takes on this machine: measured in a few seconds."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.sampler import Sampler
from lorarlhf.runtime.files import read_json, write_json

BATCH_SIZE = 60  # answers sampled at a time
SAMPLES = 2  # answers a prompt, for the votes and for the comparison
BEST_OF = 4  # answers of the base to a held-out prompt, of which the reward role picks one
PROBED = 6  # tokens
FILE = "size.json"

# Seconds of the other steps, where sampling one token for each of 60 answers takes a second and an
# answer has 48 tokens. From runs on processors with and without bfloat16 (docs/benchmarks.md).
READING = 0.5  # one answer, for the reward role
UPDATE = 110  # one update of PPO


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
        answers = SAMPLES * (self.prompts + 2 * heldout) + BEST_OF * heldout
        sampling = answers / BATCH_SIZE * tokens
        read = (SAMPLES * (self.prompts + heldout) + BEST_OF * heldout) * READING
        return step * (sampling + (read + self.updates * UPDATE) * tokens / 48)


DEFAULT = Size(prompts=280, updates=16, minibatches=2, length=5 / 6)
FULL = Size(prompts=280, updates=24)
QUICK = Size(prompts=24, updates=2)


def time_notice(size: Size, step: float, longest: int, heldout: int) -> str:
    """How long the loop takes, for the user.

    Args:
        step, longest, heldout: see `Size.seconds`.
    """
    minutes = max(1, round(size.seconds(step, longest, heldout) / 60))
    answers = f"{size.prompts} prompts and {size.updates} updates of PPO"
    notice = f"With {answers} this takes about {minutes} minutes on this machine."
    if size != DEFAULT:
        return notice
    full = max(1, round(FULL.seconds(step, longest, heldout) / 60))
    return notice + f" With --full it takes about {full}."


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
    return FULL if (folder / "answers.jsonl").exists() else None


def write_size(folder: Path, size: Size) -> None:
    """Keep the size of a run, for `--resume`."""
    write_json(folder / FILE, asdict(size))
