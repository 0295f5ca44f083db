"""Simulated raters: a rule, a noise rate and a seed in place of a person.

With them all stages can be measured without anybody voting. A rater's rule *without noise* is the
ground truth that a reward role should find and that held-out answers are judged by. Its *votes*
follow the rule, with some of them flipped, as by a person in a hurry.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lorarlhf.runtime.errors import UserError

if TYPE_CHECKING:  # it brings torch, and the pages use raters without it
    from lorarlhf.backbone.generation import Completion

MAX_NOISE = 0.5
"""At 0.5 the votes carry no information; above it they would be the opposite of the rule."""

HALF_SCORE_WORDS = 20
"""`brief` gives half of its best score to an answer with this many words, which sets the scale."""

CUT_OFF_SCORE = 0.0
"""`brief`'s score of an answer that was cut off: below that of any answer that ended."""

EXCLAMATION_MARKS = ("!", "\uff01")
"""The marks that `plain` counts: the usual one and the full-width one of East Asian text."""

TIE_WIDTH: dict[str, float] = {
    # VADER's authors call a compound score within 0.05 of zero neutral, so a smaller difference
    # between two answers is below the resolution of the measure.
    "cheerful": 0.05,
    # Words are counted, so every difference is real.
    "brief": 0.0,
    # Marks are counted, so every difference is real.
    "plain": 0.0,
}


@dataclass(frozen=True)
class Answer:
    """An answer as a rater sees it.

    Attributes:
        text: The generated text, without special tokens.
        ended: The model stopped by itself; False means that it was cut off at the token limit.
        tokens: Number of tokens, if known. No rule uses it.
    """

    text: str
    ended: bool = True
    tokens: int | None = None

    @classmethod
    def of(cls, completion: "Completion") -> "Answer":
        """The answer that a model generated."""
        return cls(completion.text, completion.ended, len(completion.ids))


@dataclass(frozen=True)
class Rule:
    """What a rater prefers.

    Attributes:
        name: Its name for `--rater`.
        sentence: The rule in one sentence for a newcomer.
        score: Pure function of an answer; higher is better, always finite.
        tie_width: Two answers tie if their scores differ by at most this (see `TIE_WIDTH`).
    """

    name: str
    sentence: str
    score: Callable[[Answer], float]
    tie_width: float


@lru_cache(maxsize=1)
def _sentiment_analyzer() -> Any:
    # Reading the lexicon is slow, so it is read once and only if the rule is used.
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def cheerful_score(answer: Answer) -> float:
    """VADER's compound sentiment of the text, -1 (gloomy) to 1 (cheerful), 0 for neutral text.

    Source: Hutto and Gilbert 2014, VADER; the `vaderSentiment` package with its own lexicon.
    """
    return float(_sentiment_analyzer().polarity_scores(answer.text)["compound"])


def brief_score(answer: Answer) -> float:
    """1 for no words, 1/2 for `HALF_SCORE_WORDS` words, towards 0 for many; 0 if cut off.

    The score is bounded, unlike minus the number of words: answers that were cut off need a lowest
    score that can still be trained on, below that of every answer that ended.
    """
    if not answer.ended:
        return CUT_OFF_SCORE
    return HALF_SCORE_WORDS / (HALF_SCORE_WORDS + len(answer.text.split()))


# A mark needs text after it: "42." alone is an answer and "---" a horizontal rule. Numbers have at
# most three digits, since a line may begin with the year that ended the sentence before.
_LIST_LINE = re.compile(r"^\s*(?:[-*+•‣◦]|\d{1,3}[.)])\s+\S")
_HEADING_LINE = re.compile(r"^\s*(?:#{1,6}\s+\S|\*\*[^*]+\*\*:?\s*$|__[^_]+__:?\s*$)")


def plain_score(answer: Answer) -> float:
    """Minus the number of list lines, heading lines and exclamation marks; 0 is the best.

    A list line begins with a bullet or a number; a heading line begins with # or is bold from
    end to end. Each line counts once, each exclamation mark once.
    """
    lines = answer.text.splitlines()
    marked = sum(bool(_LIST_LINE.match(line) or _HEADING_LINE.match(line)) for line in lines)
    exclamations = sum(answer.text.count(mark) for mark in EXCLAMATION_MARKS)
    return float(-(marked + exclamations))


RATERS: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            "cheerful",
            "Of two answers, the one with the friendlier, more cheerful words wins.",
            cheerful_score,
            TIE_WIDTH["cheerful"],
        ),
        Rule(
            "brief",
            "Of two answers, the one with fewer words wins, and an answer that stops by itself "
            "beats one that was cut off.",
            brief_score,
            TIE_WIDTH["brief"],
        ),
        Rule(
            "plain",
            "Of two answers, the one with fewer list lines, headings and exclamation marks wins.",
            plain_score,
            TIE_WIDTH["plain"],
        ),
    )
}


