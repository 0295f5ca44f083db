"""The meter says how sure its predictions were, and how often the sure ones were right."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorarlhf.evaluation.win_rate import wilson_interval
from lorarlhf.preferences.guesses import newest_guesses
from lorarlhf.preferences.records import Verdict
from lorarlhf.rewards.learning_curve import forecast, headline
from lorarlhf_ui import meter as meters
from tests.pages import FIRST, SECOND, until
from tests.test_ui_meter import WIDTH, Desk, by_direction


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_sure_predictions_are_counted_apart_and_right_more_often(desk: Desk) -> None:
    by_direction(desk, 150)
    report = desk.report()
    assert 10 < report["sure"] < 100 and report["sure_right"] > report["right"]
    guesses = newest_guesses(desk.store, "ann", 100)
    sure = [guess.model for guess in guesses if guess.confidence >= meters.SURE]
    assert report["sure"] == len(sure) and report["sure_right"] == sum(sure) / len(sure)
    ends = (report["sure_low"], report["sure_high"])
    assert ends == wilson_interval(report["sure_right"], report["sure"])
    assert all(0.5 <= guess.confidence < 1 for guess in guesses)


def test_a_prediction_is_as_sure_as_the_posterior_of_the_votes_before(desk: Desk) -> None:
    by_direction(desk, 30)
    head = desk.meter._heads["ann"].head
    assert head is not None
    two, four = (np.random.default_rng(n).normal(size=(n, WIDTH)) for n in (2, 4))
    number = desk.vote(desk.item(two), FIRST)
    chance = float(head.win_probability(two[:1], two[1:])[0])
    assert newest_guesses(desk.store, "ann", 1)[0].vote == number
    found = newest_guesses(desk.store, "ann", 1)[0].confidence
    assert found == pytest.approx(max(chance, 1 - chance), abs=1e-4)
    head = desk.meter._heads["ann"].head
    assert head is not None
    desk.vote(desk.item(four), Verdict("ranked", [[2], [0], [1, 3]]))
    top = int(head.scores(four)[0].argmax())
    chances = [head.win_probability(four[[top]], four[[n]])[0] for n in range(4) if n != top]
    found = newest_guesses(desk.store, "ann", 1)[0].confidence
    assert found == pytest.approx(min(chances), abs=1e-4)


def test_predictions_of_an_earlier_version_are_not_called_sure(desk: Desk) -> None:
    numbers = by_direction(desk, 6)
    with desk.store.write() as db:
        db.execute("UPDATE guess SET confidence = NULL")
    report = desk.report()
    assert report["guesses"] == len(numbers) - 4 and report["sure"] == 0
    assert "sure_right" not in report


# ---- whether more votes would help


def test_from_forty_pairs_on_it_says_whether_more_votes_would_help(desk: Desk) -> None:
    by_direction(desk, 39)
    assert "more" not in desk.report()
    by_direction(desk, 1, seed=1)
    until(lambda: "more" in desk.report())
    size, sentence = desk.meter._advice["ann"]
    assert size == 40
    assert desk.report()["more"] == sentence == headline(forecast(desk.meter._heads["ann"].fit))
    by_direction(desk, 7, seed=2)  # 47 are not yet a fifth more
    assert desk.meter._advice["ann"] == (40, sentence)
    by_direction(desk, 1, seed=3)
    until(lambda: desk.meter._advice["ann"][0] == 48)


def test_beyond_the_most_pairs_of_a_fit_it_looks_again(desk: Desk) -> None:
    draw = np.random.default_rng(4)
    for _ in range(meters.MAX_PAIRS):
        rows = draw.normal(size=(2, WIDTH))
        desk.cast(desk.item(rows), FIRST if rows[0, 0] > rows[1, 0] else SECOND)
    by_direction(desk, 1, seed=5)
    until(lambda: "more" in desk.report())
    first = desk.meter._advice["ann"]
    assert first[0] == meters.MAX_PAIRS == 400
    by_direction(desk, 79, seed=6)  # the first of them leaves 300 in the fit
    with desk.meter._advising:  # nothing is being looked at
        assert desk.meter._advice["ann"] is first
    by_direction(desk, 1, seed=7)  # a fifth more
    until(lambda: desk.meter._advice["ann"] is not first)
    assert desk.meter._advice["ann"][0] == 379


def test_it_looks_ahead_to_twice_the_votes_that_prefer_an_answer(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "lorarlhf.rewards.learning_curve.forecast", lambda fit, of: asked.append((len(fit), of))
    )
    for _ in range(5):
        desk.cast(desk.item(np.eye(2, WIDTH), known=False), FIRST)
        desk.cast(desk.item(np.eye(2, WIDTH)), Verdict("tie"))
        desk.cast(desk.item(np.eye(2, WIDTH)), FIRST, rater="bob")
    by_direction(desk, 40)
    until(lambda: asked)
    assert asked == [(40, 45)]


def test_a_learning_curve_holds_up_no_vote(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> None:
        begun.set()
        assert go_on.wait(60)

    monkeypatch.setattr("lorarlhf.rewards.learning_curve.forecast", slow)
    by_direction(desk, 40)
    assert begun.wait(60)
    by_direction(desk, 20, seed=1)
    assert desk.report()["votes"] == 59 and "more" not in desk.report()
    go_on.set()
    until(lambda: "more" in desk.report())
