"""Statistics of a store, its settings and the reward head's guesses, worked out by hand."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.preferences import schema
from lorarlhf.preferences.exports import better_and_worse
from lorarlhf.preferences.guesses import Guess, add_guess, newest_guesses
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.preferences.settings import read_setting, write_setting
from lorarlhf.preferences.statistics import (
    RaterCount,
    VoteCount,
    agreement,
    count_asked,
    count_by_rater,
    count_ordered_pairs,
    count_to_train_on,
    count_votes,
    newest_judgement,
    self_agreement,
)
from lorarlhf.preferences.store import Store

ANSWERS = (("One.", "base"), ("Two.", "runs/1"))
FIRST, SECOND, SKIP = Verdict("ranked", [[0], [1]]), Verdict("ranked", [[1], [0]]), Verdict("skip")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "preferences.sqlite")


def vote(store: Store, item: int, rater: str, verdict: Verdict, repeats: int | None = None) -> int:
    return store.judge(store.present(item, rater, repeats).token, verdict)


def test_votes_are_counted_by_kind_and_by_rater(store: Store) -> None:
    items = [store.add_item(f"{n}?", ANSWERS) for n in range(3)]
    compared = store.add_item("3?", ANSWERS, purpose="compare")
    undone = vote(store, items[0], "ann", FIRST)
    store.correct(undone, None)
    vote(store, items[1], "ann", SECOND)
    vote(store, items[2], "ann", SECOND)
    vote(store, compared, "bob", Verdict("tie"))
    store.rater("carol")
    assert set(count_votes(store)) == {
        VoteCount("ranked", "ann", "train", 2),
        VoteCount("tie", "bob", "compare", 1),
    }
    assert count_by_rater(store) == [
        RaterCount("ann", 2, False),
        RaterCount("bob", 1, False),
        RaterCount("carol", 0, False),
    ]


def test_agreement_compares_raters_on_the_same_pairs(store: Store) -> None:
    items = [store.add_item(f"{n}?", ANSWERS) for n in range(4)]
    verdicts = [(FIRST, FIRST), (FIRST, SECOND), (Verdict("tie"), Verdict("both_bad"))]
    for item, (ann, bob) in zip(items, [*verdicts, (FIRST, SKIP)], strict=True):
        vote(store, item, "ann", ann)
        vote(store, item, "bob", bob)
    assert agreement(store) == {"pairs": 3, "same": 2}


def test_self_agreement_compares_a_vote_with_its_repeat(store: Store) -> None:
    for number, again in enumerate((FIRST, SECOND, SKIP)):
        item = store.add_item(f"{number}?", ANSWERS)
        shown = store.present(item, "ann")
        store.judge(shown.token, FIRST)
        vote(store, item, "ann", again, repeats=shown.id)
    assert self_agreement(store) == {"repeats": 2, "same": 1}
    assert agreement(store) == {"pairs": 0, "same": 0}


def test_prompts_are_counted_by_their_items_for_training(store: Store) -> None:
    talk = [{"role": "user", "content": "Why?"}]
    for prompt, purpose in (
        (talk, "train"),
        ("What?", "train"),
        (talk, "train"),
        (talk, "compare"),
    ):
        store.add_item(prompt, ANSWERS, purpose=purpose)
    in_another_order = [{"content": "Why?", "role": "user"}]
    assert count_asked(store, ["What?", "Who?", talk, in_another_order]) == [1, 0, 2, 2]
    assert count_asked(store, []) == []


def test_every_change_has_a_newer_judgement(store: Store) -> None:
    assert newest_judgement(store) is None
    number = vote(store, store.add_item("?", ANSWERS), "ann", FIRST)
    assert newest_judgement(store) == number
    undone = store.correct(number, None)
    assert newest_judgement(store) == undone > number


def test_settings_are_kept_by_name(store: Store) -> None:
    assert read_setting(store, "collect") is None
    write_setting(store, "collect", {"model": "newest", "answers": 2})
    write_setting(store, "other", 0.5)
    write_setting(store, "collect", {"model": "base"})
    again = Store(store.path)
    assert (
        read_setting(again, "collect") == {"model": "base"} and read_setting(again, "other") == 0.5
    )


def test_guesses_are_those_of_current_votes_the_newest_first(store: Store) -> None:
    votes = [vote(store, store.add_item(f"{n}?", ANSWERS), "ann", FIRST) for n in range(4)]
    guesses = [Guess(number, 1.0, 0.0, 0.5, place) for place, number in enumerate(votes)]
    for guess in guesses:
        add_guess(store, guess)
    add_guess(store, Guess(votes[3], 0.0, 1.0, 0.5, 99))  # a second one is not taken
    store.correct(votes[1], SECOND)
    assert newest_guesses(store, "ann", 10) == [guesses[3], guesses[2], guesses[0]]
    assert newest_guesses(store, "ann", 1) == [guesses[3]] and newest_guesses(store, "bob", 9) == []
    sure = Guess(vote(store, store.add_item("?", ANSWERS), "bob", FIRST), 1.0, 0.0, 0.5, 4, 0.875)
    add_guess(store, sure)
    assert newest_guesses(store, "bob", 9) == [sure]


def test_guesses_of_an_earlier_version_have_no_confidence(tmp_path: Path) -> None:
    file = tmp_path / "old.sqlite"
    old = sqlite3.connect(file)
    old.executescript("".join(schema.MIGRATIONS[:4]) + "PRAGMA user_version = 4;")
    old.executescript(
        """
        INSERT INTO prompt VALUES (1, 'd', '"?"', 'file', 0);
        INSERT INTO rater (id, name, created_at) VALUES (1, 'ann', 0);
        INSERT INTO item (id, prompt_id, purpose, created_at) VALUES (1, 1, 'train', 0);
        INSERT INTO presentation (id, token, item_id, rater_id, shown, created_at)
            VALUES (1, 't', 1, 1, '[0, 1]', 0);
        INSERT INTO judgement (id, presentation_id, verdict, ranking, voted_at, created_at)
            VALUES (1, 1, 'ranked', '[[0], [1]]', 0, 0);
        INSERT INTO guess VALUES (1, 1.0, 0.0, 0.5, 7, 0);
        """
    )
    old.close()
    store = Store(file)
    assert newest_guesses(store, "ann", 9) == [Guess(1, 1.0, 0.0, 0.5, 7, None)]


def test_votes_to_train_on_are_ones_own_and_imported_ones(store: Store) -> None:
    def cast(verdict: Verdict, rater: str = "ann", **more: Any) -> int:
        shown = store.present(store.add_item("Why?", ANSWERS, **more), rater)
        return store.judge(shown.token, verdict)

    undone = cast(FIRST)
    store.correct(undone, None)
    store.correct(cast(FIRST), Verdict("tie"))
    cast(Verdict("both_bad"))
    cast(Verdict("skip"))
    cast(FIRST, purpose="compare")
    cast(FIRST, rater="bob")
    add_votes(store, [ImportedVote("Why?", tuple(ANSWERS), FIRST)])
    assert count_to_train_on(store, "ann", 150) == 3
    assert count_to_train_on(store, "ann", 2) == 2
    assert count_to_train_on(store, "eve", 150) == 1


def test_ordered_pairs_are_those_that_a_head_learns_from(store: Store) -> None:
    def cast(verdict: Verdict, answers: int = 2, rater: str = "ann", **more: Any) -> int:
        texts = [(f"Answer {n}.", "base") for n in range(answers)]
        return vote(store, store.add_item("Why?", texts, **more), rater, verdict)

    edit = "A better one."
    cast(FIRST)  # 1
    cast(SECOND)  # 1
    cast(Verdict("tie"))
    cast(Verdict("ranked", [[2], [0, 1]]), 4)  # 2, and these three above the fourth: 5
    cast(Verdict("ranked", [[3]]), 4)  # 3
    cast(Verdict("ranked", [[0], [1]], edited=edit))  # 2: the edit beats the first one only
    cast(Verdict("both_bad", edited=edit))  # 2
    cast(Verdict("skip", edited=edit))
    assert count_ordered_pairs(store, "ann") == 14
    own = [pair for one in store.votes(rater="ann") for pair in better_and_worse(one)]
    assert len(own) == 14  # as the Insights page counts them
    store.correct(cast(FIRST), None)
    store.correct(cast(FIRST), Verdict("tie"))
    cast(FIRST, purpose="compare")
    cast(FIRST, rater="bob")
    assert count_ordered_pairs(store, "ann") == 14
    add_votes(store, [ImportedVote("Why?", tuple(ANSWERS), one) for one in (FIRST, Verdict("tie"))])
    assert count_ordered_pairs(store, "ann") == 15 and count_ordered_pairs(store, "eve") == 1
