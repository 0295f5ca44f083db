"""The simulated editor: what it makes of an answer, by hand."""

import pytest

from lorarlhf.rewards.editor import FRIENDLY, edit, first_sentence, friendlier, without_marks
from lorarlhf.rewards.foreign_rules import FOREIGN_RULES
from lorarlhf.rewards.raters import Answer, Rater, plain_score
from lorarlhf.runtime.errors import UserError

LIST = "**Here you go:**\n1. Boil water!\n- 2) Wait.\n## Enjoy\nIn 1999. we drank tea."


def test_marks_are_removed_until_the_rule_finds_none() -> None:
    assert without_marks(LIST) == (
        "Here you go:\nBoil water.\nWait.\nEnjoy\nIn 1999. we drank tea."
    )
    assert plain_score(Answer(LIST)) == -5 and plain_score(Answer(without_marks(LIST))) == 0
    assert without_marks("Plain. 3.5 cups, a * b.") == "Plain. 3.5 cups, a * b."


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Take 3.5 cups. Then wait.", "Take 3.5 cups."),
        ("Really? Yes.", "Really?"),
        ("1. Boil water! 2. Wait", "Boil water."),
        ("No end in sight", "No end in sight"),
        ("One line\nthat goes on. More.", "One line\nthat goes on."),
        ("", ""),
    ],
)
def test_the_first_sentence(text: str, first: str) -> None:
    assert first_sentence(text) == first


def test_the_friendly_sentence_depends_on_the_text_alone() -> None:
    assert friendlier("Tea. ") == f"Tea. {FRIENDLY[5 % 4]}"
    assert friendlier("Tea. ") == friendlier("Tea. ") and friendlier("") == FRIENDLY[0]


@pytest.mark.parametrize("name", ["cheerful", "brief", "plain"])
def test_an_edit_is_better_than_every_answer_by_the_raters_rule(name: str) -> None:
    rater = Rater.named(name, noise=0.1)
    answers = [
        Answer(LIST, ended=True),
        Answer("It is bad! Sorry. I can't tell you more about it now.", ended=True),
        Answer("A long answer! It was cut off and never", ended=False),
    ]
    better = edit(rater, answers)
    assert better.ended and all(rater.judge(better, answer) == 1 for answer in answers)


def test_a_rule_without_an_editor_is_named() -> None:
    rater = Rater.of(next(iter(FOREIGN_RULES.values())))
    with pytest.raises(UserError, match="no simulated editor .* cheerful, brief, plain"):
        edit(rater, [Answer("a")])
