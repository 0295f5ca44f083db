"""The comparison of tuned and base answers: figures worked out by hand, and the text."""

import pytest

from lorarlhf.evaluation.comparison import as_text, judge, judge_best_of
from lorarlhf.rewards.raters import Answer, Rater

RATER = Rater.named("plain")  # fewer exclamation marks win
BEFORE = [
    Answer("Go!!", ended=False, tokens=10),
    Answer("Go.", ended=True, tokens=10),
    Answer("Go!", ended=True, tokens=10),
    Answer("Go!", ended=True, tokens=10),
]
AFTER = [
    Answer("Go!", ended=True, tokens=8),
    Answer("Go.", ended=True, tokens=20),
    Answer("Go.", ended=False, tokens=20),
    Answer("Go!!", ended=True, tokens=12),
]


def test_the_figures() -> None:
    found, rows = judge(RATER, ["a", "a", "b", "c"], BEFORE, AFTER, seed=1)
    won = found["win_rate"]
    assert (won["n"], won["wins"], won["ties"], won["losses"]) == (4, 2, 1, 1)
    assert won["rate"] == (2 + 0.5) / 4
    similar = found["win_rate_at_like_length"]  # 8 and 12 tokens against 10: a win and a loss
    assert (similar["n"], similar["rate"]) == (2, 0.5)
    assert found["longer_wins"] == 0.75
    assert found["rule_score"] == {"before": -1.0, "after": -0.75}
    assert found["ended"] == {"before": 0.75, "after": 0.75}
    assert (found["mean_length_before"], found["mean_length_after"]) == (10, 15)
    (note,) = found["notes"]
    assert "+50%" in note and "length alone" in note
    assert [row["verdict"] for row in rows] == ["tuned", "tie", "tuned", "base"]
    assert rows[0] == {
        "prompt": "a",
        "base": "Go!!",
        "tuned": "Go!",
        "base_score": -2.0,
        "tuned_score": -1.0,
        "verdict": "tuned",
    }


def test_there_is_no_note_if_the_length_stayed() -> None:
    found, _ = judge(RATER, ["a"], BEFORE[:1], AFTER[:1], seed=0)
    assert found["notes"] == []
    found, _ = judge(RATER, ["a"], BEFORE[1:2], AFTER[1:2], seed=0)
    assert found["win_rate_at_like_length"] is None


def test_the_best_of_n_is_compared_with_the_same_answers() -> None:
    """Each pick meets both answers of the base to its prompt."""
    base = [Answer("Go!!"), Answer("Go."), Answer("Go!"), Answer("Go!")]
    picked = [Answer("Go!", tokens=4), Answer("Go.", tokens=8)]
    found = judge_best_of(
        RATER, ["a", "a", "b", "b"], base, [picked[0]] * 2 + [picked[1]] * 2, seed=3
    )
    won = found["win_rate"]
    assert (won["wins"], won["ties"], won["losses"]) == (3, 0, 1)
    assert (found["rule_score"], found["mean_length"]) == (-0.5, 6.0)


def test_the_text_has_a_row_for_the_best_of_n() -> None:
    found, rows = judge(RATER, ["a", "b"], BEFORE[:2], AFTER[:2], seed=1)
    lengths = {key: found.pop(key) for key in ("mean_length_before", "mean_length_after")}
    won = {"rate": 0.64, "ci95": [0.57, 0.71], "wins": 7, "ties": 0, "losses": 4}
    best = {"n": 4, "kl_bound": 0.6363, "win_rate": won}
    said = as_text(found | {"ppo": lengths, "best_of_n": best}, rows, "report.html")
    line = next(line for line in said.splitlines() if line.startswith("best of 4 of the base"))
    assert "36%       64%" in line
    assert "KL at most 0.64 nats; 95% interval 57% to 71%" in line


@pytest.mark.parametrize("last", [3, 4])
def test_the_text_names_every_figure(last: int) -> None:
    found, rows = judge(RATER, ["a", "a", "b", "c"][1:last], BEFORE[1:last], AFTER[1:last], seed=1)
    lengths = {key: found.pop(key) for key in ("mean_length_before", "mean_length_after")}
    said = as_text(found | {"ppo": lengths}, rows, "somewhere/report.html")
    assert "somewhere/report.html" in said and "> b" in said
    assert ("similar length" in said.split("The mean length of")[0]) == (last == 4)
    assert ("See the win rate at similar length" in said) == (last == 4)
    assert f"{lengths['mean_length_after']:.1f}" in said
