"""The rules for tastes without an axis: each by examples counted by hand, and what they share."""

import re

import pytest

from lorarlhf.rewards.foreign_rules import (
    FOREIGN_RULES,
    NEAR_RULES,
    WIDTH,
    frequency,
)
from lorarlhf.rewards.raters import RATERS, Answer, Rater, Rule
from lorarlhf.runtime.errors import UserError

RULES = FOREIGN_RULES | NEAR_RULES


@pytest.mark.parametrize(
    ("name", "text", "score"),
    [
        ("second_person", "You can wash your youth yourself.", 3 / 6),
        ("second_person", "You\u2019re right, and you'll see.", 2 / 5),
        ("together", "Let's see what we can do; trust us.", 3 / 8),
        ("reasons", "It rains, so that we stay because\nit is wet.", 2 / 10),
        ("reasons", "The reasoning of a cause leads to it.", 2 / 8),
        ("other_side", "Cheap, but slow. Even  if it rains, go.", 2 / 8),
        ("other_side", "The butter is on the table.", 0),
        ("affirmative", "No, it isn\u2019t; nothing knots.", -3 / 5),
        ("past", "I walked and was tired. We need a red bed.", 3 / 10),
        ("past", "Indeed, proceed with speed.", 0),
        ("formal", "It's a bit cold, I can\u2019t go. The dog's bowl.", -3 / 10),
        ("examples", "For example, in Paris I paid 30 euros. The End", 4 / 10),
        ("examples", "The sun is hot. It is big.", 0),
        ("asks_back", "Why? Do you like it??", 2 / 5),
        ("certain", "Maybe I think it might rain.", -3 / 6),
    ],
)
def test_a_score_is_a_count_for_each_word(name: str, text: str, score: float) -> None:
    assert RULES[name].score(Answer(text)) == pytest.approx(score)


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_every_rule_has_a_score_for_every_text_and_no_taste_for_length(rule: Rule) -> None:
    for text in ("", " \n", "...", "\U0001f600", "word " * 1000):
        assert abs(rule.score(Answer(text))) == 0
    text = "You don't know, but we walked because of Anna. Maybe it was for example cold? "
    once, twice = Answer(text), Answer(text * 2)
    assert rule.score(once) == pytest.approx(rule.score(twice)) and rule.score(once) != 0
    assert Rater.of(rule).judge(once, twice) == 0


def test_one_word_more_is_a_difference_and_ten_other_words_more_are_none() -> None:
    rater = Rater.of(FOREIGN_RULES["second_person"], noise=0)
    none, one = Answer("it " * 40), Answer("you " + "it " * 39)
    shorter, two = Answer("you " + "it " * 29), Answer("you you " + "it " * 38)
    assert rater.judge(one, none) == 1 and rater.judge(none, two) == -1
    assert rater.judge(one, two) == -1 and rater.judge(one, shorter) == 0
    assert 1 / 30 - 1 / 40 < WIDTH < 1 / 40


def test_what_does_not_count_as_a_word_does_not_lengthen_a_text() -> None:
    assert frequency(re.compile("a"), "a -- a, b\u2019s *** 3") == 2 / 4


def test_the_rules_are_not_offered_by_name_and_keep_their_own_coin() -> None:
    assert not set(RULES) & set(RATERS) and not set(FOREIGN_RULES) & set(NEAR_RULES)
    with pytest.raises(UserError, match="There is no rater"):
        Rater.named("reasons")
    with pytest.raises(UserError, match="share of votes"):
        Rater.of(RULES["reasons"], noise=0.6)
    rater = Rater.of(RULES["reasons"], noise=0.5, seed=1)
    good, bad = Answer("because"), Answer("it is")
    votes = [rater.vote(str(number), good, bad) for number in range(200)]
    assert 70 < votes.count(1) < 130 and votes.count(1) + votes.count(-1) == 200
    assert "(because" in rater.sentence
