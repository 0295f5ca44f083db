"""Argilla's exports: what is read, what is left out, and what is said."""

from pathlib import Path
from typing import Any

import pytest

from lorarlhf.preferences.import_argilla import NOT_SUBMITTED, OTHER_QUESTION, UNANSWERED
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import Verdict
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError
from tests.vote_files import FIRST, SECOND, Row, only, read, talk

RANKED_BY = [{"value": "response2", "rank": 1}, {"value": "response1", "rank": 2}]


def record(value: Any = None, fields: Row | None = None, **more: Any) -> Row:
    """A record of Argilla's version 2 with one answer, to the question "preference"."""
    fields = fields or {"prompt": "Why?", "response1": "A", "response2": "B"}
    value = RANKED_BY if value is None else value
    answer = {"user_id": "u-1", "value": value} | more
    return {"id": "r-1", "fields": fields, "responses": {"preference": [answer]}}


@pytest.mark.parametrize(
    ("fields", "prompt", "unused"),
    [
        ({"source": "evol_instruct", "instruction": "Why?"}, "Why?", {"source": "evol_instruct"}),
        ({"id2": "x", "Question": "Why?", "lang": "en"}, "Why?", {"id2": "x", "lang": "en"}),
        ({"anything": "Why?"}, "Why?", {}),
        ({"prompt": "Why?", "context": "It rains."}, "Why?\n\nIt rains.", {}),
        ({"context": "It rains.", "prompt": "Why?"}, "It rains.\n\nWhy?", {}),
        ({"prompt": "Why?", "context": None}, "Why?", {}),
        ({"instruction": "Translate.", "input": "Ja."}, "Translate.\n\nJa.", {}),
        (
            {"system_prompt": "Be brief.", "prompt": "Why?"},
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
            {},
        ),
        ({"chat": talk("Hi", "Hello", "Why?")}, talk("Hi", "Hello", "Why?"), {}),
        ({"chat": talk("Hi"), "context": "Rain."}, talk("Hi\n\nRain."), {}),
    ],
)
def test_the_prompt_of_an_argilla_record(
    fields: Row, prompt: Any, unused: Row, tmp_path: Path
) -> None:
    vote = only(read(tmp_path, record(fields=fields | {"response1": "A", "response2": "B"})))
    assert vote.prompt == prompt and vote.verdict == SECOND and vote.rater == "u-1"
    assert vote.origin == ({"fields": unused} if unused else {})
    assert [text for text, _ in vote.completions] == ["A", "B"]


def test_an_argilla_record_without_a_clear_prompt_is_refused(tmp_path: Path) -> None:
    fields = {"source": "x", "topic": "y", "response1": "A", "response2": "B"}
    with pytest.raises(UserError, match='line 1, field "fields": expected one that holds the pro'):
        read(tmp_path, record(fields=fields))


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        ("Response 2", SECOND),
        ("response-1", FIRST),
        ("Assistant response 2", SECOND),
        ("2", SECOND),
        ("tie", Verdict("tie")),
        ("Both bad", Verdict("both_bad")),
        (["response2", "response1"], SECOND),
        ({"value": ["response1", "response2"], "rank": [2, 1]}, SECOND),
        ([{"value": "Response 1", "rank": 1}, {"value": "Response 2", "rank": 1}], Verdict("tie")),
        ([{"value": "response2", "rank": 1}], Verdict("ranked", [[1]])),
        ([{"value": "response2", "rank": 1}, {"value": "response1", "rank": None}], [[1]]),
        (5, OTHER_QUESTION),
        ("helpful", OTHER_QUESTION),
        ([], OTHER_QUESTION),
        ({"start": 1}, OTHER_QUESTION),
    ],
)
def test_what_an_argilla_answer_says(value: Any, verdict: Any, tmp_path: Path) -> None:
    found = read(tmp_path, record(value))
    if isinstance(verdict, str):
        assert found.votes == [] and found.left_out == {verdict: 1}
    else:
        wanted = Verdict("ranked", verdict) if isinstance(verdict, list) else verdict
        assert only(found).verdict == wanted


def test_the_shapes_of_argilla_exports_give_the_same_vote(tmp_path: Path) -> None:
    fields = {"prompt": "Why?", "response1": "A", "response2": "B"}
    by_rater = [{"user_id": "u-1", "values": {"preference": {"value": RANKED_BY}}}]
    by_rater[0]["status"] = "submitted"
    answers = [{"user_id": "u-1", "value": RANKED_BY, "status": "submitted"}]
    flat = {"preference.responses": [["response2", "response1"]]}
    flat |= {"preference.responses.users": ["u-1"], "preference.responses.status": ["submitted"]}
    flat |= {"id": "1", "status": "completed", "source": "evol", "score": 0.5}
    suggested = {"preference-suggestion": None, "preference-suggestion-metadata": {"agent": "x"}}
    rows = [
        record(),
        {"fields": fields, "responses": by_rater, "metadata": {}, "suggestions": []},
        {**fields, "preference": answers, **suggested, "external_id": None, "metadata": "{}"},
        {**fields, **flat},
    ]
    for row in rows:
        vote = only(read(tmp_path, row))
        assert (vote.prompt, vote.verdict, vote.rater) == ("Why?", SECOND, "u-1")
    assert only(read(tmp_path, rows[3])).origin == {"fields": {"source": "evol"}}


def test_argilla_answers_that_are_no_votes_are_counted(tmp_path: Path) -> None:
    drafts = record(status="draft")
    discarded = {**drafts, "responses": [{"user_id": "u", "values": None, "status": "discarded"}]}
    open_one = {**drafts, "responses": None}
    found = read(tmp_path, record(status="submitted"), drafts, discarded, open_one, record(3))
    assert len(found.votes) == 1
    assert found.left_out == {NOT_SUBMITTED: 1, UNANSWERED: 3, OTHER_QUESTION: 1}


def test_two_raters_of_a_record_without_a_name_vote_on_one_item(tmp_path: Path) -> None:
    row = record() | {"id": None}
    row["responses"]["preference"].append({"user_id": None, "value": "Response 1"})
    found = read(tmp_path, row)
    assert [vote.rater for vote in found.votes] == ["u-1", "imported"]
    store = Store(tmp_path / "store.sqlite")
    add_votes(store, found.votes)
    assert len({vote.item_id for vote in store.votes()}) == 1
