"""Blind comparisons in the store: kept apart from each other, and counted by hand."""

from pathlib import Path

import pytest

from lorarlhf.preferences.blind_comparisons import (
    add_comparison,
    compared_prompts,
    comparisons,
    count_items,
    has_finished,
    outcomes,
)
from lorarlhf.preferences.records import Verdict
from lorarlhf.preferences.store import Store

ANSWERS = (("One.", "base"), ("Two.", "runs/1"))
FIRST, SECOND, TIE = Verdict("ranked", [[0], [1]]), Verdict("ranked", [[1], [0]]), Verdict("tie")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "preferences.sqlite")


def vote(store: Store, comparison: int, verdict: Verdict, rater: str = "ann") -> int:
    """The item that was voted on, which is a new one."""
    prompt = f"Question {count_items(store, comparison)}?"
    item = store.add_item(prompt, ANSWERS, purpose="compare", comparison=comparison)
    store.judge(store.present(item, rater).token, verdict)
    return item


def test_comparisons_are_listed_with_the_newest_first(store: Store) -> None:
    assert comparisons(store) == comparisons(store, newest=1) == []
    first = add_comparison(store, "base", "runs/1", 5)
    second = add_comparison(store, "runs/1", "runs/2", 30)
    assert (second.first, second.second, second.wanted) == ("runs/1", "runs/2", 30)
    assert comparisons(store) == [second, first] and comparisons(store, newest=1) == [second]


def test_outcomes_are_seen_from_the_second_model(store: Store) -> None:
    comparison, other = (add_comparison(store, "base", "runs/1", 5).id for _ in range(2))
    for verdict in (SECOND, FIRST, TIE, Verdict("both_bad"), Verdict("skip")):
        vote(store, comparison, verdict)
    item = vote(store, comparison, SECOND, "bob")
    assert sorted(outcomes(store, comparison)) == [0.0, 0.5, 0.5, 1.0, 1.0]
    assert outcomes(store, comparison, "bob") == [1.0] and outcomes(store, other) == []
    (number,) = (v.id for v in store.votes(rater="bob") if v.item_id == item)
    store.correct(number, FIRST)
    assert outcomes(store, comparison, "bob") == [0.0]
    store.correct(store.votes(rater="bob")[0].id, None)
    assert outcomes(store, comparison, "bob") == []


def test_items_and_prompts_are_those_of_the_comparison(store: Store) -> None:
    comparison, other = (add_comparison(store, "base", "runs/1", 5).id for _ in range(2))
    vote(store, comparison, FIRST)
    vote(store, comparison, FIRST)
    store.add_item("For training?", ANSWERS)
    assert compared_prompts(store, comparison) == ["Question 0?", "Question 1?"]
    assert (count_items(store, comparison), count_items(store, other)) == (2, 0)


def test_a_rater_has_finished_with_the_last_vote(store: Store) -> None:
    comparison = add_comparison(store, "base", "runs/1", 2).id
    item = vote(store, comparison, FIRST)
    assert not has_finished(store, "ann", item)
    vote(store, comparison, FIRST, "bob")  # counts for bob alone
    assert not has_finished(store, "ann", item)
    vote(store, comparison, Verdict("skip"))
    assert has_finished(store, "ann", item)
    assert has_finished(store, "ann", store.add_item("For training?", ANSWERS))
