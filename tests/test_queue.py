"""What a rater is asked next: queues, shared items, repeats, items left open, races."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from lorarlhf.preferences import queue
from lorarlhf.preferences.queue import REPEAT_AFTER, STALE_SECONDS, Shown, is_shared, next_shown
from lorarlhf.preferences.records import Verdict
from lorarlhf.preferences.store import Store
from lorarlhf.preferences.undo import undo
from tests.pages import FIRST, pair


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "votes.sqlite")


def ask(store: Store, rater: str, share: float = 0.0) -> Shown:
    shown = next_shown(store, rater, repeat_share=share)
    assert shown is not None
    return shown


def vote(store: Store, rater: str, share: float = 0.0, verdict: Verdict = FIRST) -> Shown:
    shown = ask(store, rater, share)
    store.judge(shown.presentation.token, verdict)
    return shown


def items(store: Store, rater: str, first: Sequence[int] = ()) -> list[int]:
    """The items that a rater is asked until none is left."""
    found = []
    while shown := next_shown(store, rater, repeat_share=0.0, first=first):
        store.judge(shown.presentation.token, FIRST)
        found.append(shown.presentation.item_id)
    return found


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Set the clock forward."""
    then = time.time() + seconds
    monkeypatch.setattr(queue.time, "time", lambda: then)
    monkeypatch.setattr("lorarlhf.preferences.store.now", lambda: int(1000 * then))


# ---- whose turn it is


def test_items_are_asked_in_order_and_of_one_rater_each(store: Store) -> None:
    made = [pair(store, f"{n}?") for n in range(6)]
    ann = [vote(store, "ann").presentation.item_id, vote(store, "ann").presentation.item_id]
    bob = [vote(store, "bob").presentation.item_id]
    assert ann == made[:2] and bob == made[2:3]
    assert queue.waiting(store) == 3
    assert items(store, "ann") == made[3:] and items(store, "bob") == []


def test_answers_are_in_the_order_on_the_screen(store: Store) -> None:
    for number in range(12):
        pair(store, f"{number}?")
    orders = set()
    for _ in range(12):
        shown = vote(store, "ann")
        texts = [f"A {shown.prompt}", f"B {shown.prompt}"]
        assert shown.completions == [texts[place] for place in shown.presentation.shown]
        orders.add(tuple(shown.presentation.shown))
    assert orders == {(0, 1), (1, 0)}


def test_the_open_item_is_shown_again_after_a_reload(store: Store) -> None:
    pair(store, "1?")
    pair(store, "2?")
    first = ask(store, "ann")
    assert ask(store, "ann") == first == ask(Store(store.path), "ann")
    assert ask(store, "bob").prompt == "2?"
    store.judge(first.presentation.token, FIRST)
    assert next_shown(store, "ann") is None


def test_shared_items_are_asked_of_all_and_first(store: Store) -> None:
    own = [pair(store, f"own {n}?") for n in range(4)]
    shared = [pair(store, f"shared {n}?", shared=True) for n in range(2)]
    ann, bob = items(store, "ann"), items(store, "bob")
    assert ann == shared + own and bob == shared


def test_about_the_requested_share_of_items_is_shared() -> None:
    digests = [f"prompt {number}" for number in range(4000)]
    for share in (0.0, 0.1, 0.5, 1.0):
        asked = sum(is_shared(digest, share) for digest in digests) / len(digests)
        assert abs(asked - share) < 0.02
    assert {d for d in digests if is_shared(d, 0.1)} < {d for d in digests if is_shared(d, 0.5)}


def test_blind_comparisons_have_their_own_queues(store: Store) -> None:
    with store.write() as db:
        for _ in range(2):
            db.execute("INSERT INTO taste_test VALUES (NULL, 'base', 'runs/1', 1, 0)")
    train = pair(store, "train?")
    tests = [pair(store, f"{n}?", purpose="compare", comparison=n, shared=True) for n in (1, 2)]
    for number, item in enumerate(tests, 1):
        shown = next_shown(store, "ann", purpose="compare", comparison=number)
        assert shown is not None and shown.presentation.item_id == item
        assert queue.waiting(store, "compare", number) == 0
    assert items(store, "ann") == [train]
    assert next_shown(store, "ann", purpose="compare") is None


def test_items_that_are_put_first_are_asked_first(store: Store) -> None:
    made = [pair(store, f"{n}?") for n in range(6)]
    shared = pair(store, "shared?", shared=True)
    other = pair(store, "compare?", purpose="compare")
    wanted = [other, 999, made[4], made[1], made[3]]
    assert items(store, "ann", wanted) == [shared, *(made[n] for n in (4, 1, 3, 0, 2, 5))]
    assert items(store, "bob", made) == [shared]


def test_unseen_items_come_with_their_answers(store: Store) -> None:
    prompt = [{"role": "user", "content": "many?"}]
    three = store.add_item(prompt, [(text, "base") for text in ("x", "y", "z")])
    asked = pair(store, "1?", shared=True)  # a shared one is asked first
    two = pair(store, "2?")
    pair(store, "compare?", purpose="compare")
    assert ask(store, "ann").presentation.item_id == asked
    assert queue.unseen(store, 9) == [
        (three, prompt, ["x", "y", "z"]),
        (two, "2?", ["A 2?", "B 2?"]),
    ]
    drawn = {queue.unseen(store, 1)[0][0] for _ in range(60)}
    assert drawn == {three, two}


