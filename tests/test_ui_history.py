"""The requests of the History page: votes are listed, corrected, undone, exported and imported."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


from lorarlhf.preferences.accounts import set_password
from lorarlhf.preferences.blind_comparisons import add_comparison
from lorarlhf.preferences.exports import EXPORTS
from lorarlhf.preferences.history import PAGE
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.queue import next_shown
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.history import NOT_YOURS, History
from lorarlhf_ui.history_page import _with_options
from tests.history_votes import FIRST, PASSWORD, filled_store, given


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled_store(tmp_path)


@pytest.fixture
def changed() -> list[str]:
    return []


@pytest.fixture
def history(store: Store, changed: list[str]) -> History:
    return History(store, changed.append, everybody=True)


# ---- the page's questions


def test_a_page_of_votes(history: History) -> None:
    view = history.search("me", {})
    assert (view["total"], view["start"], view["page"]) == (3, 0, PAGE)
    first = view["rows"][0]
    assert first["summary"] == "tie" and first["prompt"] == 'A "quiet" hobby? Say 100%.'
    assert history.search("me", {"scope": "all", "start": "x", "words": 7})["total"] == 0
    assert history.search("me", {"scope": "all", "verdict": "both_bad"})["rows"][0]["edited"]
    json.dumps(view)


def test_under_a_login_there_are_only_ones_own(store: Store) -> None:
    history = History(store, print)
    with pytest.raises(UserError, match="their own votes only"):
        history.search("me", {"scope": "all"})
    (other,) = store.votes(rater="ann")
    for ask in (history.open, history.correct, history.undo):
        with pytest.raises(UserError, match="changed elsewhere"):  # says not even that it is there
            ask("me", {"id": other.id, "vote": {"verdict": "tie"}})
    with pytest.raises(UserError, match="their own"):
        history.export("me", {"scope": "all", "form": "trl", "purpose": "train"})
    assert store.vote(other.id) == other


def test_a_vote_is_shown_in_full_and_harmless(history: History, store: Store) -> None:
    bad = "<img src=x onerror=alert(1)><script>alert(1)</script>"
    note = Verdict("both_bad", note=bad, edited=bad)
    add_votes(store, [given(9, note, prompt=bad, completions=((bad, bad), ("b", "base")))])
    (vote,) = store.votes(newest=1)
    view = history.open("me", {"id": vote.id})
    for markup in (view["prompt"], view["answers"][0]["html"], view["edited_html"]):
        assert "<img" not in markup and "<script" not in markup and "&lt;img" in markup
    assert view["note"] == bad and view["answers"][0]["source"] == bad  # the page makes them text


def test_a_correction(history: History, store: Store, changed: list[str]) -> None:
    vote = store.votes(rater="me")[0]
    form = {
        "verdict": "ranked",
        "ranking": "B > A",
        "strength": "much",
        "note": " hm ",
        "edited": "",
    }
    view = history.correct("me", {"id": vote.id, "vote": form})
    assert view["summary"] == view["row"]["summary"] == "B is better, much" and view["note"] == "hm"
    assert store.vote(vote.id) is None and changed == ["me"]
    again = history.correct("me", {"id": view["id"], "vote": form})
    assert again["message"] == "Nothing was changed." and again["id"] == view["id"]
    tie = history.correct("me", {"id": view["id"], "vote": {**form, "verdict": "tie"}})
    kept = store.vote(tie["id"])
    assert kept is not None and kept.verdict == Verdict("tie", note="hm")  # of no strength
    with pytest.raises(UserError, match="changed elsewhere"):
        history.correct("me", {"id": vote.id, "vote": form})


def test_letters_are_those_of_the_screen(history: History, store: Store) -> None:
    item = store.add_item("Three?", [(text, f"runs/{text}") for text in ("x", "y", "z")])
    shown = store.present(item, "me", shown=[2, 0, 1])  # A is z, B is x, C is y
    number = store.judge(shown.token, Verdict("ranked", [[2], [0, 1]]))
    view = history.open("me", {"id": number})
    assert [answer["source"] for answer in view["answers"]] == ["runs/z", "runs/x", "runs/y"]
    assert view["summary"] == view["ranking"] == "A > B = C"
    form = {"verdict": "ranked", "ranking": "C > A"}
    view = history.correct("me", {"id": number, "vote": form})
    kept = store.vote(view["id"])
    assert kept is not None and kept.verdict.ranking == [[1], [2]]
    assert view["ranking"] == "C > A" and view["row"]["summary"] == "C > A (B not ranked)"
    again = history.correct("me", {"id": view["id"], "vote": form})
    assert again["message"] == "Nothing was changed."
    history.undo("me", {"id": view["id"]})
    (waiting,) = store.rows("SELECT shown FROM presentation WHERE open = 1")
    assert waiting["shown"] == "[2, 0, 1]"


def test_a_blind_comparison_shows_no_names_before_its_end(history: History, store: Store) -> None:
    with store.write() as db:
        db.execute("INSERT INTO taste_test VALUES (1, 'base', 'runs/2', 2, 0)")
    numbers = []
    for place in range(2):
        answers = [("x", "base"), ("y", "runs/2")]
        item = store.add_item(f"{place}?", answers, purpose="compare", comparison=1)
        numbers.append(store.judge(store.present(item, "me").token, FIRST))
        sources = [answer["source"] for answer in history.open("me", {"id": numbers[0]})["answers"]]
        assert sorted(sources) == (["", ""] if place == 0 else ["base", "runs/2"])


@pytest.mark.parametrize(
    "form, why",
    [
        ({}, "a verdict is one of"),
        ({"verdict": "undone"}, "a verdict is one of"),
        ({"verdict": "ranked", "ranking": "C > A"}, "C is none of A, B"),
        ({"verdict": "ranked", "ranking": "A > B", "strength": "hugely"}, "strength is one of"),
        ({"verdict": "tie", "note": "x" * 20_001}, "a text has up to"),
    ],
)
def test_a_correction_that_does_not_fit(
    history: History, store: Store, changed: list[str], form: dict[str, Any], why: str
) -> None:
    before = store.votes()
    with pytest.raises(UserError, match=why):
        history.correct("me", {"id": before[0].id, "vote": form})
    assert store.votes() == before and changed == []


def test_an_undone_vote_is_shown_again(history: History, store: Store, changed: list[str]) -> None:
    vote = store.votes(rater="me", purpose="train")[0]
    view = history.undo("me", {"id": vote.id})
    assert view["gone"] == vote.id and "see these answers again" in view["message"]
    assert store.count("me") == 2 and changed == ["me"]
    shown = next_shown(store, "me")
    assert shown is not None and shown.presentation.item_id == vote.item_id
    with pytest.raises(UserError, match="changed elsewhere"):
        history.undo("me", {"id": vote.id})


def test_votes_of_others_are_changed_only_where_nobody_logs_in(
    history: History, store: Store, changed: list[str]
) -> None:
    (imported,), (ann,) = store.votes(rater="imported"), store.votes(rater="ann")
    set_password(store, "ann", PASSWORD)
    assert not history.open("me", {"id": ann.id})["yours"]
    with pytest.raises(UserError, match="This is ann's vote"):
        history.undo("me", {"id": ann.id})
    assert "again" not in history.undo("me", {"id": imported.id})["message"]
    assert changed == ["imported"] and store.count("imported") == 0
    assert store.rows("SELECT 1 FROM presentation WHERE open = 1") == []


# ---- files


def test_what_an_export_would_contain(history: History, store: Store) -> None:
    ask = {"form": "trl", "purpose": "all", "scope": "all"}
    view = history.export("me", ask)
    assert (view["votes"], view["rows"]) == (5, 6)
    assert view["left_out"] == ["1 ties, which name no better answer"]
    assert view["link"] == "files/votes?form=trl&scope=all&purpose=all"
    add_votes(store, [given(8)])
    assert history.export("me", ask)["rows"] == 7  # counted again
    # A data set with a card is of TRL's rows, and offered where it can be made.
    trl, as_set = (history.export("me", ask | {"form": form}) for form in ("trl", "dataset"))
    assert as_set["rows"] == trl["rows"] and "form=dataset" in as_set["link"]
    assert 'value="dataset"' in _with_options("FORMS", dataset=True)
    assert "dataset" not in _with_options("FORMS", dataset=False)
    with pytest.raises(UserError, match="form of an export"):
        history.export("me", {"form": "<b>", "purpose": "all"})


def test_a_file_is_imported(
    history: History, store: Store, changed: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "in.jsonl"
    rows = EXPORTS["own"](store.votes()).rows
    fresh = rows[0] | {"prompt": "New?", "item": "77", "presentation": 77}
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, fresh]))
    message = history.import_file("me", str(file))
    assert message == "Imported 1 vote from in.jsonl. Left out: 5 already in the store."
    assert changed == ["me"] and store.count() == 6
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{broken')
    with pytest.raises(UserError) as error:
        history.import_file("me", str(file))
    assert str(error.value).startswith("in.jsonl, line 2") and str(tmp_path) not in str(error.value)
    assert store.count() == 6
    message = history.import_file("me", str(file), skip_bad=True)
    assert message.startswith("Imported 1 vote from in.jsonl. Left out: 1 rows that can't be read.")
    assert message.splitlines()[1].startswith("in.jsonl, line 2") and str(tmp_path) not in message


def test_nobody_imports_votes_in_the_name_of_another(store: Store, tmp_path: Path) -> None:
    set_password(store, "ann", PASSWORD, "owner")
    set_password(store, "bob", PASSWORD)
    file = tmp_path / "in.jsonl"
    rows = [row | {"prompt": "New?"} for row in EXPORTS["own"](store.votes()).rows]
    names = zip(rows, ("ann", "bob", "worker 3", "bob", "bob"), strict=True)
    file.write_text("".join(json.dumps(row | {"rater": name}) + "\n" for row, name in names))
    message = History(store, print).import_file("ann", str(file))
    assert message == f"Imported 2 votes from in.jsonl. Left out: 3 {NOT_YOURS}."
    assert (store.count("ann"), store.count("bob"), store.count("worker 3")) == (2, 0, 1)


def test_words_and_names_are_found_in_any_unicode_form(store: Store, tmp_path: Path) -> None:
    composed, decomposed = "Café", "Cafe\u0301"
    add_votes(store, [ImportedVote(decomposed, (("a", "x"), ("b", "y")), FIRST, rater=decomposed)])
    history = History(store, print, everybody=True)
    assert history.search("me", {"scope": "all", "words": composed})["total"] == 1
    assert history.search("me", {"scope": "all", "words": decomposed})["total"] == 1
    set_password(store, composed, PASSWORD)
    file = tmp_path / "in.jsonl"
    rows = EXPORTS["own"](store.votes(rater=composed)).rows
    file.write_text("".join(json.dumps(row | {"rater": decomposed}) + "\n" for row in rows))
    set_password(store, "ann", PASSWORD, "owner")
    # The name of another rater, spelt otherwise.
    said = History(store, print).import_file("ann", str(file))
    assert said == f"Imported 0 votes from in.jsonl. Left out: 1 {NOT_YOURS}."


# ---- what the reward role likes


class Likes:
    """A reward role that says how long an answer is, as the engine's would."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, list[str]]] = []

    def is_there(self) -> bool:
        return True

    def heat_maps(self, prompt: Any, answers: list[str]) -> list[str]:
        self.asked.append((prompt, answers))
        return [f"<p>{len(answer)}</p>" for answer in answers]


