"""The benchmark of the order of the questions: what is asked, and how its tables are computed."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import ask_next
from ask_next import VOTES, Candidates, Pair, Way

from lorarlhf.rewards.vote_fit import VoteFit

WIDTH, PROMPTS = 12, list(range(3, 40))
DRAW = np.random.default_rng(0)
FEATURES = DRAW.normal(size=(40, 4, WIDTH)).astype(np.float32)
TRUTH = FEATURES @ DRAW.normal(size=WIDTH)


def vote(pair: Pair) -> int:
    """Without noise; every fifth prompt is a tie."""
    place, a, b = pair
    return 0 if place % 5 == 0 else int(np.sign(TRUTH[place, a] - TRUTH[place, b]))


@pytest.mark.parametrize("way", ask_next.WAYS, ids=lambda way: way.name)
def test_no_pair_is_asked_twice(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Pair] = []
    take = Candidates.take

    def noted(self: Candidates, pair: Pair) -> None:
        taken.append(pair)
        take(self, pair)

    monkeypatch.setattr(Candidates, "take", noted)
    draw = np.random.default_rng(1)
    found = list(ask_next.simulate(way, FEATURES, vote, PROMPTS, None, draw, (5, 30)))
    assert len(taken) == len(set(taken)) == found[-1][2]
    assert {place for place, _, _ in taken} <= set(PROMPTS)
    fit = found[-1][0]
    assert len(fit) == 30 == sum(vote(pair) != 0 for pair in taken)
    assert found[0][2] < found[1][2]
    margins = (fit.chosen - fit.rejected) @ np.linalg.lstsq(
        FEATURES.reshape(-1, WIDTH), TRUTH.reshape(-1), rcond=None
    )[0]
    assert (margins > 0).all()  # the winners are the chosen ones


def test_what_waits() -> None:
    def waiting(way: Way, questions: int) -> list[list[Pair]]:
        candidates, found = Candidates(way, PROMPTS, np.random.default_rng(2)), []
        for _ in range(questions):
            found.append(list(candidates.options()))
            candidates.take(found[-1][-1])
        return found

    queue = waiting(Way("queue", 6, "information"), 3)
    assert [len(options) for options in queue] == [6, 6, 6]
    assert queue[1][:5] == queue[0][:5] and queue[1][5] not in queue[0]  # the others stay
    new = waiting(Way("new", 6, "information"), 3)
    assert len({pair for options in new for pair in options}) > 12  # others each time
    prompt = waiting(Way("prompt", 6, "information"), 38)
    assert all(len({place for place, _, _ in options}) == 1 for options in prompt)
    assert len({options[0][0] for options in prompt}) == len(PROMPTS)
    assert len(prompt[0]) == 6 and len(prompt[37]) == 5  # one was asked before


def voted_along(fit: VoteFit) -> np.ndarray:
    """A direction along which the votes were cast."""
    return np.asarray((fit.chosen - fit.rejected).mean(axis=0))


def test_what_is_chosen() -> None:
    way = Way("queue", 1, "random")
    draw = np.random.default_rng(0)
    ((fit, _, _),) = ask_next.simulate(way, FEATURES, vote, PROMPTS, None, draw, (30,))
    posterior = fit.posterior()
    options = [(0, a, b) for a, b in ask_next.PAIRS]
    features = FEATURES.copy()
    features[0] = np.array([[0.0], [1.0], [1.0], [1.3]]) * voted_along(fit)

    def choose(order: str, known: bool = True) -> Pair:
        given = posterior if known else None
        return ask_next.chosen(Way("queue", 6, order), options, features, given)

    gains = {
        pair: float(ask_next.mutual_information(*posterior.margins(*rows))[0])
        for pair in options
        for rows in [(features[0, [pair[1]]], features[0, [pair[2]]])]
    }
    best = max(gains, key=gains.__getitem__)
    assert choose("information") == best != options[0]
    assert choose("information", known=False) == options[0]


class Margins:
    """A posterior that knows two answers by their number, and the margin of each such pair.

    The chance of the first answer is sigmoid(m / sqrt(1 + pi s^2 / 8)) in `moderated`.
    """

    KNOWN = {
        (0, 1): (0.0, 0.5),  # 50%; information to second order 0.25 * 0.25 / 2 = 0.03
        (0, 2): (6.0, 4.0),  # 6 / 2.70 = 2.22: 90%; the largest information
        (0, 3): (-0.5, 1.0),  # -0.5 / 1.18 = -0.42: 40%; 0.24 / 2 = 0.12, less than half of a bit
        (1, 2): (3.0, 0.1),  # 95%; nothing to learn
    }

    def margins(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pairs = zip(first[:, 0], second[:, 0], strict=True)
        mean, deviation = zip(*(self.KNOWN[int(a), int(b)] for a, b in pairs), strict=True)
        return np.array(mean), np.array(deviation)


@pytest.mark.parametrize(
    ("order", "pairs", "best"),
    [
        ("information", [(0, 1), (0, 2), (0, 3), (1, 2)], (0, 2)),
        ("moderate", [(0, 1), (0, 2), (0, 3), (1, 2)], (0, 3)),
        ("moderate", [(0, 1), (0, 2), (1, 2)], (0, 1)),
        ("moderate", [(1, 2), (0, 2)], (0, 2)),  # both are outside 20% to 80%
        # log(1 + p (1 - p) s^2) / 2: 0.03 (p = 0.5), 0.02 (p = 0.9975), 0.11 (p = 0.38), 0.0002
        ("fisher", [(0, 1), (0, 2), (0, 3), (1, 2)], (0, 3)),
        ("fisher", [(0, 1), (0, 2), (1, 2)], (0, 1)),
        ("random", [(1, 2), (0, 2)], (1, 2)),
    ],
)
def test_each_order_by_hand(
    order: str, pairs: list[tuple[int, int]], best: tuple[int, int]
) -> None:
    features = np.arange(4.0).reshape(1, 4, 1)
    options = [(0, a, b) for a, b in pairs]
    posterior = None if order == "random" else Margins()
    found = ask_next.chosen(Way("new", 4, order), options, features, posterior)  # type: ignore[arg-type]
    assert found == (0, *best)


KNOWN = (-3.0, -0.4, 0.0, 1.0, 6.0)


def test_the_fisher_gain_is_that_of_the_determinant() -> None:
    draw = np.random.default_rng(0)
    root, x = draw.normal(size=(5, 5)), draw.normal(size=5)
    precision, mean = root @ root.T + np.eye(5), np.array(0.7)
    p = 1 / (1 + np.exp(-mean))
    more = precision + p * (1 - p) * np.outer(x, x)
    wanted = (np.linalg.slogdet(more)[1] - np.linalg.slogdet(precision)[1]) / 2
    found = ask_next.fisher_gain(mean, np.sqrt(x @ np.linalg.solve(precision, x)))
    assert found == pytest.approx(wanted)


def test_the_fisher_gain_is_the_information_where_little_is_unsure() -> None:
    mean, deviation = np.array(KNOWN), np.full(len(KNOWN), 0.01)
    wanted = ask_next.mutual_information(mean, deviation)
    np.testing.assert_allclose(ask_next.fisher_gain(mean, deviation), wanted, rtol=1e-3)
    np.testing.assert_array_equal(ask_next.fisher_gain(mean, 0 * deviation), 0)


def test_votes_needed_are_on_a_line_between_two_counts() -> None:
    curve = np.array([0.5, 0.6, 0.55, 0.7, 0.8, 0.75])
    assert VOTES == (25, 50, 75, 100, 150, 200)
    assert ask_next.votes_needed(curve, 0.6) == pytest.approx(50)
    assert ask_next.votes_needed(curve, 0.65) == pytest.approx(87.5)  # 0.6 at 75, too
    assert ask_next.votes_needed(curve, 0.75) == pytest.approx(125)
    assert ask_next.votes_needed(curve, 0.81) == float("inf")
    assert ask_next.votes_needed(curve, 0.4) == 25


def test_a_table_compares_with_random(capsys: pytest.CaptureFixture[str]) -> None:
    """Each vote of `better` is worth two of random's, for every seed and rater."""
    counts = np.array(VOTES, float)
    wobble = 0.01 * np.arange(4)[:, None, None]
    plain = 0.5 + 0.001 * counts + wobble + np.zeros((4, 2, 1))
    better = 0.5 + 0.002 * counts + wobble + np.zeros((4, 2, 1))
    asked = np.broadcast_to(1.25 * counts, plain.shape)
    table = ask_next.summarise(
        {"random": np.stack([plain, asked], -1), "better": np.stack([better, asked], -1)}
    )
    assert table["random"]["apart"] == pytest.approx([0, 0, 0])
    assert table["random"]["needed"] == pytest.approx([100, 100, 100])
    assert table["better"]["apart"] == pytest.approx([0.1, 0.1, 0.1])
    assert table["better"]["needed"] == pytest.approx([50, 50, 50])
    assert table["better"]["asked"] == 125
    ask_next.print_table("two raters", table)
    assert "| better | 56.5% | 61.5% | 71.5%" in capsys.readouterr().out
