"""Undo and corrections: the right vote, once, with its item shown again."""

import sqlite3
from pathlib import Path

import pytest

from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.preferences.store import Store
from lorarlhf.preferences.undo import last_vote, undo
from lorarlhf.runtime.errors import UserError

FIRST, SECOND = Verdict("ranked", [[0], [1]]), Verdict("ranked", [[1], [0]])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "preferences.sqlite")


def pair(store: Store, prompt: str = "Why?", **more: str) -> int:
    return store.add_item(prompt, [("Because.", "base"), ("No idea.", "policy")], **more)


def test_undo_shows_the_item_again_and_keeps_all_rows(store: Store) -> None:
    item = pair(store)
    store.judge(store.present(item, "ann").token, FIRST)
    store.judge(store.present(pair(store, "When?"), "bob").token, SECOND)
    again = undo(store, "ann")
    assert again is not None and again.item_id == item
    assert [vote.rater for vote in store.votes()] == ["bob"]  # the other's is as it was
    store.judge(again.token, SECOND)
    assert [vote.verdict for vote in store.votes(rater="ann")] == [SECOND]
    assert undo(store, "ann") is not None and undo(store, "ann") is None
    assert undo(store, "nobody") is None
    kept = sqlite3.connect(store.path).execute("SELECT verdict FROM judgement ORDER BY id")
    assert [row[0] for row in kept] == ["ranked", "ranked", "undone", "ranked", "undone"]


def test_a_stale_page_cannot_bring_back_an_undone_vote(store: Store) -> None:
    shown = store.present(pair(store), "ann")
    store.judge(shown.token, FIRST)
    again = undo(store, "ann")
    assert again is not None and again.token != shown.token
    with pytest.raises(UserError, match="changed elsewhere in the meantime"):
        store.judge(shown.token, SECOND)
    assert store.count() == 0


def test_a_second_click_on_undo_undoes_nothing_more(store: Store) -> None:
    numbers = [store.judge(store.present(pair(store, f"{n}?"), "ann").token, FIRST) for n in (1, 2)]
    first = undo(store, "ann", expected=numbers[1])
    assert first == undo(store, "ann", expected=numbers[1])
    assert [vote.id for vote in store.votes()] == numbers[:1]


def test_undo_of_a_corrected_vote_undoes_the_correction(store: Store) -> None:
    item = pair(store)
    old = store.judge(store.present(item, "ann").token, FIRST)
    new = store.correct(old, SECOND)
    assert last_vote(store, "ann") == new
    again = undo(store, "ann", expected=old)
    assert again is not None and store.votes() == [] and last_vote(store, "ann") is None
    assert undo(store, "ann", expected=new) == again
    store.judge(again.token, FIRST)
    assert len(store.votes()) == 1


def test_undo_takes_the_last_cast_though_the_clock_went_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = []
    for hour in (3, 1, 2):
        for module in ("store", "rows"):
            monkeypatch.setattr(f"lorarlhf.preferences.{module}.now", lambda h=hour: h * 3_600_000)
        numbers.append(store.judge(store.present(pair(store, f"{hour}?"), "ann").token, FIRST))
    for left in (2, 1, 0):
        assert last_vote(store, "ann") == numbers[left]
        assert undo(store, "ann") is not None
        assert store.count() == left


def test_undo_leaves_imported_votes_alone(store: Store) -> None:
    own = store.judge(store.present(pair(store), "ann").token, FIRST)
    answers = (("Because.", "base"), ("No idea.", "policy"))
    later = ImportedVote("When?", answers, FIRST, rater="ann", created_at=4_000_000_000_000)
    add_votes(store, [later])
    assert last_vote(store, "ann") == own
    assert undo(store, "ann") is not None
    assert undo(store, "ann") is None and store.count() == 1


def test_undo_after_a_correction_of_an_earlier_vote_takes_the_later_one(store: Store) -> None:
    first, second = (
        store.judge(store.present(pair(store, f"{n}?"), "ann").token, FIRST) for n in (1, 2)
    )
    store.correct(first, SECOND)
    assert last_vote(store, "ann") == second


def test_undo_keeps_the_sides(store: Store) -> None:
    item = pair(store)
    for shown in ([0, 1], [1, 0]):
        number = store.judge(store.present(item, "ann", shown=shown).token, FIRST)
        again = undo(store, "ann", expected=number)
        assert again is not None and again.shown == shown
        store.judge(again.token, FIRST)


def test_a_correction_keeps_the_time_of_the_vote(store: Store) -> None:
    old = store.judge(store.present(pair(store), "ann").token, FIRST, 900, created_at=5_000)
    store.judge(store.present(pair(store, "When?"), "ann").token, FIRST, created_at=6_000)
    store.correct(old, SECOND)
    assert [(vote.prompt, vote.created_at) for vote in store.votes()] == [
        ("Why?", 5_000),
        ("When?", 6_000),
    ]
    assert store.votes()[0].milliseconds == 900
    last = undo(store, "ann")
    assert last is not None and [vote.prompt for vote in store.votes()] == ["Why?"]