# ---- repeats


def test_repeats_come_late_with_swapped_sides_and_their_share(store: Store) -> None:
    for number in range(260):
        pair(store, f"{number}?")
    order: dict[int, tuple[int, list[int]]] = {}
    repeated: set[int] = set()
    for place in range(240):
        shown = vote(store, "ann", share=0.2).presentation
        of = store.rows("SELECT repeats FROM presentation WHERE id = ?", (shown.id,))[0][0]
        if of is not None:
            assert place - order[of][0] > REPEAT_AFTER and of not in repeated
            assert shown.shown == order[of][1][::-1]
            repeated.add(of)
        order[shown.id] = (place, shown.shown)
    assert 30 <= len(repeated) <= 66  # 48, and three standard deviations
    assert len({vote.item_id for vote in store.votes()}) == 240 - len(repeated)


def test_a_repeat_counts_current_votes_only(store: Store) -> None:
    for number in range(40):
        pair(store, f"{number}?")
    for place in range(REPEAT_AFTER):
        vote(store, "ann", share=1.0)
        for _ in range(3):  # taken back and cast anew: still one vote
            assert undo(store, "ann") is not None
            assert vote(store, "ann", share=1.0).prompt == f"{place}?"
    assert vote(store, "ann", share=1.0).prompt == f"{REPEAT_AFTER}?"
    assert vote(store, "ann", share=1.0).prompt == "0?"


def test_skipped_or_undone_items_are_not_repeated(store: Store) -> None:
    for number in range(40):
        pair(store, f"{number}?")
    vote(store, "ann", verdict=Verdict("skip"))
    vote(store, "ann")
    undo(store, "ann")
    vote(store, "ann", verdict=Verdict("skip"))
    for _ in range(REPEAT_AFTER):
        vote(store, "ann")
    assert vote(store, "ann", share=1.0).prompt == "12?"  # of 0 and 1 there is nothing to repeat
    assert vote(store, "ann", share=1.0).prompt == "2?"
    assert all(vote(store, "bob", share=1.0).prompt != "2?" for _ in range(3))


def test_a_reload_does_not_draw_again(store: Store) -> None:
    for number in range(20):
        pair(store, f"{number}?")
    for _ in range(REPEAT_AFTER + 1):
        vote(store, "ann")
    asked = ask(store, "ann", share=1.0)
    assert asked.prompt == "0?" and ask(store, "ann", share=1.0) == asked


# ---- what was left


def test_an_item_left_open_is_asked_of_another_after_half_an_hour(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair(store)
    ask(store, "ann")
    assert next_shown(store, "bob") is None
    later(monkeypatch, STALE_SECONDS - 5)
    assert next_shown(store, "bob") is None
    later(monkeypatch, STALE_SECONDS + 5)
    taken = ask(store, "bob")
    assert next_shown(store, "ann") is None  # it is bob's now
    assert next_shown(store, "cem") is None  # and of nobody else beside him
    later(monkeypatch, 2 * STALE_SECONDS + 10)
    assert ask(store, "bob") == taken
    store.judge(taken.presentation.token, FIRST)
    assert next_shown(store, "cem") is None


def test_a_late_vote_on_an_item_left_open_is_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair(store)
    old = ask(store, "ann")
    later(monkeypatch, STALE_SECONDS + 5)
    new = ask(store, "bob")
    store.judge(old.presentation.token, FIRST)
    assert ask(store, "bob") == new
    store.judge(new.presentation.token, FIRST)
    assert store.count("ann") == store.count("bob") == 1


def test_an_open_repeat_is_asked_of_nobody_else(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(REPEAT_AFTER + 1):
        pair(store, f"{number}?")
        vote(store, "ann")
    assert ask(store, "ann", share=1.0).prompt == "0?"
    later(monkeypatch, STALE_SECONDS + 5)
    assert next_shown(store, "bob") is None
    assert ask(store, "ann").prompt == "0?"


# ---- races


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_two_raters_at_once_never_get_the_same_item(
    store: Store, apart: bool, ordered: bool
) -> None:
    made = {pair(store, f"{n}?") for n in range(60)}
    first = sorted(made, reverse=True)[::2] if ordered else []
    found: dict[str, list[int]] = {}

    def work(name: str) -> None:
        own = Store(store.path) if apart else store
        found[name] = items(own, name, first)

    threads = [threading.Thread(target=work, args=(f"rater {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asked = [item for taken in found.values() for item in taken]
    assert len(asked) == 60 and set(asked) == made


def test_two_tabs_of_one_rater_get_the_same_item(store: Store) -> None:
    for number in range(5):
        pair(store, f"{number}?")
    start, found = threading.Barrier(6), []

    def work() -> None:
        start.wait()
        found.append(ask(store, "ann").presentation)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({shown.token for shown in found}) == 1
