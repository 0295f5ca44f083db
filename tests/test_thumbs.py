"""Thumbs and choices from another program: each once, the last one counts."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from lorarlhf.preferences import queue
from lorarlhf.preferences.exports import EXPORTS, better_and_worse, training_rows
from lorarlhf.preferences.history import describe
from lorarlhf.preferences.imports import read_votes
from lorarlhf.preferences.merge import merge_votes
from lorarlhf.preferences.records import Verdict
from lorarlhf.preferences.single_answers import SINGLE, SINGLES, in_pairs
from lorarlhf.preferences.store import Store
from lorarlhf.preferences.thumbs import NamedAnswer, give_choice, give_thumb
from lorarlhf.preferences.undo import undo
from lorarlhf.runtime.files import write_jsonl

PROMPT = [{"role": "user", "content": "Why?"}]
ONE = NamedAnswer("chatcmpl-1#0", PROMPT, "Because.", "base", {"temperature": 0.7})
TWO = NamedAnswer("chatcmpl-2#0", PROMPT, "Who knows?", "runs/0001-sft")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "votes.sqlite")


def test_the_same_thumb_is_one_and_another_replaces_it(store: Store) -> None:
    first = give_thumb(store, ONE, "me", True)
    assert first.outcome == "new"
    assert give_thumb(store, ONE, "me", True) == replace(first, outcome="same")
    (vote,) = store.votes()
    assert (vote.completions, vote.sources, vote.prompt) == (["Because."], ["base"], PROMPT)
    assert vote.sampling == [{"temperature": 0.7}] and vote.imported
    assert describe(vote.verdict, 1) == "good"
    changed = give_thumb(store, ONE, "me", False, "too short")
    assert changed.outcome == "changed" and changed.vote != first.vote
    (vote,) = store.votes()
    assert vote.verdict == Verdict("both_bad", note="too short") and store.count() == 1
    assert give_thumb(store, ONE, "you", True).outcome == "new" and store.count() == 2


def test_a_thumb_is_taken_back_and_given_again(store: Store) -> None:
    assert give_thumb(store, ONE, "me", None).outcome == "nothing"
    give_thumb(store, ONE, "me", True)
    assert give_thumb(store, ONE, "me", None).outcome == "taken back"
    assert store.votes() == [] and give_thumb(store, ONE, "me", None).outcome == "nothing"
    assert give_thumb(store, ONE, "me", False).outcome == "new"
    assert [vote.verdict.verdict for vote in store.votes()] == ["both_bad"]


def test_a_choice_and_its_reverse_are_one_vote(store: Store) -> None:
    assert give_choice(store, ONE, TWO, "me").outcome == "new"
    assert give_choice(store, ONE, TWO, "me").outcome == "same"
    assert training_rows("trl", store.votes()).rows[0]["chosen"][0]["content"] == "Because."
    assert give_choice(store, TWO, ONE, "me").outcome == "changed"
    assert training_rows("trl", store.votes()).rows[0]["chosen"][0]["content"] == "Who knows?"
    assert store.count() == 1
    with pytest.raises(ValueError, match="different prompts"):
        give_choice(store, ONE, replace(TWO, prompt="Who?"), "me")
    with pytest.raises(ValueError, match="are the same"):
        give_choice(store, ONE, replace(TWO, text="Because."), "me")


def test_thumbs_at_the_same_time_are_one(store: Store) -> None:
    stores = [Store(store.path) for _ in range(6)]
    threads = [threading.Thread(target=give_thumb, args=(s, ONE, "me", True)) for s in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.count() == 1
    assert store.rows("SELECT count(*) FROM item")[0][0] == 1


def test_kto_learns_from_thumbs_and_pairs_are_made_of_them(store: Store) -> None:
    give_thumb(store, ONE, "me", True)
    give_thumb(store, TWO, "me", False)
    rows = training_rows("kto", store.votes()).rows
    assert [(row["completion"][0]["content"], row["label"]) for row in rows] == [
        *(("Because.", True), ("Who knows?", False)),
    ]
    give_thumb(store, replace(ONE, name="chatcmpl-3#0", text="So."), "me", True)
    for form in ("trl", "trl-plain", "hh", "sharegpt"):
        export = EXPORTS[form](store.votes())
        assert len(export.rows) == 1 and export.left_out == {SINGLE: 1}, form
        assert "Because." in str(export.rows[0]["chosen"])
        assert "Who knows?" in str(export.rows[0]["rejected"])
    for form in ("arena", "argilla"):
        export = EXPORTS[form](store.votes())
        assert export.rows == [] and export.left_out == {SINGLES: 3}, form


def test_a_thumb_that_was_skipped_or_edited_later_is_not_paired(
    store: Store, tmp_path: Path
) -> None:
    """The History page offers both."""
    good = give_thumb(store, ONE, "me", True).vote
    bad = give_thumb(store, TWO, "me", False).vote
    assert good is not None and bad is not None
    skipped = store.correct(bad, Verdict("skip"))
    export = EXPORTS["trl"](store.votes())
    assert export.rows == [] and export.left_out == {SINGLE: 1, "skipped": 1}
    write_jsonl(tmp_path / "own.jsonl", EXPORTS["own"](store.votes()).rows)
    assert len(read_votes(tmp_path / "own.jsonl").votes) == 2
    store.correct(skipped, Verdict("both_bad", edited="Because it is."))
    rows = EXPORTS["trl-plain"](store.votes()).rows
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("Because it is.", "Who knows?")]


def test_every_good_answer_meets_a_bad_one_and_notes_are_kept(store: Store) -> None:
    for name, text, good, note in (
        *(("1", "A", False, "wrong"), ("2", "B", False, None)),
        *(("3", "A", True, None), ("4", "C", True, "right")),
    ):
        give_thumb(store, NamedAnswer(name, PROMPT, text, "base"), "me", good, note)
    paired = in_pairs(store.votes())
    pairs = [pair for vote in paired for pair in better_and_worse(vote)]
    assert pairs == [("A", "B"), ("C", "A")] and paired[1].verdict.note == "wrong\nright"


def test_thumbs_survive_an_export_of_our_own(store: Store, tmp_path: Path) -> None:
    give_thumb(store, ONE, "me", True)
    give_choice(store, ONE, TWO, "me")
    write_jsonl(tmp_path / "own.jsonl", EXPORTS["own"](store.votes()).rows)
    found = read_votes(tmp_path / "own.jsonl").votes
    other = Store(tmp_path / "other.sqlite")
    assert merge_votes(other, found).added == 2 and merge_votes(other, found).there == 2
    assert [vote.verdict for vote in other.votes()] == [vote.verdict for vote in store.votes()]


def test_the_pages_never_ask_for_a_single_answer(store: Store) -> None:
    names = [replace(ONE, name=f"chatcmpl-{n}#0") for n in range(3 * queue.REPEAT_AFTER)]
    for answer in names:
        give_thumb(store, answer, "me", True)
    assert queue.next_shown(store, "me", repeat_share=1.0) is None
    assert undo(store, "me") is None and store.count() == len(names)
