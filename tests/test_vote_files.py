"""Votes in the files of other tools: what is read, what is left out, and what is said."""

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.cli.prepare import read_stage_rows
from lorarlhf.data.readers import read_demonstrations, read_labelled, read_preferences
from lorarlhf.preferences.exports import EXPORTS, better_and_worse
from lorarlhf.preferences.import_arena import PARTED
from lorarlhf.preferences.import_labels import ALONE
from lorarlhf.preferences.imports import Import, read_votes
from lorarlhf.preferences.merge import add_votes, merge_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.preferences.single_answers import SINGLE
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_jsonl
from lorarlhf.stages.table import STAGES
from tests.vote_files import FIRST, SECOND, Row, only, read, talk

# ---- arena


def battle(first: list[Any], second: list[Any], **more: Any) -> Row:
    row = {"model_a": "x", "model_b": "y", "winner": "model_b"}
    return row | {"conversation_a": first, "conversation_b": second} | more


def test_battles_whose_earlier_turns_differ_are_left_out_and_counted(tmp_path: Path) -> None:
    same = battle(talk("Hi", "Hello", "Why?", "A"), talk("Hi", "Hello", "Why?", "B"), turn=2)
    other = battle(talk("Hi", "A1", "More?", "A2"), talk("Hi", "B1", "More?", "B2"), turn=2)
    asked = battle(talk("Hi", "A"), talk("Ho", "B"))
    found = read(tmp_path, same, other, asked)
    assert found.left_out == {PARTED: 2}
    vote = only(found)
    assert vote.prompt == talk("Hi", "Hello", "Why?") and vote.verdict == SECOND
    assert vote.completions == (("A", "x"), ("B", "y"))
    # MT-bench judges the first turn of two: that is a vote on the first answers.
    vote = only(read(tmp_path, other | {"turn": 1}))
    assert vote.prompt == talk("Hi") and vote.completions == (("A1", "x"), ("B1", "y"))


def test_what_arena_records_name(tmp_path: Path) -> None:
    one, other = talk("Hi", "A"), talk("Hi", "B")
    nulls = {"judge": None, "question_id": None, "model_a": None, "tstamp": None, "turn": None}
    vote = only(read(tmp_path, battle(one, other) | nulls))
    assert (vote.rater, vote.item, vote.created_at) == ("imported", None, None)
    assert vote.completions[0] == ("A", "imported")
    judged = battle(one, other, judge=["gpt-4", "pair-v2"], question_id=81, tstamp=1.5)
    vote = only(read(tmp_path, judged))
    assert (vote.rater, vote.item, vote.created_at) == ("gpt-4 pair-v2", "81", 1500)
    parts = [{"type": "text", "text": "Hi", "image": None, "mimeType": None}]
    newer = battle(
        [{"role": "user", "content": parts}, one[1]],
        [{"role": "user", "content": parts}, other[1]],
        **{"id": "e-7", "winner": "both_bad", "timestamp": "2025-06-01T00:00:00"},
    )
    vote = only(read(tmp_path, newer))
    when = datetime(2025, 6, 1, tzinfo=UTC).timestamp() * 1000
    assert (vote.item, vote.created_at, vote.verdict.verdict) == ("e-7", when, "both_bad")
    assert vote.prompt == talk("Hi")
    parts[0]["image"] = "cat.png"
    with pytest.raises(UserError, match='"conversation_a", message 1: .* found an image'):
        read(tmp_path, newer)


# ---- KTO


def labels(*marks: tuple[str, Any], prompt: str = "?") -> list[Row]:
    return [{"prompt": prompt, "completion": text, "label": mark} for text, mark in marks]


def pairs(found: Import, folder: Path) -> list[tuple[str, str]]:
    store = Store(folder / "pairs.sqlite")
    add_votes(store, found.votes)
    return [pair for vote in store.votes() for pair in better_and_worse(vote)]


