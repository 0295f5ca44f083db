"""What `eval` compares: the answers of each candidate to the same prompts, and their figures."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from lorarlhf.rewards.raters import Answer

BASE = "base"


@dataclass(frozen=True)
class Candidate:
    """A model's answers to the held-out prompts, n in the order of the questions.

    Attributes:
        name: `base`, `best of 4`, or the name of a run.
        answers: n answers with their lengths in tokens, the stop token included.
        ids: the token ids of each, the stop token included.
        kl: of each answer log p(answer) - log p_base(answer), in nats; empty if not measured.
        kl_bound: the most nats that it can be away from the base, where that is known instead.
        run: its folder; "" for the base and for best of n.
        made_with: folders of reward runs and `FILE.py:NAME` functions that it was trained with or
            picked by; a judge among them is not independent.
    """

    name: str
    answers: list[Answer]
    ids: list[list[int]]
    kl: list[float] = field(default_factory=list)
    kl_bound: float | None = None
    run: str = ""
    made_with: tuple[str, ...] = ()

    @property
    def lengths(self) -> list[float]:
        """Tokens of each answer."""
        return [float(answer.tokens or 0) for answer in self.answers]

    def figures(self) -> dict[str, Any]:
        """The figures that need no judge.

        `kl` is the mean in nats per answer with its standard error `kl_se`, both None where it was
        not measured; `length` is in tokens; `ended` is the share that stopped before the limit;
        `distinct_n` are without the stop token, which says nothing about repetition.
        """
        known = len(self.kl) > 0
        pairs = zip(self.ids, self.answers, strict=True)
        words = [ids[:-1] if answer.ended else ids for ids, answer in pairs]
        error = stdev(self.kl) / math.sqrt(len(self.kl)) if len(self.kl) > 1 else None
        return {
            "name": self.name,
            "run": self.run,
            "kl": fmean(self.kl) if known else None,
            "kl_se": error,
            "kl_bound": self.kl_bound,
            "length": fmean(self.lengths),
            "ended": fmean(float(answer.ended) for answer in self.answers),
            "distinct_1": distinct(words, 1),
            "distinct_2": distinct(words, 2),
        }


def repetition(tokens: Sequence[Hashable], n: int = 4) -> float:
    """seq-rep-n of one text: the share of its n-grams that stand in it before.

    0 for a text of fewer than n + 1 tokens. Source: arXiv 1908.04319.
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(texts: Sequence[Sequence[Hashable]], n: int) -> float | None:
    """distinct-n: different n-grams in all texts, divided by the number of tokens in them.

    Low values mean that a model repeats itself, within an answer or from one to the next. The
    figure falls with the amount of text, so compare it only at similar lengths. Source: Li et al.
    2016 (arXiv 1510.03055), section 5. None if there are no tokens.
    """
    total = sum(map(len, texts))
    found = {tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)}
    return len(found) / total if total else None
