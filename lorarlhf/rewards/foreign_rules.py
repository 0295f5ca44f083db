"""More simulated raters' rules, most of them for tastes that no style axis was written for.

The fit of the reward head leans on the style axes (`lorarlhf.rewards.axes`). Whether it also learns
what they do not cover can only be measured with other tastes. Each rule here counts words: how
often some of them occur, per word of the answer, so that longer answers gain nothing. Use one by
`Rater.of(FOREIGN_RULES["reasons"])`.

The rules of `NEAR_RULES` are kept apart: each has an axis of the same meaning.
"""

import re

from lorarlhf.rewards.raters import Answer, Rule

WIDTH = 1 / 80
"""Half a word in forty. Two answers of 30 and 40 words with one such word each differ by less, so
they tie; the shorter one does not win for its length."""

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


def frequency(pattern: re.Pattern[str], text: str) -> float:
    """How often the pattern occurs in a text, per word; 0 for a text without words."""
    words = len(_WORD.findall(text))
    return len(pattern.findall(text)) / words if words else 0.0


def _words(alternatives: str) -> re.Pattern[str]:
    """One of several words or phrases, as whole words in either case."""
    spaced = alternatives.replace(" ", r"\s+").replace("'", "['\u2019]")
    return re.compile(rf"\b(?:{spaced})\b", re.IGNORECASE)


def _rule(name: str, sentence: str, pattern: re.Pattern[str], sign: int = 1) -> Rule:
    def score(answer: Answer) -> float:
        return sign * frequency(pattern, answer.text)

    return Rule(name, f"Of two answers, the one {sentence} wins.", score, WIDTH)


_SECOND_PERSON = _words("you|your|yours|yourself|yourselves")
_TOGETHER = _words("we|us|our|ours|ourselves|let's")
_REASONS = _words(
    "because|since|so|therefore|thus|hence|due to|in order to|why|reasons?|causes?|caused|causing|"
    "results?|resulted|resulting|leads?|leading|means|makes?|making|lets?|helps?|helping|allows?|"
    "allowing|enables?|enabling"
)
_OTHER_SIDE = _words(
    "but|however|although|though|while|whereas|yet|despite|instead|rather|unlike|"
    "on the other hand|even if"
)
_NEGATIONS = _words(
    r"not|no|never|none|nothing|nobody|nowhere|neither|nor|cannot|without|[a-z]+n't"
)
# Regular forms end in "ed"; a few words that end so by chance are left out.
_PAST = _words(
    "(?!(?:need|feed|seed|speed|exceed|succeed|proceed|indeed|weed|breed|bleed|greed|hundred|"
    r"embed|shed|sacred|naked|wicked)\b)[a-z]{2,}ed|was|were|had|did|went|came|said|took|made|got|"
    "began|found|gave|knew|saw|told|thought|became|felt|left|kept|grew"
)

FOREIGN_RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        _rule("second_person", "that says you and your more often", _SECOND_PERSON),
        _rule("together", "that says we, us and our more often", _TOGETHER),
        _rule("reasons", "that says more often what leads to what (because, so, makes)", _REASONS),
        _rule("other_side", "that names the other side more often (but, however)", _OTHER_SIDE),
        _rule(
            "affirmative", "with fewer negations for its length (not, no, never)", _NEGATIONS, -1
        ),
        _rule("past", "that tells of the past more often (was, went, walked)", _PAST),
    )
}
"""Rules for which there is no axis, by name."""

_INFORMAL = _words(
    "[a-z]+n't|[a-z]+'(?:re|ll|ve|m|d)|(?:it|that|there|what|here|he|she|let|who|how)'s|"
    "yeah|yep|nope|okay|ok|hey|hi|wow|gonna|wanna|gotta|kinda|sorta|guys?|kids?|stuff|cool|"
    "awesome|super|lots|a bit|a lot|pretty|really|just|thanks"
)
# The phrase, a number, or a name: a capital letter inside a sentence that is not "I".
_EXAMPLES = re.compile(
    r"\b(?:(?i:for example|for instance|such as|e\.g\.)|\d[\d.,]*|"
    r"(?<=[a-z,;] )(?!I\b|I['\u2019])[A-Z][a-z]+)"
)
_QUESTIONS = re.compile(r"\?+")
_HEDGES = _words(
    "maybe|perhaps|might|could|may|possibly|probably|seems?|appears?|usually|generally|somewhat|"
    "sometimes|I think|I believe|I guess|I suppose|it depends|not sure|kind of|sort of|tends? to"
)

NEAR_RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        _rule("formal", "with fewer contractions and informal words for its length", _INFORMAL, -1),
        _rule("examples", "with more examples, numbers and names for its length", _EXAMPLES),
        _rule("asks_back", "that asks more questions for its length", _QUESTIONS),
        _rule("certain", "with fewer hedges for its length (maybe, might, I think)", _HEDGES, -1),
    )
}
"""Rules whose taste is also an axis, by name."""