def test_grouped_labels_make_pairs(tmp_path: Path) -> None:
    rows = labels(("A", True), ("B", True), ("C", False), ("D", False), ("E", False))
    rows += labels(("F", False), ("G", True), prompt="other")
    found = read(tmp_path, *rows)
    assert pairs(found, tmp_path) == [("A", "C"), ("B", "D"), ("G", "F")]
    (single,) = (vote for vote in found.votes if len(vote.completions) == 1)
    assert single.completions[0][0] == "E" and single.verdict == Verdict("both_bad")
    assert not found.left_out
    both = read(tmp_path, *labels(("A", 1), ("B", 1)), *labels(("C", 0), ("D", 0), prompt="!"))
    assert [vote.verdict.verdict for vote in both.votes] == ["both_good", "both_bad"]


def test_thumbs_come_back_from_an_export_for_kto(tmp_path: Path) -> None:
    good, bad = Verdict("both_good"), Verdict("both_bad", edited="Better.")
    store = Store(tmp_path / "thumbs.sqlite")
    given = [("1?", "Yes.", good), ("2?", "No.", bad), ("1?", "Also.", good)]
    for prompt, text, verdict in given:
        add_votes(store, [ImportedVote(prompt, ((text, "base"),), verdict)])
    rows = EXPORTS["kto"](store.votes()).rows
    found = read(tmp_path, *rows)
    told = [
        (vote.prompt[0]["content"], vote.completions[0][0], vote.verdict) for vote in found.votes
    ]
    assert told == given and not found.left_out
    # What a rater wrote, without the answer that the rater saw.
    assert read(tmp_path, rows[0], rows[2]).left_out == {ALONE: 1}


@pytest.mark.parametrize(
    "marks", [("True", "False"), ("true", "false"), ("1", "0"), ("yes", "No"), ("1.0", "0.0")]
)
def test_labels_in_csv(marks: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt,completion,label\n" + "".join(f"?,{m},{m}\n" for m in marks))
    assert only(read_votes(file)).verdict == FIRST
    assert [row["label"] for row in read_labelled(file)] == [True, False]


# ---- numbers that JSON does not have


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(number: str, tmp_path: Path) -> None:
    good = '{"prompt": "?", "chosen": "a", "rejected": "b", "margin": 0.5, "more": {"x": [0]}}'
    for place, field in (("0.5", "margin"), ("[0]", "more")):
        (tmp_path / "rows.jsonl").write_text(f"{good}\n{good.replace(place, f'[{number}]')}")
        for reader in (read_votes, read_preferences):
            with pytest.raises(UserError, match=f'rows.jsonl, line 2, field "{field}": .*finite'):
                reader(tmp_path / "rows.jsonl")
    (tmp_path / "rows.csv").write_text(f"prompt,chosen,rejected,margin\n?,a,b,1\n?,a,b,{number}")
    for reader in (read_votes, read_preferences):
        with pytest.raises(UserError, match='rows.csv, line 3, field "margin": .*finite'):
            reader(tmp_path / "rows.csv")


def test_margins_survive_and_no_export_has_numbers_that_json_lacks(tmp_path: Path) -> None:
    rows = [{"prompt": f"{m}?", "chosen": "a", "rejected": "b", "margin": m} for m in (0.5, 2, 0)]
    store = Store(tmp_path / "store.sqlite")
    add_votes(store, read(tmp_path, *rows).votes)
    assert [row["margin"] for row in EXPORTS["trl"](store.votes()).rows] == [0.5, 2.0, 0.0]
    with pytest.raises(UserError, match='field "margin": expected a number'):
        read(tmp_path, rows[0] | {"margin": True})
    # A store may have such a number from an earlier version.
    add_votes(store, [ImportedVote("!", (("a", "x"), ("b", "y")), FIRST, origin={"margin": 1e999})])
    for form in EXPORTS:
        write_jsonl(tmp_path / f"{form}.jsonl", EXPORTS[form](store.votes()).rows)
        text = (tmp_path / f"{form}.jsonl").read_text()
        assert "Infinity" not in text and "NaN" not in text
    assert len(read_votes(tmp_path / "own.jsonl").votes) == 4


# ---- bad rows


def test_bad_rows_can_be_left_out(tmp_path: Path) -> None:
    good = {"prompt": "?", "chosen": "a", "rejected": "b"}
    bad = [good | {"chosen": 3}, good | {"prompt": None}, good | {"rejected": ["c"]}]
    lines = [json.dumps(row) for row in [good, *bad, good]]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([*lines, '{"prompt": "cut o']))
    with pytest.raises(UserError, match="line 6, column 12: broken JSON"):
        read_votes(file)
    found = read_votes(file, skip_bad=True)
    assert len(found.votes) == 2 and found.left_out == {"rows that can't be read": 4}
    said = found.first_bad()
    assert "rows.jsonl, line 6, column 12" in said and "... and 1 more" in said
    assert f'{file}, line 2, field "rejected"' in said
    file.write_text(json.dumps(bad[0]))
    with pytest.raises(UserError, match="line 1"):  # nothing would be left
        read_votes(file, skip_bad=True)
    (tmp_path / "rows.csv").write_text('prompt,chosen,rejected\n?,a,b\n?,"a,b\n?,a,b\n')
    with pytest.raises(UserError, match="broken CSV"):  # the rows after it can't be told apart
        read_votes(tmp_path / "rows.csv", skip_bad=True)
    (tmp_path / "rows.json").write_text(json.dumps([good, 7, good | {"chosen": 3}]))
    found = read_votes(tmp_path / "rows.json", skip_bad=True)
    assert len(found.votes) == 1 and f"{tmp_path / 'rows.json'}, row 3, field" in found.first_bad()


