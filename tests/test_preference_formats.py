"""Votes survive export and import, and each one is in a row or in a count."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.data.readers import read_demonstrations, read_preferences
from lorarlhf.preferences.exports import EXPORTS, better_and_worse
from lorarlhf.preferences.imports import read_votes
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import ImportedVote, Verdict, Vote
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_jsonl

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a hobby.\n\nA quiet one."},
    {"role": "assistant", "content": "Chess."},
    {"role": "user", "content": "Another?"},
]
FIRST, SECOND = Verdict("ranked", [[0], [1]], "clearly"), Verdict("ranked", [[1], [0]])
VERDICTS = [FIRST, SECOND, Verdict("tie"), Verdict("both_good"), Verdict("both_bad")]
VERDICTS += [Verdict("skip", note="no idea"), Verdict("ranked", [[1], [0]], "much", "ha", "Drums.")]
ANSWERS = (("Drawing.", "base"), ("Drums!", "runs/3"))
THREE = (*ANSWERS, ("None.", "base"))


def given() -> list[ImportedVote]:
    """A vote of each verdict on a pair, a ranking of three, and two raters on one item."""
    votes = [
        ImportedVote(
            TALK if n % 2 else f"Question {n}?", ANSWERS, verdict, "ann", f"item {n}", (1, 0), n
        )
        for n, verdict in enumerate(VERDICTS)
    ]
    ranking = Verdict("ranked", [[2], [0, 1]])
    votes += [ImportedVote("Three?", THREE, ranking, "ann", "three", (2, 0, 1), purpose="compare")]
    votes += [ImportedVote("Top?", THREE, Verdict("ranked", [[1]]), "bob", "top")]
    votes += [ImportedVote("Question 0?", ANSWERS, SECOND, "bob", "item 0")]
    return [replace(vote, created_at=1_700_000_000_000 + n) for n, vote in enumerate(votes)]


@pytest.fixture
def votes(tmp_path: Path) -> list[Vote]:
    store = Store(tmp_path / "first.sqlite")
    assert add_votes(store, given()) == len(given())
    return store.votes()


def back(rows: list[dict[str, Any]], folder: Path) -> tuple[list[Vote], Counter[str]]:
    """Rows written to a file, read from it, and added to another store."""
    write_jsonl(folder / "rows.jsonl", rows)
    found = read_votes(folder / "rows.jsonl")
    store = Store(folder / "second.sqlite")
    add_votes(store, found.votes)
    return store.votes(), found.left_out


def essence(vote: Vote) -> Any:
    """A vote without the ids that a store assigns."""
    return replace(vote, id=0, item_id=0, presentation_id=0)


def test_our_own_form_loses_nothing(votes: list[Vote], tmp_path: Path) -> None:
    again, left_out = back(EXPORTS["own"](votes).rows, tmp_path)
    assert [essence(vote) for vote in again] == [essence(vote) for vote in votes]
    items = [vote.item_id for vote in votes]  # two votes on one item stay on one
    assert [again[items.index(n)].item_id for n in items] == [vote.item_id for vote in again]
    assert not left_out


@pytest.mark.parametrize("form", sorted(EXPORTS))
def test_every_vote_is_in_a_row_or_in_a_count(votes: list[Vote], form: str) -> None:
    whole = EXPORTS[form](votes)
    apart = [EXPORTS[form]([vote]) for vote in votes]
    assert all(bool(one.rows) != bool(one.left_out) for one in apart)
    assert sum(one.left_out.total() for one in apart) == whole.left_out.total()
    assert whole.left_out == sum((one.left_out for one in apart), Counter())


@pytest.mark.parametrize("form", ["trl", "trl-plain", "hh", "sharegpt"])
def test_pairs_come_back_as_pairs(votes: list[Vote], form: str, tmp_path: Path) -> None:
    if form == "hh":  # its dialogues have no system turn, and blank lines end a turn
        votes = [
            replace(v, prompt=v.prompt if isinstance(v.prompt, str) else TALK[2:]) for v in votes
        ]
        votes = [replace(v, prompt="Well?") if v.prompt == TALK[2:] else v for v in votes]
    again, _ = back(EXPORTS[form](votes).rows, tmp_path)
    wanted = [pair for vote in votes for pair in better_and_worse(vote)]
    assert [next(better_and_worse(vote)) for vote in again] == wanted
    if form.startswith("trl"):
        assert again[0].verdict.strength == "clearly" and again[1].verdict.strength is None


def test_the_pairs_of_a_ranking() -> None:
    def pairs(count: int, ranking: list[list[int]], edited: str | None = None) -> list[tuple]:
        verdict = Verdict("ranked", ranking, edited=edited)
        texts = ["a", "b", "c", "d"][:count]
        vote = Vote(1, "x", 1, 1, "train", "?", texts, texts, [], verdict, None, 0, [], None, {})
        return list(better_and_worse(vote))

    assert pairs(2, [[1], [0]]) == [("b", "a")]
    assert pairs(3, [[2], [0, 1]]) == [("c", "a"), ("c", "b")]
    assert pairs(4, [[3]]) == [("d", "a"), ("d", "b"), ("d", "c")]  # the top alone
    assert pairs(2, [[1], [0]], edited="e") == [("b", "a"), ("e", "b")]


def test_the_weights_of_a_ranking_add_up_to_one(votes: list[Vote]) -> None:
    rows = EXPORTS["trl"](votes).rows
    groups = {row["group"] for row in rows}
    for group in groups:
        voted = [v for v in votes if v.item_id == group and v.verdict.verdict == "ranked"]
        weights = [row["weight"] for row in rows if row["group"] == group]
        assert sum(weights) == pytest.approx(len(voted))


def test_trl_can_train_on_the_rows(votes: list[Vote], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", EXPORTS["trl"](votes).rows)
    assert len(read_preferences(tmp_path / "pairs.jsonl")) == len(EXPORTS["trl"](votes).rows)
    write_jsonl(tmp_path / "own.jsonl", EXPORTS["demonstrations"](votes).rows)
    (row,) = read_demonstrations(tmp_path / "own.jsonl")
    assert row["completion"] == [{"role": "assistant", "content": "Drums."}]


def test_kto_takes_the_first_and_the_last_of_a_ranking(votes: list[Vote]) -> None:
    answers = ["a", "b", "c", "d"]
    four = replace(votes[0], completions=answers, sources=["x"] * 4, sampling=[{}] * 4)

    def labels(ranking: list[list[int]], texts: list[str] = answers) -> dict[str, bool]:
        vote = replace(four, completions=texts, verdict=Verdict("ranked", ranking))
        rows = EXPORTS["kto"]([vote]).rows
        return {row["completion"][0]["content"]: row["label"] for row in rows}

    assert labels([[2], [0], [3], [1]]) == {"c": True, "b": False}
    assert labels([[2, 0], [3], [1]]) == {"c": True, "a": True, "b": False}
    # What stands below the line is last.
    assert labels([[3], [1]]) == {"d": True, "a": False, "c": False}
    assert labels([[0, 1, 2, 3]]) == {}
    assert labels([[0], [1], [2], [3]], ["a", "b", "c", "a"]) == {}
    assert labels([[0], [1], [2], [3]], ["a", "b", "c", " "]) == {}
    tie = replace(four, verdict=Verdict("tie"))
    (reason,) = EXPORTS["kto"]([tie]).left_out
    assert reason == "ties, which call no answer good or bad"


def test_kto_keeps_good_and_bad(votes: list[Vote], tmp_path: Path) -> None:
    export = EXPORTS["kto"](votes)
    again, left_out = back(export.rows, tmp_path)
    said = [vote.verdict.verdict for vote in again]
    of_three = ["ranked", "both_bad"]  # the best and one of the last; another one of the last
    assert said == ["ranked", "ranked", "both_good", "both_bad", "ranked", *of_three * 2, "ranked"]
    assert [vote.completions[0] for vote in again][:2] == ["Drawing.", "Drums!"]
    assert not left_out and export.left_out.total() == 2
    lone = [{"prompt": f"{n}?", "completion": "x", "label": True} for n in range(3)]
    write_jsonl(tmp_path / "lone.jsonl", lone)
    found = read_votes(tmp_path / "lone.jsonl")
    alone = [(vote.completions, vote.verdict.verdict) for vote in found.votes]
    assert alone == [((("x", "imported"),), "both_good")] * 3 and not found.left_out


@pytest.mark.parametrize("form", ["arena", "argilla"])
def test_arena_and_argilla_keep_sides_ties_and_raters(
    votes: list[Vote], form: str, tmp_path: Path
) -> None:
    again, _ = back(EXPORTS[form](votes).rows, tmp_path)

    def told(all_votes: list[Vote]) -> list[Any]:
        kept = [v for v in all_votes if v.verdict.verdict != "skip"]
        if form == "arena":
            kept = [v for v in kept if len(v.completions) == 2]
        return sorted(
            [v.completions, v.sources, v.verdict.verdict, v.verdict.ranking, v.rater] for v in kept
        )

    ours = told(again)
    if form == "argilla":  # a ranking of the top alone leaves the rest out there, too
        assert [[1]] in [vote.verdict.ranking for vote in again]
    assert ours == told(votes)


def test_crowd_comparisons_keep_ties_and_overlap(tmp_path: Path) -> None:
    pair = {"id": 3, "text": "Why?", "slug": "why", "result_x": "Because.", "result_y": "So."}
    write_jsonl(tmp_path / "pairs-crowd.jsonl", [pair])
    lines = ["id,prompt,model_x,model_y,worker,winner,left,right"]
    lines += [
        f"3,8,97,98,{n},{w},Model X,Model Y" for n, w in ((5, "left"), (6, "tie"), (7, "right"))
    ]
    (tmp_path / "votes.csv").write_text("\n".join(lines))
    store = Store(tmp_path / "store.sqlite")
    add_votes(store, read_votes(tmp_path / "votes.csv").votes)
    votes = store.votes()
    assert [vote.verdict.verdict for vote in votes] == ["ranked", "tie", "ranked"]
    assert votes[0].verdict.ranking == [[0], [1]] and votes[2].verdict.ranking == [[1], [0]]
    assert len({vote.item_id for vote in votes}) == 1
    assert votes[0].sources == ["Model X", "Model Y"] and votes[0].rater == "worker 5"


HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}


def own(**changes: Any) -> list[dict[str, Any]]:
    """A row of our own form with something wrong."""
    answers = [{"text": text, "source": "base"} for text in "xy"]
    row = {"prompt": "?", "completions": answers, "verdict": "tie", "ranking": [], "item": 1}
    row |= {"strength": None, "note": None, "edited": None, "rater": "ann", "shown": [1, 0]}
    row |= {"milliseconds": 900, "created_at": 1_700_000_000_000, "purpose": "train", "origin": {}}
    return [row, row | changes]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (own(rater=7), 'line 2, field "rater": expected a name'),
        (own(rater=" "), 'line 2, field "rater": expected a name'),
        (own(rater="\x1b[31mred"), 'line 2, field "rater": expected a name'),
        (own(note="\ud800"), 'line 2, field "note": found text with half a character'),
        (own(milliseconds=2**70), 'line 2, field "milliseconds": expected a whole number'),
        (own(created_at="today"), 'line 2, field "created_at": expected a whole number'),
        (own(milliseconds=True), 'line 2, field "milliseconds": expected a whole number'),
        (own(origin=[1]), 'line 2, fields "origin" and "sampling": expected objects'),
        (own(shown=[0, 0]), 'line 2, field "shown": expected the positions 0 to 1'),
        (own(note={"a": 1}), 'line 2, fields "note" and "edited"'),
        (
            own(completions=[{"text": "x", "source": None}, {"text": "y", "source": "base"}]),
            'line 2, field "source": expected a text',
        ),
        ([HH, {**HH, "rejected": "Hi"}], 'line 2, field "rejected": expected turns'),
        ([HH, {**HH, "rejected": "\n\nHuman: Oh\n\nAssistant: No"}], "the dialogue of"),
        ([{"winner": "x", "conversation_a": [], "conversation_b": []}], 'field "winner"'),
        ([{"prompt": "a", "completion": "b", "label": "maybe"}], 'field "label": expected true'),
        ([{"fields": {"prompt": "a"}, "responses": {}}], 'field "fields"'),
        ([{"verdict": "tie", "completions": [], "ranking": []}], 'field "strength" is missing'),
        ([{"question": "a"}], "the columns question match no known form"),
        (
            [{"prompt": "a", "chosen": "b", "rejected": ["c"]}],
            'field "rejected": expected the same',
        ),
        ([{"prompt": "", "chosen": "b", "rejected": "c"}], 'field "prompt"'),
        ([{"prompt": [{"role": "user"}], "chosen": "b", "rejected": "c"}], 'field "prompt"'),
        ([{"prompt": "a", "chosen": "\ud800", "rejected": "c"}], "found text with half a char"),
        ([{"chosen": HH["chosen"], "rejected": HH["chosen"]}], "expected another answer"),
    ],
)
def test_a_broken_file_is_named_by_line_and_field(
    rows: list[dict[str, Any]], said: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError) as error:
        read_votes(tmp_path / "rows.jsonl")
    assert said in str(error.value) and "rows.jsonl" in str(error.value)


def test_votes_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    wrong = [*given(), ImportedVote("?", ANSWERS, Verdict("ranked", [[5]]))]
    with pytest.raises(ValueError, match="positions 0 to 1"):
        add_votes(store, wrong)
    assert store.votes() == [] and store.add_prompt("new") == 1


def test_pairs_that_no_trainer_takes_are_counted(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    same = (("Yes.", "base"), ("Yes.", "base"))
    add_votes(
        store,
        [ImportedVote("?", same, FIRST), ImportedVote("?", (("", "a"), ("No.", "b")), SECOND)],
    )
    for form in ("trl", "hh", "sharegpt"):
        export = EXPORTS[form](store.votes())
        assert export.rows == [] and export.left_out.total() == 2


def test_an_answer_written_where_both_are_bad_beats_each(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    add_votes(store, [ImportedVote("?", ANSWERS, Verdict("both_bad", edited="Chess."))])
    (vote,) = store.votes()
    assert list(better_and_worse(vote)) == [("Chess.", "Drawing."), ("Chess.", "Drums!")]
    assert len(EXPORTS["demonstrations"]([vote]).rows) == 1


def test_repeats_and_sampling_are_imported(tmp_path: Path) -> None:
    store = Store(tmp_path / "first.sqlite")
    how = [{"temperature": 0.7, "seed": 3}, {}]
    item = store.add_item("Why?", ANSWERS, sampling=how)
    first = store.present(item, "ann")
    store.judge(first.token, FIRST)
    again = store.present(item, "ann", repeats=first.id)
    store.judge(again.token, SECOND)
    votes, _ = back(EXPORTS["own"](store.votes()).rows, tmp_path)
    assert votes[0].sampling == how and votes[0].repeats is None
    assert votes[1].repeats == votes[0].presentation_id
    assert votes[1].shown == votes[0].shown[::-1]


def test_items_of_one_name_with_other_answers_are_separate(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    other = (("Chess.", "x"), ("Go.", "y"))
    add_votes(
        store,
        [
            ImportedVote("?", ANSWERS, FIRST, item="1"),
            ImportedVote("?", other, FIRST, "bob", item="1"),
        ],
    )
    assert [vote.completions[0] for vote in store.votes()] == ["Drawing.", "Chess."]


def test_an_answer_written_after_a_tie_beats_all_and_after_a_skip_none(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    for name in ("tie", "both_good", "skip"):
        add_votes(store, [ImportedVote(f"{name}?", ANSWERS, Verdict(name, edited="Chess."))])
    found = [list(better_and_worse(vote)) for vote in store.votes()]
    beaten = [("Chess.", "Drawing."), ("Chess.", "Drums!")]
    assert found == [beaten, beaten, []]
