"""Every export gives its votes back when it is imported, and no odd value breaks an importer."""

import copy
import json
import random
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.data.readers import (
    read_demonstrations,
    read_labelled,
    read_preferences,
    read_prompts,
)
from lorarlhf.preferences.exports import EXPORTS, better_and_worse
from lorarlhf.preferences.imports import read_votes
from lorarlhf.preferences.merge import Merged, add_votes, merge_votes
from lorarlhf.preferences.records import ImportedVote, Verdict, Vote
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_jsonl

HOSTILE = [
    "plain",
    "two\nlines\n\nand three ",
    " blanks before and after ",
    "\u2028 separators \x85 \x0b\x0c",
    "quotes \" ' \\ \\n and , ; \t",
    "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd",
    "caf\u00e9 cafe\u0301 \U0001f600 \ufeff",
    "<script>alert(1)</script> & <think>",
    "[{'role': 'user', 'content': 'x'}]",
    "null",
    "\nAssistant: not a turn",
    "=1+1",
]
VERDICTS = [
    Verdict("ranked", [[0], [1]]),
    Verdict("ranked", [[1], [0]], "much", "so much"),
    Verdict("tie"),
    Verdict("both_good", note="fine"),
    Verdict("both_bad", edited="Better, \u201cthis\u201d\n way "),
    Verdict("ranked", [[1], [0]], "slightly", "no", "My own."),
    Verdict("tie", edited="Neither."),
]


def given() -> list[ImportedVote]:
    """Votes of each verdict on hostile texts, by two raters, one of whom votes twice."""
    votes = []
    for n, text in enumerate(HOSTILE):
        verdict = VERDICTS[n % len(VERDICTS)]
        asked = f"{text} ({n})?"
        prompt: Any = asked if n % 3 else [{"role": "user", "content": asked}]
        answers = ((f"{text} A", "base"), (f"{text} B", "runs/3"))
        vote = ImportedVote(prompt, answers, verdict, "ann", f"item {n}", created_at=1000 + n)
        votes.append(vote)
    other = replace(votes[3], rater="b\u00f6b", verdict=VERDICTS[1], created_at=2000)
    again = replace(votes[3], verdict=VERDICTS[4], created_at=3000)
    talk = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    return [*votes, other, again, replace(votes[0], prompt=talk, item="talk")]


@pytest.fixture(scope="module")
def votes(tmp_path_factory: pytest.TempPathFactory) -> list[Vote]:
    store = Store(tmp_path_factory.mktemp("given") / "store.sqlite")
    add_votes(store, given())
    return store.votes()


def imported(form: str, votes: list[Vote], folder: Path) -> Store:
    write_jsonl(folder / "rows.jsonl", EXPORTS[form](votes).rows)
    store = Store(folder / f"{form}.sqlite")
    add_votes(store, read_votes(folder / "rows.jsonl").votes)
    return store


def conversation(prompt: Any) -> Any:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def text_of(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)


def essence(vote: Vote) -> str:
    """What all forms with whole votes keep."""
    about = vote.completions, vote.sources, vote.rater, asdict(vote.verdict)
    return text_of(conversation(vote.prompt), *about)


@pytest.mark.parametrize("form", ["own", "arena", "argilla"])
def test_whole_votes_come_back(form: str, votes: list[Vote], tmp_path: Path) -> None:
    store = imported(form, votes, tmp_path)
    assert sorted(map(essence, store.votes())) == sorted(map(essence, votes))
    items = len({vote.item_id for vote in votes})
    assert len({vote.item_id for vote in store.votes()}) == items
    if form != "argilla":  # whose answers have no time
        assert [v.created_at for v in store.votes()] == [v.created_at for v in votes]
    # Read once more, every vote is known: also where a text has become a user's message.
    again = read_votes(tmp_path / "rows.jsonl").votes
    assert merge_votes(store, again) == Merged(0, len(votes))
    source = Store(tmp_path / "source.sqlite")
    add_votes(source, given())
    assert merge_votes(source, again) == Merged(0, len(votes))