def test_the_first_row_need_not_be_a_good_one(tmp_path: Path) -> None:
    good = {"prompt": "?", "chosen": "a", "rejected": "b"}
    with pytest.raises(UserError, match='line 1, field "chosen" is missing'):
        read(tmp_path, {"prompt": "?"}, good)
    assert len(read(tmp_path, {"prompt": "?"}, good, skip_bad=True).votes) == 1


# ---- remarks


def test_votes_that_may_not_be_meant_are_counted(tmp_path: Path) -> None:
    def row(chosen: str, rejected: str) -> Row:
        return {"prompt": "Why?", "chosen": chosen, "rejected": rejected}

    rows = [row("caf\u00e9", "cafe\u0301"), row("Yes. No.", "Yes.  No. "), row("same", "same")]
    rows += [row("Why? Because.", "Why? So."), row("Fine.", "def f():\n    a\n")]
    rows += [row("if x:\n  a", "if x:\n    a")]  # indentation is content
    found = read(tmp_path, *rows)
    assert len(found.votes) == 6 and dict(found.remarks) == {
        "votes that prefer one of equal answers": 1,
        "votes that prefer one of answers that differ only in blanks or Unicode form": 2,
        "votes whose answers all begin with the text of the prompt": 1,
    }
    tie = ImportedVote("?", (("a", "x"), ("a", "y")), Verdict("tie"))
    store = Store(tmp_path / "store.sqlite")
    merge_votes(store, [tie])
    assert Counter() == read(tmp_path, *EXPORTS["own"](store.votes()).rows).remarks


# ---- shapes from reports in the trackers of other tools


def turn(role: str, content: Any) -> Row:
    return {"role": role, "content": content}


ALPACA = {"instruction": "Do", "input": "it.", "chosen": "A", "rejected": "B"}
BESIDE = {"messages": talk("Hi"), "chosen": turn("assistant", "A")}
BESIDE["rejected"] = turn("assistant", "B")
SYSTEM = {"system": "Be brief.", "prompt": "Hi", "chosen": "A", "rejected": "B"}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (ALPACA, "Do\nit."),  # hiyouga/LlamaFactory 5455
        (ALPACA | {"input": "", "history": [["Hi", "Ho"]]}, talk("Hi", "Ho", "Do")),
        (BESIDE, talk("Hi")),  # axolotl-ai-cloud/axolotl 2415
        (SYSTEM, [turn("system", "Be brief."), turn("user", "Hi")]),
    ],
)
def test_prompts_that_other_tools_name_otherwise(row: Row, prompt: Any, tmp_path: Path) -> None:
    vote = only(read(tmp_path, row))
    assert vote.prompt == prompt and [text for text, _ in vote.completions] == ["A", "B"]
    (trained,) = read_preferences(tmp_path / "rows.jsonl")
    assert trained["prompt"] == prompt


