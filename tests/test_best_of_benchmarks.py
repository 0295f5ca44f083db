"""How the benchmarks of best of n and of pessimism evaluate their figures, by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import best_of_n
import pessimism
from _pools import Pool

from lorarlhf.rewards.raters import Answer, Rater

RATER = Rater.named("plain", noise=0.0)  # fewer exclamation marks win


def answers(*marks: int) -> list[Answer]:
    return [Answer("Go" + "!" * count, tokens=4) for count in marks]


def test_the_best_of_each_group() -> None:
    texts = [answers(0, 1, 2, 3), answers(4, 5, 6, 7)]
    values = np.array([[1.0, 3.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    assert best_of_n.best(values, texts, 2) == [answers(1, 2), answers(5, 7)]
    assert best_of_n.best(values, texts, 4) == [answers(1), answers(7)]


def test_every_pick_meets_every_answer_of_the_other_side() -> None:
    found = best_of_n.compare(RATER, [answers(1), answers(0, 2)], [answers(0, 1, 2), answers(1)])
    # The first prompt: a loss, a tie, a win; the second: a win and a loss.
    assert (found["n"], found["wins"], found["ties"], found["losses"]) == (5, 2, 1, 2)


def test_repeated_prompts_become_sixteen_candidates() -> None:
    """Two prompts, repeated four times one after another, with four answers each."""
    texts = [answers(*range(4 * row, 4 * row + 4)) for row in range(8)]
    features = np.arange(8 * 4 * 2, dtype=float).reshape(8, 4, 2)
    candidates, found = best_of_n.candidates_of(Pool([], texts, features, features), 2)
    assert candidates.shape == (2, 16, 2) and [len(row) for row in found] == [16, 16]
    assert found[1] == [*texts[1], *texts[3], *texts[5], *texts[7]]
    assert candidates[1, 4:8].tolist() == features[3].tolist()


def test_short_answers_are_shrunk_as_the_role_shrinks_them() -> None:
    class Fit:
        def score(self, features: np.ndarray) -> np.ndarray:
            return features[..., 0]

    row = [Answer("a", ended=True, tokens=17), Answer("b", ended=False, tokens=4)]
    found = best_of_n.role_scores(Fit(), np.full((1, 2, 1), 3.0), [row])  # type: ignore[arg-type]
    assert found.tolist() == [[3.0 * 16 / 32, pytest.approx(3.0 * 4 / 20)]]


def test_the_true_score_of_the_picks() -> None:
    truth = np.array([[1.0, 2.0], [5.0, 0.0]])
    assert pessimism.picked(truth, truth) == 3.5
    assert pessimism.picked(truth, np.array([[0.9, 0.1], [0.0, 1.0]])) == 0.5


def test_pessimism_is_measured_on_held_out_prompts() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 4, 6)).astype(np.float32)
    texts = [answers(*rng.integers(0, 9, 4).tolist()) for _ in range(40)]
    for place in range(40):  # one feature says what the rule counts
        features[place, :, 0] = [-one.text.count("!") for one in texts[place]]
    pool = Pool(list(range(40)), texts, features, features)
    found = pessimism.measure(pool, RATER.rule, None, seeds=2, held_out=10)
    assert set(found) == {"0.0", "0.1", "0.25"}
    cells = found["0.0"]
    assert [len(cells[name]) for name in ("0.0", "0.5", "1.0", "2.0", "best possible")] == [2] * 5
    assert 0.8 * cells["best possible"][0] < cells["0.0"][0] <= cells["best possible"][0]
