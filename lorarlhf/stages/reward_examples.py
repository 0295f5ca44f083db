"""Held-out pairs that show what the reward role has learned, word by word, for the report."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lorarlhf.backbone.base import Backbone
from lorarlhf.evaluation.heat_map import WORDS
from lorarlhf.rewards.token_shares import token_shares, words_of
from lorarlhf.runtime.files import write_jsonl
from lorarlhf.stages.conversations import Row

SHOWN = 3
"""Pairs in the right order, and pairs in the wrong one."""


def clearest_pairs(scores: np.ndarray) -> list[int]:
    """The pairs with the largest differences: up to `SHOWN` in the right order, then in the wrong.

    Args:
        scores: (2N,) chosen, rejected, chosen, ...
    """
    margins = scores[::2] - scores[1::2]
    order = np.argsort(margins, kind="stable").tolist()
    right = [place for place in order[::-1] if margins[place] > 0][:SHOWN]
    return right + [place for place in order if margins[place] < 0][:SHOWN]


def write_examples(
    backbone: Backbone, rows: Sequence[Row], scores: np.ndarray, folder: Path
) -> None:
    """Write the clearest of the held-out pairs with what each word adds to their scores.

    Only of a `mean` head, whose shares are exact and take one forward for an answer.

    Args:
        rows: the held-out pairs, as `conversational` gives them.
        scores: (2N,) chosen, rejected, chosen, ...
    """
    if backbone.heads["reward"].pooling != "mean":
        return
    found = []
    with backbone.dequantised():
        for place in clearest_pairs(scores):
            row, answers = rows[place], {}
            for side in ("chosen", "rejected"):
                shares = token_shares(backbone, row["prompt"], row[side])
                answers[side] = {"score": shares.score, "words": words_of(shares)}
            right = bool(scores[2 * place] > scores[2 * place + 1])
            found.append({"prompt": row["prompt"], "right": right, **answers})
    write_jsonl(folder / WORDS, found)