def test_alpaca_demonstrations(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"instruction": "Do", "input": "it.", "output": "A"}])
    assert read_demonstrations(tmp_path / "a.jsonl") == [{"completion": "A", "prompt": "Do\nit."}]


def test_columns_that_are_not_used_may_hold_several_kinds(tmp_path: Path) -> None:
    row = {"prompt": "?", "chosen": "A", "rejected": "B"}
    write_jsonl(tmp_path / "a.jsonl", [row | {"id": 1, "meta": {}}, row | {"id": "x", "meta": []}])
    assert read_preferences(tmp_path / "a.jsonl") == [row, row]


HUMMANY = {"conversations": [{"from": "hummany", "value": "Hi"}]}
HUMAN = {"conversations": [{"from": "human", "value": "Hi"}]}
GPT = {"chosen": {"from": "gpt", "value": "A"}, "rejected": {"from": "gpt", "value": "B"}}
ENCODED = {"prompt": "Hi", "chosen": json.dumps(talk("Hi", "A")), "rejected": "B"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (HUMMANY | GPT, 'field "conversations", message 1: expected a role of'),  # 2381
        (HUMAN | GPT | {"chosen": {"from": "not_a_role", "value": "A"}}, 'field "chosen"'),  # 10601
        ({"conversations": [{"from": "human", "value": None}], **GPT}, "found null"),
        (HUMAN | GPT | {"rejected": {"from": "gpt", "value": None}}, 'field "rejected", message'),
        (ENCODED, 'field "chosen": found messages written as text'),  # kakao/diatool-dpo 2
        (BESIDE | {"rejected": turn("user", "B")}, 'field "rejected"'),  # huggingface/trl 2385
    ],
)
def test_rows_from_reports_that_are_refused(row: Row, said: str, tmp_path: Path) -> None:
    for reader in (read_votes, read_preferences):
        write_jsonl(tmp_path / "rows.jsonl", [row])
        with pytest.raises(UserError, match="line 1, field"):
            reader(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match=said):
        read_votes(tmp_path / "rows.jsonl")


def test_an_empty_answer_is_remarked(tmp_path: Path) -> None:  # hiyouga/LlamaFactory 3364
    found = read(tmp_path, {"prompt": "Hi", "chosen": "A", "rejected": ""})
    assert list(found.remarks) == ["votes with an empty answer, on which nothing is trained"]


# ---- training from files of votes


def test_training_commands_read_labels_as_pairs_where_they_need_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "labels.jsonl"
    rows = [
        *labels(("A", True), ("B", True), ("C", False), ("D", False)),
        *labels(("E", True), prompt="alone"),
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    for name in ("reward", "dpo", "orpo"):
        read_rows = read_stage_rows(STAGES[name], str(file))
        told = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in read_rows]
        assert told == [("A", "C"), ("B", "D")]
        said = capsys.readouterr().err
        assert f"3 votes give 2 rows for {name}. Not used: 1 {SINGLE}." in said
    assert len(read_stage_rows(STAGES["kto"], str(file))) == 5
    battles = tmp_path / "battles.jsonl"  # which no stage reads itself
    battles.write_text(json.dumps(battle(talk("Hi", "A"), talk("Hi", "B"), edited="Mine.")))
    rows = read_stage_rows(STAGES["kto"], str(battles))
    assert all(row.keys() == {"prompt", "completion", "label"} for row in rows)
    told = [(row["completion"][0]["content"], row["label"]) for row in rows]
    assert told == [("B", True), ("A", False), ("Mine.", True)]
    with pytest.raises(UserError, match="good answers only"):
        read_stage_rows(STAGES["sft"], str(file))