def test_the_answers_of_a_vote_as_heat_maps(store: Store) -> None:
    reward: Any = Likes()
    history = History(store, print, everybody=False, reward=reward)
    vote = next(vote for vote in store.votes(rater="me") if len(vote.completions) == 3)
    assert history.open("me", {"id": vote.id})["liked"]
    shown = [vote.completions[place] for place in vote.shown]
    view = history.shares("me", {"id": vote.id})
    assert view["answers"] == [f"<p>{len(text)}</p>" for text in shown]  # in the screen's order
    assert reward.asked == [(vote.prompt, shown)]
    (other,) = store.votes(rater="ann")
    with pytest.raises(UserError, match="changed elsewhere"):
        history.shares("me", {"id": other.id})


def test_nothing_is_told_before_a_blind_comparison_is_over(store: Store) -> None:
    reward: Any = Likes()
    history = History(store, print, reward=reward)
    running = add_comparison(store, "base", "runs/1", 2)
    for prompt in ("One?", "Two?"):
        more: Any = {"purpose": "compare", "comparison": running.id, "shared": True}
        item = store.add_item(prompt, [("a", "base"), ("b", "runs/1")], **more)
        number = store.judge(store.present(item, "me").token, FIRST)
        told = history.open("me", {"id": number})["liked"]
        if prompt == "One?":
            assert not told
            with pytest.raises(UserError, match="Finish this blind comparison"):
                history.shares("me", {"id": number})
    assert told and history.shares("me", {"id": number})["answers"] and len(reward.asked) == 1


def test_without_a_reward_role_there_is_nothing_to_ask(history: History, store: Store) -> None:
    vote = store.votes(rater="me")[0]
    assert not history.open("me", {"id": vote.id})["liked"]
    with pytest.raises(UserError, match="no reward model"):
        history.shares("me", {"id": vote.id})
