"""A reward role on sets of preference pairs that a person names, for example public ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorarlhf.data.readers import as_conversation, as_text, read_preferences
from lorarlhf.evaluation.reward_report import Rate
from lorarlhf.evaluation.vote_causes import words_in
from lorarlhf.rewards.held_out import shares_right
from lorarlhf.runtime.terminal import progress_bar

if TYPE_CHECKING:  # it brings torch, which the report needs only for this
    from lorarlhf.backbone.base import Backbone

MOST = 1000
"""Pairs of a file that are scored, so that a public set of thousands takes minutes on a CPU."""


@dataclass(frozen=True)
class PairSet:
    """How a reward role orders the pairs of a file.

    Attributes:
        name: of the file.
        pairs: in the file.
        accuracy: of those scored, ties of the score counted half.
        longer: how often the answer with more words is the preferred one.
        shorter_chosen: the accuracy where the shorter one is.
    """

    name: str
    pairs: int
    accuracy: Rate
    longer: Rate
    shorter_chosen: Rate


def read_sets(files: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each file, read before the base is loaded. Raises `UserError`."""
    return {file: read_preferences(file) for file in files}


def measure_set(
    backbone: "Backbone", file: str, rows: Sequence[dict[str, Any]], plain: bool
) -> PairSet:
    """Score up to `MOST` of the rows, spread evenly, with the loaded reward role.

    Args:
        plain: prompts are texts as they are, without the chat template.
    """
    from lorarlhf.rewards.role import encode_answer, score_encoded

    taken = [rows[int(place)] for place in np.linspace(0, len(rows) - 1, min(len(rows), MOST))]
    asked: Callable[[Any], Any] = (lambda prompt: prompt) if plain else as_conversation
    texts = [(as_text(row["chosen"]), as_text(row["rejected"])) for row in taken]
    pooling = backbone.heads["reward"].pooling
    encoded = [
        encode_answer(backbone, asked(row["prompt"]), text, pooling)
        for row, pair in zip(taken, texts, strict=True)
        for text in pair
    ]
    title = f"scoring {Path(file).name}"
    with progress_bar(title, len(encoded)) as advance, backbone.dequantised():
        scores = np.array(score_encoded(backbone, encoded, progress=advance))
    right = shares_right(scores[::2] - scores[1::2])
    words = np.array([[words_in(text) for text in pair] for pair in texts], dtype=np.float64)
    longer = shares_right(words[:, 0] - words[:, 1])
    return PairSet(
        Path(file).name,
        len(rows),
        Rate.mean(right),
        Rate.mean(longer),
        Rate.mean(right[longer == 0]),
    )


def in_words(found: Sequence[PairSet]) -> list[str]:
    """A few lines for each set."""
    lines = []
    for one in found:
        part = "" if one.accuracy.of == one.pairs else f", {one.accuracy.of:,} of them scored"
        lines += ["", f"{one.name}: {one.pairs:,} pairs{part}"]
        lines.append(f"  in the right order    {_rate(one.accuracy)}")
        lines.append(f'  "the longer one"      {_rate(one.longer)}')
        if one.shorter_chosen.of:
            lines.append(f"  the shorter is better {_rate(one.shorter_chosen)}")
    return lines


def _rate(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.value:.0%} of {rate.of:,} ({low:.0%} to {high:.0%})"
