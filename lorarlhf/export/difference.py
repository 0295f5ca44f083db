"""How far an export is from the original, from what both say at the same places.

A place is a token of an answer that the original gave, with all that stands before it. The
original's `TOP` likeliest tokens there are compared one by one, and all others as one.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

TOP = 256
"""How many of the likeliest tokens are compared one by one. They hold nearly all probability."""


@dataclass(frozen=True)
class Reading:
    """What a model says at n places.

    Attributes:
        best: its likeliest token, (n,).
        chosen: the log-probability of the answer's own token, (n,).
        top: the log-probabilities of the original's likeliest tokens, (n, TOP).
    """

    best: np.ndarray
    chosen: np.ndarray
    top: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> "Reading":
        """From the rows of `read_row`, one a sample."""
        return cls(
            np.concatenate([np.asarray(row["best"], np.int64) for row in rows]),
            np.concatenate([np.asarray(row["chosen"], np.float64) for row in rows]),
            np.concatenate([np.asarray(row["top"], np.float64) for row in rows]),
        )


@dataclass(frozen=True)
class Difference:
    """How far an export is from the original.

    Attributes:
        kl: from the original to the export, mean over the places, in nats a token.
        agreement: the share of places where the export's likeliest token is the original's.
        logprobs: the mean absolute difference of the log-probabilities of the answers' tokens.
        same_answers: how many greedy answers are the same from the first to the last token.
        places, answers: how many there were.
    """

    kl: float
    agreement: float
    logprobs: float
    same_answers: int
    places: int
    answers: int

    def as_json(self) -> dict[str, Any]:
        """For a file and for --json."""
        return asdict(self)

    def in_words(self) -> str:
        """One clause for a person."""
        return (
            f"KL {self.kl:.4f} nats a token, log-probabilities {self.logprobs:.4f} apart, the "
            f"likeliest token is the same at {self.agreement:.1%} of {self.places} places, "
            f"{self.same_answers} of {self.answers} answers are word for word the same"
        )


def read_row(
    logits: np.ndarray, answer: Sequence[int], top_ids: np.ndarray | None = None
) -> dict[str, Any]:
    """What a model says along one answer of A tokens.

    Args:
        logits: before each of its tokens, (A, V).
        top_ids: the original's likeliest tokens, (A, TOP); None: this is the original, and its own
            are returned as `top_ids`.
    """
    scores = np.asarray(logits, np.float64)
    highest = scores.max(axis=1, keepdims=True)
    logprobs = scores - highest - np.log(np.exp(scores - highest).sum(axis=1, keepdims=True))
    row: dict[str, Any] = {}
    if top_ids is None:
        count = min(TOP, logprobs.shape[1])
        top_ids = np.argpartition(-logprobs, count - 1, axis=1)[:, :count]
        row["top_ids"] = top_ids.tolist()
    places = np.arange(len(logprobs))
    return row | {
        "best": logprobs.argmax(axis=1).tolist(),
        "chosen": logprobs[places, np.asarray(answer)].tolist(),
        "top": np.take_along_axis(logprobs, np.asarray(top_ids), axis=1).tolist(),
    }


def compare(original: Reading, other: Reading, lengths: Sequence[int]) -> Difference:
    """The difference of two readings at the same places.

    Args:
        lengths: tokens of each answer, in the order of the places.

    Returns:
        infinite or not a number where the other model's numbers are not finite.
    """
    same = original.best == other.best
    ends = np.cumsum(lengths)
    whole = [bool(same[end - n : end].all()) for end, n in zip(ends, lengths, strict=True)]
    return Difference(
        kl=float(kl_from_top(original.top, other.top).mean()),
        agreement=float(same.mean()),
        logprobs=float(np.abs(original.chosen - other.chosen).mean()),
        same_answers=sum(whole),
        places=len(same),
        answers=len(whole),
    )


def kl_from_top(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """KL(ours || theirs) at each place, from log-probabilities (n, K) of the same K tokens -> (n,).

    All tokens beside the K are one event, so this is a lower bound, and near where the K hold
    nearly all probability.
    """
    rest_ours = np.clip(1 - np.exp(ours).sum(axis=1), 1e-12, None)
    rest_theirs = np.clip(1 - np.exp(theirs).sum(axis=1), 1e-12, None)
    inside = (np.exp(ours) * (ours - theirs)).sum(axis=1)
    return inside + rest_ours * np.log(rest_ours / rest_theirs)
