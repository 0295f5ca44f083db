"""Answers of the base to the bundled prompts, sampled once, and simulated votes on them.

Shared by the benchmarks of the reward head (`votes_to_accuracy.py`, `calibration.py`,
`ask_next.py`).
Sampling the answers takes 10 to 15 minutes on 2 free cores. They are kept with their features in
the cache folder.
"""

import itertools
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.base_cache import cache_folder
from lorarlhf.backbone.generation import generate
from lorarlhf.backbone.storage import fingerprint
from lorarlhf.data.readers import bundled, read_prompts
from lorarlhf.evaluation.win_rate import Z95
from lorarlhf.rewards.features import answer_features
from lorarlhf.rewards.raters import Answer, Rater
from lorarlhf.runtime.files import move

ANSWERS_PER_PROMPT = 4
HELD_OUT = 60
# Long enough for a second sentence, a list or an end in most answers.
MAX_NEW_TOKENS = 48
PAIRS = ((0, 1), (2, 3), (0, 2), (1, 3), (0, 3), (1, 2))
"""The first two share no answer; the others repeat answers."""


@dataclass
class Pool:
    """A answers to each of P prompts: the texts, and features (P, A, F) with two poolings."""

    prompts: list[Any]
    answers: list[list[Answer]]
    mean: np.ndarray
    last: np.ndarray


def bundled_prompts() -> list[Any]:
    """All bundled prompts as conversations: 280 for training and 60 held-out ones."""
    rows = [row for name in ("prompts", "prompts_heldout") for row in read_prompts(bundled(name))]
    return [[{"role": "user", "content": row["prompt"]}] for row in rows]


def sample_pool(
    backbone: Backbone, max_new_tokens: int, temperature: float, prompts: list[Any]
) -> Pool:
    """Sample answers and compute features, or read them from the cache."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    where = f"{fingerprint(backbone)}-{backbone.split}"
    name = f"votes-{where}-{len(prompts)}x{max_new_tokens}-t{temperature}"
    path = cache_folder() / "benchmarks" / f"{name}.safetensors"
    if path.is_file():
        with safe_open(str(path), framework="numpy") as file:
            note = json.loads(file.metadata()["answers"])
            if note["prompts"] == prompts:
                answers = [[Answer(*one) for one in row] for row in note["answers"]]
                return Pool(prompts, answers, file.get_tensor("mean"), file.get_tensor("last"))
    rows: list[list[Answer]] = [[] for _ in prompts]
    features: dict[str, list[np.ndarray]] = {"mean": [], "last": []}
    for seed in range(ANSWERS_PER_PROMPT):
        started = time.perf_counter()
        sampled = generate(
            backbone,
            prompts,
            role="base",
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            batch_size=64,
            seed=seed,
        )
        texts = [one.text for one in sampled]
        for pooling, kept in features.items():
            kept.append(answer_features(backbone, prompts, texts, pooling=pooling))
        for row, one in zip(rows, sampled, strict=True):
            row.append(Answer(one.text, one.ended, len(one.ids)))
        seconds = time.perf_counter() - started
        print(f"  {len(prompts)} answers of {max_new_tokens} tokens in {seconds:.0f} s", flush=True)
    stacked = {pooling: np.stack(kept, axis=1) for pooling, kept in features.items()}
    texts_of = [[[one.text, one.ended, one.tokens] for one in row] for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")  # another benchmark may be reading
    note = {"prompts": prompts, "answers": texts_of}
    save_file(stacked, str(scratch), metadata={"answers": json.dumps(note)})
    move(scratch, path)
    return Pool(prompts, rows, stacked["mean"], stacked["last"])


def split_prompts(count: int, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """The places of the prompts that are voted on, and of those held out, at random."""
    order = np.random.default_rng(seed).permutation(count).tolist()
    return order[held_out:], order[:held_out]


def collect_votes(
    pool: Pool, rater: Rater, prompts: list[int], wanted: int
) -> list[tuple[int, int, int]]:
    """Votes (prompt, chosen, rejected) without ties, one pair of every prompt at a time."""
    votes: list[tuple[int, int, int]] = []
    for a, b in PAIRS:
        for place in prompts:
            if len(votes) == wanted:
                return votes
            one, other = pool.answers[place][a], pool.answers[place][b]
            vote = rater.vote(pool.prompts[place], one, other)
            if vote:
                votes.append((place, a, b) if vote > 0 else (place, b, a))
    return votes


def held_out_pairs(
    scores: np.ndarray, prompts: list[int], width: float
) -> list[tuple[int, int, int]]:
    """All pairs (prompt, better, worse) whose true scores (P, A) differ by more than `width`."""
    return [
        (place, a, b) if scores[place, a] > scores[place, b] else (place, b, a)
        for place in prompts
        for a, b in itertools.combinations(range(scores.shape[1]), 2)
        if abs(scores[place, a] - scores[place, b]) > width * (1 + 1e-9)
    ]


def pair_accuracy(scores: np.ndarray, pairs: list[tuple[int, int, int]]) -> float:
    """Share of pairs that the scores (P, A) order correctly; ties count half."""
    margins = np.array([scores[place, a] - scores[place, b] for place, a, b in pairs])
    return float(np.mean((margins > 0) + 0.5 * (margins == 0)))


def voted_features(
    features: np.ndarray, votes: list[tuple[int, int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """The features of the chosen and of the rejected answers, (P, A, F) -> two of (N, F)."""
    places, chosen, rejected = np.array(votes).T
    return features[places, chosen], features[places, rejected]


def mean_and_margin(values: Sequence[float]) -> tuple[float, float]:
    """The mean over seeds, and half of its 95% interval by Student's t; NaN for one seed.

    All seeds share the pool of answers, so the interval is about which prompts are held out, which
    pairs are voted on and which votes are wrong.
    """
    count = len(values)
    if count < 2:
        return float(np.mean(values)), math.nan
    spread = float(np.std(values, ddof=1)) / math.sqrt(count)
    return float(np.mean(values)), student_95(count - 1) * spread


def student_95(degrees: int) -> float:
    """The 97.5% point of Student's t, to 1% from 3 degrees of freedom on.

    Source: Abramowitz and Stegun 1964, 26.7.5, the first four terms.
    """
    z, n = Z95, degrees
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3