def test_kto_rows_give_back_all_but_ties(votes: list[Vote], tmp_path: Path) -> None:
    export = EXPORTS["kto"](votes)
    store = imported("kto", votes, tmp_path)
    found = read_votes(tmp_path / "rows.jsonl")

    def told(vote: Vote) -> Any:
        pair = next(better_and_worse(vote), None) if vote.verdict.verdict == "ranked" else None
        said = pair or (vote.verdict.verdict, sorted(vote.completions))
        return text_of(conversation(vote.prompt), said, vote.verdict.edited)

    kept = [vote for vote in votes if vote.verdict.verdict != "tie"]
    assert sorted(map(told, store.votes())) == sorted(map(told, kept))
    alone = [vote for vote in votes if vote.verdict.verdict == "tie" and vote.verdict.edited]
    assert found.left_out.total() == len(alone)
    ties = [vote for vote in votes if vote.verdict.verdict == "tie"]
    assert export.left_out.total() == len(ties) - len(alone)


@pytest.mark.parametrize("form", ["trl", "trl-plain", "hh", "sharegpt"])
def test_pairs_come_back(form: str, votes: list[Vote], tmp_path: Path) -> None:
    if form == "trl-plain":  # a conversation as one text is another prompt
        votes = [replace(vote, prompt=EXPORTS["trl-plain"]([vote]).rows[0]["prompt"])
                 for vote in votes if EXPORTS["trl-plain"]([vote]).rows]  # fmt: skip
    store = imported(form, votes, tmp_path)
    made = [text_of(conversation(v.prompt), *p) for v in votes for p in better_and_worse(v)]
    read = [text_of(conversation(v.prompt), *next(better_and_worse(v))) for v in store.votes()]
    assert sorted(read) == sorted(made)


def test_what_an_export_lacks_is_counted(votes: list[Vote]) -> None:
    skipped = replace(votes[0], verdict=Verdict("skip", edited="Mine."))
    three = replace(votes[0], completions=["a", "b", "c"], sources=["x"] * 3, sampling=[{}] * 3)
    three = replace(three, verdict=Verdict("ranked", [[2]], edited="Mine."))
    for form in ("kto", "arena", "argilla", "trl", "hh", "sharegpt"):
        export = EXPORTS[form]([skipped])
        assert export.rows == [] and list(export.lost.values()) == [1], form
        assert sum(export.missing().values()) == 2
    assert list(EXPORTS["arena"]([three]).lost.values()) == [1]
    assert not EXPORTS["argilla"]([three]).lost and not EXPORTS["own"]([three, skipped]).lost
    tool = replace(votes[0], prompt=[{"role": "tool", "content": "3"}])
    assert EXPORTS["hh"]([tool]).rows == []  # it would come back as a person's turn
    blank = replace(votes[0], completions=["", "b"], verdict=Verdict("both_bad"))
    assert len(EXPORTS["kto"]([blank]).rows) == 1  # no trainer takes a blank answer


# ---- odd values

ODD: list[Any] = [None, True, 0, -1, 1.5, "", "x", [], {}, [[]], [None], [{"a": 1}], {"a": []}]
ODD += [2**70, ["a", "b"], [1, 2], "\ud800", float("nan"), [[[0]]], {"value": None}, "None"]


def examples(votes: list[Vote]) -> dict[str, list[dict[str, Any]]]:
    """A good row for each form that is read."""
    rows = {form: EXPORTS[form](votes).rows[:1] for form in EXPORTS if form != "demonstrations"}
    rows["kto"] = EXPORTS["kto"](votes).rows[:2]
    rows["mt-bench"] = [rows["arena"][0] | {"turn": 1, "judge": ["gpt-4"], "id": 7}]
    ranks = [{"value": "response1", "rank": 1}, {"value": "response2", "rank": 2}]
    fields = {"prompt": "?", "context": "c", "system": "s", "response1": "A", "response2": "B"}
    by_rater = {"user_id": "u", "values": {"q": {"value": ranks}}, "status": "submitted"}
    rows["argilla-1"] = [{"fields": fields, "responses": [by_rater], "metadata": {}}]
    answers = [{"user_id": "u", "value": {"value": ["response1"], "rank": [1]}, "status": None}]
    rows["argilla-flat-1"] = [{**fields, "q": answers, "metadata": "{}", "q-suggestion": None}]
    users = {"q.responses.users": ["u"], "q.responses.status": ["submitted"]}
    rows["argilla-flat"] = [{**fields, "q.responses": [["response1", "response2"]], **users}]
    crowd = {"id": 3, "winner": "left", "worker": 1, "model_x": 1, "left": "a", "right": "b"}
    rows["llmfao"] = [crowd]
    return rows


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all values inside a row."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in inside:
        yield (*way, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*way, key))


