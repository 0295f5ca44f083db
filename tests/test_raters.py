"""The simulated raters: each rule by examples worked out by hand, and the coin behind a vote."""

import math
import random
import subprocess
import sys

import pytest

from lorarlhf.rewards import raters
from lorarlhf.rewards.raters import RATERS, Answer, Rater
from lorarlhf.runtime.errors import UserError

PROMPT = "How do I start a garden?"
GLAD, SAD = Answer("It is a good plan."), Answer("It is a bad plan.")


@pytest.mark.parametrize(
    ("text", "valence"),
    [("good", 1.9), ("bad", -2.5), ("The box is on the table.", 0.0), ("", 0.0)],
)
def test_cheerful_is_vaders_compound_score(text: str, valence: float) -> None:
    # The lexicon's valence x becomes x / sqrt(x^2 + 15), rounded to four decimals.
    expected = valence / math.sqrt(valence**2 + 15)
    assert raters.cheerful_score(Answer(text)) == pytest.approx(expected, abs=5e-5)


def test_cheerful_prefers_the_friendlier_answer() -> None:
    rater = Rater.named("cheerful")
    assert rater.judge(GLAD, SAD) == 1
    assert rater.judge(SAD, GLAD) == -1
    assert rater.judge(GLAD, GLAD) == 0


def test_cheerful_scores_within_its_tie_width_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    compound = {"a": 0.55, "b": 0.50, "c": 0.4999}
    rule = raters.Rule("cheerful", "", lambda answer: compound[answer.text], 0.05)
    monkeypatch.setitem(RATERS, "cheerful", rule)
    a, b, c = Answer("a"), Answer("b"), Answer("c")
    rater = Rater.named("cheerful")
    assert rater.margin(a, b) > 0.05  # in binary
    assert rater.is_near_tie(a, b) and rater.judge(a, b) == 0
    assert not rater.is_near_tie(a, c) and rater.judge(c, a) == -1


def test_the_sentiment_lexicon_is_read_once_and_only_when_needed() -> None:
    code = (
        "import sys\n"
        "from lorarlhf.rewards import raters as r\n"
        "assert not any(m.startswith('vader') or m == 'torch' for m in sys.modules)\n"
        "r.brief_score(r.Answer('hi')), r.plain_score(r.Answer('hi'))\n"
        "assert r._sentiment_analyzer.cache_info().misses == 0\n"
        "r.cheerful_score(r.Answer('hi')), r.cheerful_score(r.Answer('ho'))\n"
        "assert r._sentiment_analyzer.cache_info().misses == 1\n"
        "assert 'torch' not in sys.modules and 'requests' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (Answer("two words"), Answer("three words here"), 1),
        (Answer("three words here"), Answer("two words"), -1),
        (Answer("two words"), Answer("words  two\n"), 0),
        (Answer("a very long answer that ends"), Answer("short", ended=False), 1),
        (Answer("short", ended=False), Answer("much longer", ended=True), -1),
        (Answer("short", ended=False), Answer("longer than that", ended=False), 0),
        (Answer("supercalifragilistic"), Answer("a b"), 1),
        (Answer("word " * 99_999), Answer("word " * 100_000), 1),
        (Answer("word " * 100_000), Answer("", ended=False), 1),
    ],
)
def test_brief(a: Answer, b: Answer, expected: int) -> None:
    rater = Rater.named("brief")
    assert rater.judge(a, b) == expected
    assert rater.judge(b, a) == -expected


def test_brief_score_is_bounded_and_halves_at_twenty_words() -> None:
    assert raters.brief_score(Answer("")) == 1
    assert raters.brief_score(Answer("word " * 20)) == 0.5
    assert raters.brief_score(Answer("word " * 60)) == 0.25
    assert raters.brief_score(Answer("word", ended=False)) == 0


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("Water it daily and wait.", 0),
        ("- one\n* two\n+ three\n• four", 4),
        ("1. one\n2) two\n  10. ten", 3),
        ("# Title\ntext\n### Part", 2),
        ("**Title**\ntext\n**Steps:**\n**More**:", 3),
        ("__Title__", 1),
        ("A **bold** word.\n**Bold** at the start, **and** the end **too**", 0),
        ("Great! Really!! Yes\uff01", 4),
        ("- **Great!**", 2),
        ("# Welcome!", 2),
        ("42.\n3.5 litres\n---\n-5 degrees\n#hashtag\n1984. What a year.", 0),
        ("", 0),
    ],
)
def test_plain_counts_lists_headings_and_exclamation_marks(text: str, marks: int) -> None:
    assert raters.plain_score(Answer(text)) == -marks


def test_plain_prefers_fewer_marks_and_ties_on_equal_ones() -> None:
    rater = Rater.named("plain")
    assert rater.judge(Answer("Hello."), Answer("Hello!")) == 1
    assert rater.judge(Answer("- a\n- b"), Answer("Hello!")) == -1
    assert rater.is_near_tie(Answer("- a"), Answer("Hello!"))


@pytest.mark.parametrize("name", list(RATERS))
def test_every_rule_has_a_sentence_a_tie_width_and_finite_scores(name: str) -> None:
    rater = Rater.named(name)
    assert rater.sentence.endswith(".") and len(rater.sentence) > 30
    assert rater.rule.name == name
    assert rater.rule.tie_width == raters.TIE_WIDTH[name]
    for answer in (
        Answer(""),
        Answer("", ended=False),
        Answer("a! " * 5000),
        Answer("\ud800 é 🙂"),
    ):
        assert math.isfinite(rater.score(answer))


