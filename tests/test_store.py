"""The preference store: each vote as the rater meant it, once, and never lost or changed."""

import sqlite3
import threading
from pathlib import Path

import pytest

from lorarlhf.preferences.records import Verdict, check_verdict, stable_order
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError

PROMPT = [{"role": "user", "content": "Name a quiet hobby."}]
FIRST, SECOND = Verdict("ranked", [[0], [1]]), Verdict("ranked", [[1], [0]])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "preferences.sqlite")


def pair(store: Store, prompt: str = "Why?", **more: str) -> int:
    return store.add_item(prompt, [("Because.", "base"), ("No idea.", "policy")], **more)


def test_a_vote_is_stored_with_its_prompt_and_answers(store: Store) -> None:
    item = store.add_item(PROMPT, [("Drawing.", "base"), ("Drums!", "runs/3")], origin={"row": 7})
    shown = store.present(item, "ann")
    verdict = Verdict("ranked", [[1], [0]], "clearly", "fun", "Drums, softly.")
    number = store.judge(shown.token, verdict, 1234)
    store.close()
    (vote,) = Store(store.path).votes()  # another one, from the disk
    assert (vote.id, vote.rater, vote.purpose, vote.prompt) == (number, "ann", "train", PROMPT)
    assert (vote.completions, vote.sources) == (["Drawing.", "Drums!"], ["base", "runs/3"])
    assert (vote.verdict, vote.shown, vote.milliseconds) == (verdict, shown.shown, 1234)
    assert vote.origin == {"row": 7} and vote.repeats is None


def test_a_second_vote_with_the_same_token_changes_nothing(store: Store) -> None:
    shown = store.present(pair(store), "ann")
    assert store.judge(shown.token, FIRST) == store.judge(shown.token, SECOND)
    (vote,) = store.votes()
    assert vote.verdict == FIRST and store.count() == 1
    with pytest.raises(UserError, match="Reload"):
        store.judge("unknown", FIRST)


def test_a_vote_is_replaced_by_its_correction_once(store: Store) -> None:
    number = store.judge(store.present(pair(store), "ann").token, FIRST)
    newer = store.correct(number, SECOND)
    (vote,) = store.votes()
    assert (vote.id, vote.verdict) == (newer, SECOND)
    with pytest.raises(UserError, match="changed elsewhere"):
        store.correct(number, FIRST)
    store.correct(newer, Verdict("both_bad"))
    assert [v.verdict.verdict for v in store.votes()] == ["both_bad"]


def test_judgements_can_be_neither_changed_nor_deleted(store: Store) -> None:
    store.judge(store.present(pair(store), "ann").token, FIRST)
    db = sqlite3.connect(store.path)
    for words in ("UPDATE judgement SET verdict = 'skip'", "DELETE FROM judgement"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            db.execute(words)


def test_sides_are_shuffled_in_a_fixed_order_and_repeats_reverse_it(store: Store) -> None:
    items = [pair(store, f"Question {n}?") for n in range(60)]
    orders = [store.present(item, "ann").shown for item in items]
    assert orders == [store.present(item, "ann").shown for item in items]
    assert 15 < sum(order == [0, 1] for order in orders) < 45
    assert orders != [store.present(item, "bob").shown for item in items]
    first = store.present(items[0], "ann")
    assert store.present(items[0], "ann", repeats=first.id).shown == first.shown[::-1]
    assert sorted(stable_order("ann", 1, 5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("verdict", "count", "said"),
    [
        (Verdict("better"), 2, "a verdict is one of"),
        (Verdict("ranked", [[0], [1]], "very"), 2, "strength is one of"),
        (Verdict("tie", [[0, 1]]), 2, "does not go with"),
        (Verdict("ranked", [[0], [2]]), 2, "positions 0 to 1"),
        (Verdict("ranked", [[0], [0]]), 2, "at most once"),
        (Verdict("ranked", []), 2, "at least one tier"),
        (Verdict("ranked", [[0], []]), 2, "none is empty"),
        (Verdict("ranked", [[0, 1]]), 2, "is a tie"),
        (Verdict("undone"), 2, "a verdict is one of"),
        (Verdict("ranked", [[0]]), 1, "good or bad"),
        (Verdict("tie"), 1, "good or bad"),
    ],
)
def test_invalid_verdicts_are_refused(verdict: Verdict, count: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_verdict(verdict, count)


def test_rankings_may_have_ties_and_leave_answers_out(store: Store) -> None:
    item = store.add_item("Why?", [(f"Answer {n}", "base") for n in range(4)])
    for number, ranking in enumerate(([[2], [0, 1], [3]], [[3]], [[1, 2]])):
        store.judge(store.present(item, f"rater {number}").token, Verdict("ranked", ranking))
    assert [vote.verdict.ranking for vote in store.votes()] == [[[2], [0, 1], [3]], [[3]], [[1, 2]]]
    for wrong in (0, 1, 7):
        with pytest.raises(ValueError, match="2 to 6 answers"):
            store.add_item("Why?", [("x", "base")] * wrong)
    with pytest.raises(ValueError, match="1 to 6 answers"):
        store.add_item("Why?", [], alone=True)


def test_votes_have_a_purpose(store: Store) -> None:
    for purpose in ("train", "compare"):
        store.judge(store.present(pair(store, purpose, purpose=purpose), "ann").token, FIRST)
    assert [vote.prompt for vote in store.votes(purpose="compare")] == ["compare"]
    with pytest.raises(ValueError, match="train or compare"):
        pair(store, purpose="else")


def test_the_newest_votes_are_in_order_of_time(store: Store) -> None:
    for number in range(6):
        store.judge(store.present(pair(store, f"{number}?"), "ann").token, FIRST)
    assert [vote.prompt for vote in store.votes(newest=3)] == ["3?", "4?", "5?"]
    assert store.count("ann") == 6 and store.count("bob") == 0
    assert store.count(since=store.votes()[-1].created_at + 1) == 0


def test_a_prompt_is_stored_once(store: Store) -> None:
    assert (
        store.add_prompt("Why?") == store.add_prompt("Why?", "a file") != store.add_prompt("What?")
    )


def test_threads_share_a_store(store: Store) -> None:
    def vote(name: str) -> None:
        for number in range(25):
            store.judge(store.present(pair(store, f"{name} {number}?"), name).token, FIRST)

    threads = [threading.Thread(target=vote, args=(f"rater {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.count() == 100 and all(store.count(f"rater {n}") == 25 for n in range(4))


def test_a_reload_keeps_the_presentation(store: Store) -> None:
    item = pair(store)
    shown = store.present(item, "ann")
    assert store.present(item, "ann") == shown != store.present(item, "bob")
    store.judge(shown.token, FIRST)
    later = store.present(item, "ann")
    assert later.token != shown.token and later.shown == shown.shown