def mutated(row: Any, chance: random.Random) -> Any:
    """The row with one or two values replaced by odd ones, or taken away."""
    row = copy.deepcopy(row)
    for _ in range(chance.choice((1, 1, 2))):
        *way, last = chance.choice(list(places(row)) or [("x",)])
        holder = row
        for key in way:
            holder = holder[key]
        if chance.random() < 0.2:
            del holder[last]
        else:
            holder[last] = copy.deepcopy(chance.choice(ODD))
    return row


RAW = re.compile(
    r"' object|attribute|indices|argument [0-9]|sequence item|unhashable|codec|iterable"
)


def refusal(reader: Any, file: Path, line: int) -> str:
    """What a reader says of a bad row in this line; "" if it reads it."""
    try:
        reader(file)
    except UserError as error:
        said = str(error).replace(str(file), "FILE")
        assert re.match(rf"FILE, line {line}, (fields? \"|expected)", said), said
        assert not RAW.search(said), said
        said.encode()  # as a page and a terminal take it
        return said
    return ""


def test_odd_values_in_training_files_are_refused_with_line_and_field(
    votes: list[Vote], tmp_path: Path
) -> None:
    trl, kto, sharegpt = (EXPORTS[form](votes).rows[0] for form in ("trl", "kto", "sharegpt"))
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    start = [{"role": "user", "content": "a"}]
    answer = [{"role": "assistant", "content": "b"}]
    repeated = {
        "prompt": "a",
        "chosen": start + answer,
        "rejected": [*start, answer[0] | {"content": "c"}],
    }
    cases = [
        (read_preferences, trl),
        (read_preferences, sharegpt),
        (read_preferences, repeated),
        (read_labelled, kto),
        (read_demonstrations, {"conversations": turns, "system": "s", "tools": [{"a": 1}]}),
        (read_demonstrations, {"messages": start + answer, "chat_template_kwargs": {"a": 1}}),
        (read_prompts, {"prompt": start, "kind": [1]}),
    ]
    chance, refused = random.Random(5), 0
    for reader, good in cases:
        for _ in range(40):
            (tmp_path / "rows.jsonl").write_text(json.dumps(mutated(good, chance)))
            refused += bool(refusal(reader, tmp_path / "rows.jsonl", 1))
    assert refused > 100


def test_odd_values_are_read_or_refused_with_line_and_field(
    votes: list[Vote], tmp_path: Path
) -> None:
    pair = {"id": 3, "text": "Why?", "slug": "why", "result_x": "Because.", "result_y": "So."}
    write_jsonl(tmp_path / "pairs-crowd.jsonl", [pair])
    chance, read, refused = random.Random(3), list[ImportedVote](), 0
    for form, good in examples(votes).items():
        rows = [*good, *(mutated(good[-1], chance) for _ in range(250))]
        file = tmp_path / f"{form}.jsonl"
        file.write_text("\n".join(json.dumps(row) for row in rows))  # with NaN as it is
        found = read_votes(file, skip_bad=True)
        for said in found.bad:
            assert re.match(rf"{re.escape(str(file))}, line \d+, fields? \"", said), said
            assert not RAW.search(said), said
        read += found.votes
        refused += len(found.bad)
    assert refused > 1000 and len(read) > 400
    store = Store(tmp_path / "all.sqlite")
    assert add_votes(store, read) == len(read)
    stored = store.votes()
    for export in EXPORTS.values():
        for row in export(stored).rows:
            json.dumps(row, allow_nan=False)