@pytest.mark.parametrize("name", list(RATERS))
def test_judgements_are_antisymmetric(name: str) -> None:
    rater = Rater.named(name)
    rng = random.Random(3)
    words = ["good", "bad", "happy!", "\n- item", "# head\n", "the", "of"]
    answers = [
        Answer(" ".join(rng.choices(words, k=rng.randrange(8))), ended=rng.random() < 0.7)
        for _ in range(30)
    ]
    for a in answers:
        for b in answers:
            assert rater.judge(a, b) == -rater.judge(b, a)
            assert rater.margin(a, b) == -rater.margin(b, a)
            assert rater.is_near_tie(a, b) == (rater.judge(a, b) == 0)
            assert rater.vote(PROMPT, a, b) == -rater.vote(PROMPT, b, a)


def test_votes_without_noise_are_the_rule() -> None:
    rater = Rater.named("cheerful", noise=0)
    assert all(rater.vote(f"prompt {i}", GLAD, SAD) == 1 for i in range(200))


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.5])
def test_the_noise_rate_is_the_share_of_flipped_votes(noise: float) -> None:
    rater = Rater.named("cheerful", noise=noise, seed=1)
    flipped = sum(rater.vote(f"prompt {i}", GLAD, SAD) == -1 for i in range(4000)) / 4000
    # Four standard errors of a share among 4000.
    assert flipped == pytest.approx(noise, abs=4 * math.sqrt(noise * (1 - noise) / 4000))


def test_ties_stay_ties_under_noise() -> None:
    rater = Rater.named("brief", noise=0.5)
    assert all(rater.vote(f"{i}", Answer("a b"), Answer("c d")) == 0 for i in range(50))


def test_the_coin_depends_on_seed_name_prompt_and_texts_and_on_nothing_else() -> None:
    prompts = [f"prompt {i}" for i in range(64)]

    def votes(rater: Rater, order: list[str], a: Answer = GLAD, b: Answer = SAD) -> dict:
        return {prompt: rater.vote(prompt, a, b) for prompt in order}

    rater = Rater.named("cheerful", noise=0.5, seed=7)
    first = votes(rater, prompts)
    assert votes(Rater.named("cheerful", noise=0.5, seed=7), prompts[::-1]) == first
    assert set(first.values()) == {1, -1}
    assert votes(Rater.named("cheerful", noise=0.5, seed=8), prompts) != first
    assert votes(rater, prompts, a=Answer("It is a good idea.")) != first
    a, b = Answer("one"), Answer("one two!")
    brief, plain = (Rater.named(name, noise=0.5) for name in ("brief", "plain"))
    assert votes(brief, prompts, a, b) != votes(plain, prompts, a, b)


def test_less_noise_flips_a_subset_of_the_votes() -> None:
    def flips(noise: float) -> set[int]:
        rater = Rater.named("cheerful", noise=noise)
        return {i for i in range(300) if rater.vote(f"{i}", GLAD, SAD) == -1}

    assert flips(0.1) < flips(0.4)


def test_a_vote_is_the_same_in_another_process() -> None:
    code = (
        "from lorarlhf.rewards.raters import Answer, Rater\n"
        "r = Rater.named('brief', noise=0.5, seed=2)\n"
        "print([r.vote(f'p{i}', Answer('a'), Answer('b c')) for i in range(20)])"
    )
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    rater = Rater.named("brief", noise=0.5, seed=2)
    here = [rater.vote(f"p{i}", Answer("a"), Answer("b c")) for i in range(20)]
    assert other.stdout.strip() == str(here)


def test_conversations_and_broken_unicode_can_be_voted_on() -> None:
    rater = Rater.named("brief", noise=0.5)
    chat = [{"role": "user", "content": "Hi"}]
    a, b = Answer("\ud800"), Answer("two words")
    assert rater.vote(chat, a, b) == -rater.vote(chat, b, a) != 0


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(
        UserError, match="no rater named 'cheerfull'.*mean 'cheerful'.*brief, plain"
    ):
        Rater.named("cheerfull")
    with pytest.raises(UserError, match=r"no rater named 'zzz'\. The raters are"):
        Rater.named("zzz")


@pytest.mark.parametrize("noise", [-0.1, 0.6, float("nan")])
def test_impossible_noise_is_refused(noise: float) -> None:
    with pytest.raises(UserError, match="noise of rater 'plain'"):
        Rater.named("plain", noise=noise)
    with pytest.raises(UserError, match="noise of rater 'plain'"):
        Rater("plain", noise)


def test_vote_pairs_leaves_ties_out_and_puts_the_better_one_first() -> None:
    calm = Answer("It is a plan.")
    answers = [GLAD, SAD, calm, calm], [SAD, GLAD, calm, SAD]
    prompts = ["a", "b", "c", "d"]
    rows = raters.vote_pairs(Rater.named("cheerful"), prompts, *answers, noise=False)
    assert rows == [
        {"prompt": "a", "chosen": GLAD.text, "rejected": SAD.text},
        {"prompt": "b", "chosen": GLAD.text, "rejected": SAD.text},
        {"prompt": "d", "chosen": calm.text, "rejected": SAD.text},
    ]


def test_vote_pairs_with_noise_are_the_rater_s_votes() -> None:
    rater = Rater.named("cheerful", noise=0.5, seed=3)
    prompts = [f"prompt {i}" for i in range(40)]
    rows = raters.vote_pairs(rater, prompts, [GLAD] * 40, [SAD] * 40)
    glad = [rater.vote(prompt, GLAD, SAD) > 0 for prompt in prompts]
    assert [row["chosen"] == GLAD.text for row in rows] == glad
    assert 0 < sum(glad) < 40


def test_an_answer_never_beats_its_own_text() -> None:
    ended, cut = Answer("Yes"), Answer("Yes", ended=False)
    assert raters.vote_pairs(Rater.named("brief"), ["a"], [ended], [cut]) == []