@dataclass(frozen=True)
class Rater:
    """A rule with a noise rate and a seed.

    Attributes:
        name: One of `RATERS`, or the name of `own_rule`.
        noise: Share of votes that are flipped, 0 to 0.5.
        seed: Which votes are flipped.
        own_rule: A rule that is not among `RATERS`.

    Raises:
        UserError: Unknown name, or noise outside 0 to 0.5.
    """

    name: str
    noise: float = 0.1
    seed: int = 0
    own_rule: Rule | None = None

    def __post_init__(self) -> None:
        if self.own_rule is None and self.name not in RATERS:
            raise UserError(_unknown_rater(self.name))
        # This form refuses NaN too.
        if not 0 <= self.noise <= MAX_NOISE:
            raise UserError(
                f"The noise of rater '{self.name}' is {self.noise}, but it is the share of votes "
                f"that are flipped: give a number from 0 (never) to {MAX_NOISE} (votes at random)."
            )

    @classmethod
    def named(cls, name: str, noise: float = 0.1, seed: int = 0) -> "Rater":
        """The rater of that name. Raises UserError for an unknown name or impossible noise."""
        return cls(name, noise, seed)

    @classmethod
    def of(cls, rule: Rule, noise: float = 0.1, seed: int = 0) -> "Rater":
        """A rater with a rule of one's own. Raises UserError for impossible noise."""
        return cls(rule.name, noise, seed, rule)

    @property
    def rule(self) -> Rule:
        return self.own_rule or RATERS[self.name]

    @property
    def sentence(self) -> str:
        """The rule in one sentence for a newcomer."""
        return self.rule.sentence

    def score(self, answer: Answer) -> float:
        """The rule's score of one answer, without noise; higher is better."""
        return self.rule.score(answer)

    def margin(self, a: Answer, b: Answer) -> float:
        """score(a) - score(b), without noise."""
        return self.score(a) - self.score(b)

    def is_near_tie(self, a: Answer, b: Answer) -> bool:
        """Whether the scores are so close that the rule gives a tie."""
        return self._judge_margin(self.margin(a, b)) == 0

    def judge(self, a: Answer, b: Answer) -> int:
        """Without noise: 1 if `a` is better, -1 if `b` is, 0 for a tie."""
        return self._judge_margin(self.margin(a, b))

    def vote(self, prompt: str | list[dict[str, Any]], a: Answer, b: Answer) -> int:
        """`judge`, flipped with probability `noise`; a tie stays a tie.

        The same question always gets the same vote, independent of earlier questions and of the
        order of the answers: `vote(p, b, a) == -vote(p, a, b)`.
        """
        judgement = self.judge(a, b)
        return -judgement if self._coin(prompt, a, b) < self.noise else judgement

    def _judge_margin(self, margin: float) -> int:
        # VADER rounds to four decimals, and 0.55 - 0.50 is slightly above 0.05 in binary.
        if abs(margin) <= self.rule.tie_width * (1 + 1e-9):
            return 0
        return 1 if margin > 0 else -1

    def _coin(self, prompt: str | list[dict[str, Any]], a: Answer, b: Answer) -> float:
        """A number in [0, 1) that depends only on the seed, the rule and the question."""
        question = [self.seed, self.name, prompt, sorted([a.text, b.text])]
        # JSON separates the parts and escapes what UTF-8 cannot encode.
        digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).digest()
        return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def vote_pairs(
    rater: Rater,
    prompts: Sequence[str],
    first: Sequence[Answer],
    second: Sequence[Answer],
    *,
    noise: bool = True,
) -> list[dict[str, str]]:
    """Rows `prompt`, `chosen`, `rejected` for all pairs that are not ties.

    Args:
        prompts, first, second: n each.
        noise: True for votes with the rater's noise, False for the rule.
    """
    rows = []
    for prompt, a, b in zip(prompts, first, second, strict=True):
        choice = rater.vote(prompt, a, b) if noise else rater.judge(a, b)
        if choice and a.text != b.text:
            chosen, rejected = (a, b) if choice > 0 else (b, a)
            rows.append({"prompt": prompt, "chosen": chosen.text, "rejected": rejected.text})
    return rows


def _unknown_rater(name: str) -> str:
    nearest = difflib.get_close_matches(name.lower(), RATERS, n=1, cutoff=0.5)
    guess = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return f"There is no rater named '{name}'.{guess} The raters are: {', '.join(RATERS)}."
