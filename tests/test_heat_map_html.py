"""Heat maps: numbers that add up, colours by share, and text that stays text."""

import re

import pytest

from lorarlhf.evaluation.heat_map import WordShares, heat_map, heat_maps, signed

HOSTILE = '<img src=x onerror="alert(1)">&{{'


def answer(*words: tuple[str, float], rest: float = 0.0, exact: bool = True) -> WordShares:
    return WordShares(sum(share for _, share in words) + rest, list(words), rest, exact)


def classes(markup: str) -> list[tuple[str, str]]:
    words = markup.partition('<p class="heat-words"')[2].partition("</p>")[0]
    return re.findall(r'<span(?: class="(\w+)")? title="[^"]*">([^<]*)</span>', words)


def numbers(markup: str) -> list[float]:
    cells = re.findall(r"<td>([+\u2212]?\d+\.\d{3})</td>", markup)
    return [float(cell.replace("\u2212", "-")) for cell in cells]


def test_words_get_colours_by_their_share_of_the_strongest() -> None:
    drawn = heat_map(answer(("Good", 0.5), (" bad", -0.25), (" so", 0.04), ("\n\nend", 0.0)))
    assert classes(drawn) == [("more5", "Good"), ("less2", "bad"), ("", "so"), ("", "end")]
    assert 'title="+0.500">Good</span> <span class="less2" title="\u22120.250">bad' in drawn
    assert "</span>\n\n<span" in drawn  # blanks stay, without a colour


def test_the_numbers_of_the_table_add_up_to_the_score() -> None:
    words = [(f" w{n}", ((n * 37) % 19 - 9) / 1000) for n in range(60)]
    *shares, score = numbers(heat_map(answer(*words)))
    assert len(shares) == 60 and sum(shares) == pytest.approx(score, abs=1e-9)
    *shares, rest, score = numbers(heat_map(answer(*words, rest=0.2, exact=False)))
    assert rest == 0.2 and sum(shares) + rest == pytest.approx(score, abs=1e-9)


def test_it_says_which_way_the_shares_were_computed() -> None:
    assert "exact" in heat_map(answer(("a", 1.0)))
    estimated = heat_map(answer(("a", 1.0), rest=0.5, exact=False))
    assert "integrated gradients" in estimated and "no word" in estimated
    assert "no word" not in heat_map(answer(("a", 1.0)))


def test_answers_side_by_side_share_their_colours() -> None:
    one, other = heat_maps([answer(("a", 1.0)), answer(("b", -0.4))])
    assert classes(one) == [("more5", "a")] and classes(other) == [("less2", "b")]


def test_text_of_a_model_stays_text() -> None:
    drawn = heat_map(answer((HOSTILE, 1.0), ("<script>", -1.0)))
    assert "<img" not in drawn and "<script" not in drawn and "onerror=&quot;" in drawn
    assert drawn.count("&lt;img src=x onerror=&quot;alert(1)&quot;&gt;&amp;{{") == 2


def test_odd_answers() -> None:
    assert "(an empty answer)" in heat_map(answer())
    assert classes(heat_map(answer(("a", 0.0)))) == [("", "a")]
    blank = heat_map(answer(("  \n", 0.25)))
    assert "(blank)" in blank and numbers(blank) == [0.25, 0.25]
    assert (signed(-0.0004), signed(0.0), signed(-1)) == ("0.000", "0.000", "\u22121.000")
