"""Simulated raters: a written rule, a noise rate and a seed in place of a person.

They let the whole loop be measured without anybody voting. A rater's *noiseless* rule is the
truth that a reward role should find and that held-out answers are judged by; its *votes* are that
rule with some of them flipped, as a person in a hurry would.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lorarlhf.runtime.errors import UserError

MAX_NOISE = 0.5
"""At a half the votes say nothing; above it they would say the opposite of the rule."""

HALF_SCORE_WORDS = 20
"""`brief` gives half its best score to an answer of this many words. It only sets the scale."""

CUT_OFF_SCORE = 0.0
"""`brief`'s score of every answer that did not end by itself: below that of any that did."""

EXCLAMATION_MARKS = ("!", "\uff01")
"""What `plain` counts: the usual one and the full-width one of East Asian text."""

TIE_WIDTH: dict[str, float] = {
    # VADER's authors call a compound score neutral within 0.05 of zero. Two answers that differ by
    # less than that differ by less than the measure claims to see.
    "cheerful": 0.05,
    # Whole words are counted, so any difference is a real one.
    "brief": 0.0,
    # Whole marks are counted, so any difference is a real one.
    "plain": 0.0,
}


@dataclass(frozen=True)
class Answer:
    """One answer as a rater sees it.

    Attributes:
        text: What the model wrote, without special tokens.
        ended: The model stopped by itself; False means that it was cut off at the token limit.
        tokens: Number of tokens, where known. No rule looks at it.
    """

    text: str
    ended: bool = True
    tokens: int | None = None


@dataclass(frozen=True)
class Rule:
    """What a rater likes.

    Attributes:
        name: The word by which `--rater` picks it.
        sentence: The rule in one sentence for a newcomer.
        score: Pure function of an answer, higher is better, always finite.
        tie_width: Two answers whose scores differ by no more than this tie (see `TIE_WIDTH`).
    """

    name: str
    sentence: str
    score: Callable[[Answer], float]
    tie_width: float


@lru_cache(maxsize=1)
def _sentiment_analyzer() -> Any:
    # Reading the lexicon takes longer than any vote: only when the rule is used, and once.
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def cheerful_score(answer: Answer) -> float:
    """VADER's compound sentiment of the text, -1 (gloomy) to 1 (cheerful), 0 for neutral text.

    Source: Hutto and Gilbert 2014, VADER; the `vaderSentiment` package with its own lexicon.
    """
    return float(_sentiment_analyzer().polarity_scores(answer.text)["compound"])


def brief_score(answer: Answer) -> float:
    """1 for no word, 1/2 at `HALF_SCORE_WORDS` words, towards 0 for many; 0 where cut off.

    A bounded score rather than minus the number of words: cut-off answers need a lowest score
    that can still be trained on, and every answer that ended has to lie above it.
    """
    if not answer.ended:
        return CUT_OFF_SCORE
    return HALF_SCORE_WORDS / (HALF_SCORE_WORDS + len(answer.text.split()))


# A mark needs text after it: "42." alone is an answer and "---" a rule across the page. Numbers
# stop at three digits because a line may begin with a sentence that ends in a year.
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
        name: One of `RATERS`.
        noise: Share of votes that are flipped, 0 to 0.5.
        seed: Which votes are flipped.

    Raises:
        UserError: Unknown name, or noise outside 0 to 0.5.
    """

    name: str
    noise: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in RATERS:
            raise UserError(_unknown_rater(self.name))
        # Written so that NaN is refused too.
        if not 0 <= self.noise <= MAX_NOISE:
            raise UserError(
                f"The noise of rater '{self.name}' is {self.noise}, but it is the share of votes "
                f"that are flipped: give a number from 0 (never) to {MAX_NOISE} (votes at random)."
            )

    @classmethod
    def named(cls, name: str, noise: float = 0.1, seed: int = 0) -> "Rater":
        """The rater of that name. Raises UserError for an unknown name or impossible noise."""
        return cls(name, noise, seed)

    @property
    def rule(self) -> Rule:
        return RATERS[self.name]

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
        """Whether the scores are too close for the rule to tell the answers apart."""
        return self._judge_margin(self.margin(a, b)) == 0

    def judge(self, a: Answer, b: Answer) -> int:
        """Without noise: 1 where `a` is better, -1 where `b` is, 0 for a tie."""
        return self._judge_margin(self.margin(a, b))

    def vote(self, prompt: str | list[dict[str, Any]], a: Answer, b: Answer) -> int:
        """`judge`, flipped with probability `noise`; a tie stays a tie.

        The same question always gets the same vote, whichever answer comes first and whatever was
        asked before: `vote(p, b, a) == -vote(p, a, b)`.
        """
        judgement = self.judge(a, b)
        return -judgement if self._coin(prompt, a, b) < self.noise else judgement

    def _judge_margin(self, margin: float) -> int:
        # VADER rounds to four decimals, and 0.55 - 0.50 is a hair above 0.05 in binary.
        if abs(margin) <= self.rule.tie_width * (1 + 1e-9):
            return 0
        return 1 if margin > 0 else -1

    def _coin(self, prompt: str | list[dict[str, Any]], a: Answer, b: Answer) -> float:
        """A number in [0, 1) that depends on nothing but the seed, the rule and the question."""
        question = [self.seed, self.name, prompt, sorted([a.text, b.text])]
        # JSON keeps the parts apart and escapes whatever UTF-8 cannot hold.
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
    """Rows `prompt`, `chosen`, `rejected` of all pairs that the rater can tell apart.

    Args:
        prompts, first, second: n each.
        noise: with the rater's noise, as votes; without it, as the rule says.
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
