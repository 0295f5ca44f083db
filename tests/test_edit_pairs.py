"""Pairs from edited answers, by hand: DITTO's order of the edit and of each policy's answers."""

from collections import Counter

import pytest

from lorarlhf.preferences.edit_pairs import EditPairs, draw_pairs, edit_pairs
from lorarlhf.preferences.exports import to_edits, training_rows
from lorarlhf.preferences.records import Verdict
from tests.rated_votes import FIRST, vote


def test_every_level_of_the_order_gives_pairs() -> None:
    found = edit_pairs("E", [["b1", "b2"], ["p1"], ["q1", "q2"]])
    assert found.online == [("E", "q1"), ("E", "q2")]
    assert found.replay == [("E", "b1"), ("E", "b2"), ("E", "p1")]
    # The later policy is the better one: p over b, q over b, q over p.
    assert found.between == [
        *(("p1", "b1"), ("p1", "b2")),
        *(("q1", "b1"), ("q1", "b2"), ("q2", "b1"), ("q2", "b2")),
        *(("q1", "p1"), ("q2", "p1")),
    ]


def test_the_base_alone_is_the_newest_policy() -> None:
    assert edit_pairs("E", [["b"]]) == EditPairs([("E", "b")], [], [])


def test_blank_and_equal_answers_give_no_pair_and_each_pair_is_there_once() -> None:
    found = edit_pairs(" E\n", [["", "b", "b "], ["E", "b", " "]])
    assert found.online == [("E", "b")]
    assert found.replay == [("E", "b")]
    assert found.between == [("E", "b")]  # an answer as good as the edit is still the later one's


def many(count: int) -> EditPairs:
    def pairs(kind: str) -> list[tuple[str, str]]:
        return [(kind, str(number)) for number in range(count)]

    return EditPairs(pairs("online"), pairs("replay"), pairs("between"))


def test_a_round_has_seven_two_and_one_of_ten() -> None:
    drawn = draw_pairs([many(50), many(50)], 40, seed=0)
    kinds = Counter(pair[0] for _, pair in drawn)
    assert kinds == {"online": 28, "replay": 8, "between": 4}
    assert len(set(drawn)) == 40 and {place for place, _ in drawn} == {0, 1}
    assert draw_pairs([many(50), many(50)], 40, seed=0) == drawn
    assert draw_pairs([many(50), many(50)], 40, seed=1) != drawn
    assert [pair[0] for _, pair in drawn[:28]] != ["online"] * 28  # mixed


def test_kinds_without_pairs_leave_their_part_and_few_pairs_are_drawn_in_turns() -> None:
    drawn = draw_pairs([EditPairs([("E", "a"), ("E", "b")], [], [])], 5, seed=3)
    counts = Counter(pair for _, pair in drawn)
    assert sorted(counts.values()) == [2, 3]
    only = draw_pairs([EditPairs([], [("E", "a")], [])], 3, seed=0)
    assert only == [(0, ("E", "a"))] * 3
    assert draw_pairs([EditPairs([], [], [])], 3, seed=0) == []


def test_the_rows_of_ditto_have_the_answers_that_the_rater_saw() -> None:
    better = Verdict("ranked", [[0], [1]], edited="A much better one.")
    skipped = Verdict("skip", edited="Mine.")
    export = to_edits([vote(1, better), vote(2, FIRST), vote(3, skipped)])
    assert [row["completion"][0]["content"] for row in export.rows] == [
        *("A much better one.", "Mine."),
    ]
    assert [row["worse"] for row in export.rows] == [["one answer", "another one here"], []]
    assert export.left_out == {"votes without an edited answer": 1}
    assert training_rows("edits", [vote(1, better)]).rows == export.rows[:1]
    with pytest.raises(KeyError):
        training_rows("unknown", [])
