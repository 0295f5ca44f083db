"""Votes from elsewhere: small files in the real shapes of other programs, each vote once."""

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.cli.prepare import read_stage_rows
from lorarlhf.preferences import (
    import_chat_logs,
    import_label_studio,
    import_open_webui,
    import_ratings,
    import_trees,
    queue,
)
from lorarlhf.preferences.exports import EXPORTS, better_and_worse
from lorarlhf.preferences.import_arena import PARTED
from lorarlhf.preferences.import_remarks import GREETED
from lorarlhf.preferences.imports import TWICE, Import, read_votes
from lorarlhf.preferences.merge import Merged, merge_votes
from lorarlhf.preferences.merge_candidates import merge_candidates
from lorarlhf.preferences.records import Candidates, ImportedVote
from lorarlhf.preferences.single_answers import SINGLE, SINGLES
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError
from lorarlhf.stages.table import STAGES
from tests.vote_files import Row, talk

FILES = Path(__file__).parent / "data/imports"
ANN, KIM = "0b6c2f9e-6d0e-4a51-9d0b-1f2a3c4d5e6f", "7c1d0000-0000-4000-8000-000000000002"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "votes.sqlite")


def rows_of(name: str) -> list[Row]:
    text = (FILES / name).read_text(encoding="utf-8")
    return (
        json.loads(text)
        if name.endswith(".json")
        else [json.loads(one) for one in text.split("\n") if one]
    )


def written(folder: Path, name: str, rows: list[Row]) -> Path:
    lines = (json.dumps(row) for row in rows)
    text = json.dumps(rows) if name.endswith(".json") else "\n".join(lines)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def merge(store: Store, found: Import) -> tuple[Merged, Merged]:
    return merge_votes(store, found.votes), merge_candidates(store, found.candidates)


def told(votes: list[ImportedVote]) -> list[tuple[Any, ...]]:
    return [
        (tuple(text for text, _ in vote.completions), vote.verdict.verdict, vote.verdict.ranking)
        for vote in votes
    ]


@pytest.mark.parametrize("file", sorted(FILES.iterdir()), ids=lambda file: file.name)
def test_every_shape_is_known_by_itself_and_the_same_twice_is_once(
    file: Path, store: Store
) -> None:
    found = read_votes(file)
    votes, candidates = merge(store, found)
    assert (votes.added, candidates.added) == (len(found.votes), len(found.candidates))
    assert votes.added + candidates.added > 0
    items = store.rows("SELECT count(*) FROM item")[0][0]
    again, rated = merge(store, read_votes(file))
    assert (again.added, again.changed, rated.added) == (0, 0, 0)
    assert store.rows("SELECT count(*) FROM item")[0][0] == items
    assert all(set(found.rows_of) >= {reason} for reason in found.left_out)
    # A copy of the store, made from our own export, knows the file, too.
    if found.votes:
        other = Store(store.path.with_name("other.sqlite"))
        own = written(store.path.parent, "own.jsonl", EXPORTS["own"](store.votes()).rows)
        merge(other, read_votes(own))
        assert merge(other, read_votes(file))[0].added == 0


@pytest.mark.parametrize(
    "name",
    [
        "open_webui.json",
        "label_studio.json",
        "openassistant_trees.jsonl",
        "lmsys_conversations.jsonl",
    ],
)
def test_a_longer_export_adds_only_what_is_new(name: str, store: Store, tmp_path: Path) -> None:
    rows = rows_of(name)
    first = merge(store, read_votes(written(tmp_path, name, rows[-4:])))[0]
    whole = read_votes(written(tmp_path, name, rows))
    second = merge(store, whole)[0]
    assert first.added + second.added == len(whole.votes) == store.count()
    assert second.there == first.added


# ---- Open WebUI


def test_thumbs_are_labels_and_the_arena_is_a_comparison(store: Store) -> None:
    found = read_votes(FILES / "open_webui.json")
    assert found.left_out == {
        import_open_webui.NO_THUMB: 1,
        import_open_webui.NO_CHAT: 1,
        import_open_webui.PICTURES: 1,
        import_open_webui.FAILED: 1,
        import_open_webui.SAID_ALREADY: 1,
    }
    assert found.rows_of[import_open_webui.FAILED] == [2]
    thought, good, bad, kims, anns = found.votes
    assert told([good, bad]) == [
        (("Half an hour, mostly waiting.",), "both_good", []),
        (("It depends on many things.",), "both_bad", []),
    ]
    start = [{"role": "system", "content": "Answer in one sentence."}]
    start += talk(
        "What can I cook with leeks?", "A soup, with potatoes.", "And how long does it take?"
    )
    assert good.prompt == bad.prompt == start and good.rater == ANN
    assert bad.verdict.note == "not factually correct: Says nothing."
    assert thought.completions == (("No, it is 7 times 13.", "qwen3:4b"),)
    birds = (("The kiwi.", "qwen3:4b"), ("Birds fly, so there is none.", "llama3.2:3b"))
    assert [vote.completions for vote in (kims, anns)] == [birds, birds]
    assert [vote.verdict.ranking for vote in (kims, anns)] == [[[0], [1]], [[0], [1]]]
    assert (kims.rater, anns.rater) == (KIM, ANN)

    merge(store, found)
    votes = store.votes()
    labels = [(row["completion"][0]["content"], row["label"]) for row in EXPORTS["kto"](votes).rows]
    assert Counter(labels)[("Half an hour, mostly waiting.", True)] == 1 and len(labels) == 7
    pairs = EXPORTS["trl"](votes)
    assert [row["rejected"][0]["content"] for row in pairs.rows] == [
        "It depends on many things.",
        *["Birds fly, so there is none."] * 2,
    ]
    assert pairs.left_out == {SINGLE: 1}
    assert EXPORTS["arena"](votes).left_out == {SINGLES: 3}
    assert EXPORTS["argilla"](votes).left_out == {SINGLES: 3}
    assert queue.next_shown(store, ANN, repeat_share=1.0) is None  # nobody is asked one answer


def test_what_was_changed_in_the_other_program_is_corrected_here(
    store: Store, tmp_path: Path
) -> None:
    rows = rows_of("open_webui.json")
    merge(store, read_votes(written(tmp_path, "a.json", rows)))
    rows[-1]["data"]["rating"] = -1
    rows[-1]["updated_at"] += 10**9  # after the import
    rows[-2]["data"]["comment"] = "Older than the import."
    assert merge(store, read_votes(written(tmp_path, "a.json", rows)))[0] == Merged(0, 4, 1)
    assert merge(store, read_votes(tmp_path / "a.json"))[0] == Merged(0, 5, 0)
    assert [vote.verdict.verdict for vote in store.votes()].count("both_bad") == 2
    # A vote that was undone here stays undone.
    gone = next(vote for vote in store.votes() if vote.verdict.verdict == "ranked")
    store.correct(gone.id, None)
    for row in rows:
        row["updated_at"] += 2 * 10**9
        row["data"]["comment"] = "Changed."
    merged = merge(store, read_votes(written(tmp_path, "a.json", rows)))[0]
    assert merged.added == 0 and store.vote(gone.id) is None and store.count() == 4


def test_a_file_changes_no_vote_of_another_rater(store: Store, tmp_path: Path) -> None:
    rows = rows_of("open_webui.json")[-1:]
    merge(store, read_votes(written(tmp_path, "a.json", rows)))
    before = store.votes()
    rows[0] |= {"user_id": "somebody else", "updated_at": rows[0]["updated_at"] + 10**9}
    rows[0]["data"]["rating"] = -rows[0]["data"]["rating"]
    assert merge(store, read_votes(written(tmp_path, "a.json", rows)))[0] == Merged(0, 1, 0)
    assert store.votes() == before


def test_feedback_that_is_twice_in_a_file_counts_once(tmp_path: Path) -> None:
    rows = rows_of("open_webui.json")[-1:]
    found = read_votes(written(tmp_path, "a.json", rows * 3))
    assert len(found.votes) == 1 and found.left_out == {TWICE: 2}


def test_conversations_that_run_in_circles_are_refused(tmp_path: Path) -> None:
    rows = rows_of("open_webui.json")[-1:]
    messages = rows[0]["snapshot"]["chat"]["chat"]["history"]["messages"]
    messages["q"]["parentId"] = "x"
    with pytest.raises(UserError, match='row 1, field "snapshot": expected the messages that lead'):
        read_votes(written(tmp_path, "a.json", rows))


# ---- chat logs


def test_swipes_wait_to_be_rated_with_the_turns_before_them(store: Store, tmp_path: Path) -> None:
    found = read_votes(FILES / "sillytavern.jsonl")
    (one,) = found.candidates
    assert one.prompt == [
        {"role": "assistant", "content": "*Mara looks up from her map.* Lost?"},
        {"role": "user", "content": "Which way to the harbour?"},
    ]
    assert Counter(one.completions) == Counter(
        {
            ("There is no harbour here.", "mistral-nemo"): 1,
            ("Down the hill, then left at the bell.", "mistral-nemo"): 1,
            ("Follow the gulls.", "gemma-2-9b"): 1,
        }
    )
    assert one.kept == "Down the hill, then left at the bell." and "Robin" not in str(one)
    assert found.rows_of == {import_chat_logs.OPENING: [2], import_chat_logs.ONE_ANSWER: [7]}
    assert found.remarks == {GREETED: 1}
    merge(store, found)
    shown = queue.next_shown(store, "ann")
    assert shown is not None and len(shown.completions) == 3 and shown.prompt == one.prompt

    rows = rows_of("sillytavern.jsonl")
    rows[3]["swipes"].append("Ask me tomorrow.")
    later = read_votes(written(tmp_path, "longer.jsonl", rows))
    assert merge(store, later)[1] == Merged(1, 0)
    texts = [text for _, _, texts in queue.unseen(store, 9) for text in texts]
    assert texts == ["Down the hill, then left at the bell.", "Ask me tomorrow."]
    assert merge(store, later)[1] == Merged(0, 1)


def test_many_swipes_are_several_sets(store: Store) -> None:
    texts = tuple((f"Answer {n}.", "x") for n in range(13))
    assert merge_candidates(store, [Candidates("?", texts)]).added == 1
    assert sorted(len(found) for _, _, found in queue.unseen(store, 9)) == [4, 4, 5]


def test_after_a_line_that_is_broken_nothing_of_a_chat_is_taken(tmp_path: Path) -> None:
    rows = rows_of("sillytavern.jsonl")
    lines = [json.dumps(row) for row in [*rows[:4], rows[2], rows[3]]]
    lines[4] = lines[4][:20]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))
    found = read_votes(tmp_path / "chat.jsonl", skip_bad=True)
    assert (
        len(found.candidates) == 1 and "line 6, the line before it is missing" in found.first_bad()
    )


def test_regenerations_wait_to_be_rated(store: Store) -> None:
    found = read_votes(FILES / "text_generation_webui.json")
    (one,) = found.candidates
    assert one.prompt == [
        {"role": "assistant", "content": "How can I help you today?"},
        {"role": "user", "content": "Is tea < coffee?"},
    ]
    assert {text for text, _ in one.completions} == {
        "That is a matter of taste.",
        "In caffeine, yes.",
    }
    assert {source for _, source in one.completions} == {"Qwen3-4B-Q4_K_M.gguf"}
    assert found.rows_of == {import_chat_logs.OPENING: [1], import_chat_logs.ONE_ANSWER: [3]}


def test_a_chat_log_is_no_file_to_train_on() -> None:
    with pytest.raises(UserError, match="nobody has judged. .*votes PROJECT --import.*Rate page"):
        read_stage_rows(STAGES["dpo"], str(FILES / "sillytavern.jsonl"))


# ---- Label Studio


def test_annotations_are_votes_of_numbered_raters(store: Store) -> None:
    found = read_votes(FILES / "label_studio.json")
    assert found.rows_of == {
        import_label_studio.CANCELLED: [4],
        import_label_studio.NO_CHOICE: [5],
        import_label_studio.NOT_ANNOTATED: [6],
    }
    left, right, other, tie = found.votes
    assert left.prompt == "Write a line about rain." and other.prompt == "Who wrote Emma?"
    assert [vote.verdict.ranking for vote in (left, right, other)] == [
        [[0], [1]],
        [[1], [0]],
        [[0], [1]],
    ]
    assert (left.verdict.note, tie.verdict.verdict) == ("The image is fresh.", "both_bad")
    assert [vote.rater for vote in (left, right)] == ["annotator 3", "annotator 4"]
    assert "example.org" not in str(found) and left.milliseconds == 12_500
    merge(store, found)
    assert store.votes()[0].item_id == store.votes()[1].item_id  # so that agreement is measured


@pytest.mark.parametrize("names", [("text1", "text2"), ("answer_a", "answer_b")])
def test_the_left_answer_is_the_first_by_name(names: tuple[str, str], tmp_path: Path) -> None:
    row = rows_of("label_studio.json")[0]
    row["data"] = {names[1]: "Right.", names[0]: "Left.", "prompt": "?"}
    for result in row["annotations"][0]["result"]:
        result["to_name"] = "txt-1,txt-2"
    vote = read_votes(written(tmp_path, "a.json", [row])).votes[0]
    assert [text for text, _ in vote.completions] == ["Left.", "Right."]
    assert vote.verdict.ranking == [[0], [1]]


def test_the_numbers_of_another_server_are_other_annotations(store: Store, tmp_path: Path) -> None:
    rows = rows_of("label_studio.json")
    first = merge(store, read_votes(written(tmp_path, "a.json", rows)))[0]
    for row in rows:
        row["data"] |= {"prompt": "Another one."}
        for one in row["annotations"]:
            one["created_at"] = one["created_at"].replace("2026", "2027")
            one["unique_id"] = f"other {one['unique_id']}"
    other = merge(store, read_votes(written(tmp_path, "b.json", rows)))[0]
    assert other.added == first.added > 0
    for row in rows:  # an older version, whose annotations have no other name
        for one in row["annotations"]:
            del one["unique_id"]
            one["created_at"] = one["created_at"].replace("2027", "2025")
    old = read_votes(written(tmp_path, "c.json", rows))
    assert merge(store, old)[0].added == first.added and merge(store, old)[0].added == 0


# ---- rankings


def test_the_ranks_of_siblings_are_rankings(tmp_path: Path) -> None:
    found = read_votes(FILES / "openassistant_trees.jsonl")
    first, second = found.votes
    assert [text for text, _ in first.completions] == [
        "Because the sun is below the horizon.",
        "Nobody lights it.",
        "It is not.",
    ]
    assert first.verdict.ranking == [[0], [1], [2]] and first.prompt == talk(
        "Why is the sky dark at night?"
    )
    assert [turn["role"] for turn in second.prompt if isinstance(turn, dict)] == [
        "user",
        "assistant",
        "user",
    ]
    assert second.completions[0][0].startswith("The universe has an age")
    assert found.rows_of == {
        import_trees.REFUSED: [1],
        import_trees.NO_RANK: [2],
        import_trees.ONE_ANSWER: [3],
    }
    flat = read_votes(FILES / "openassistant_messages.jsonl")
    assert told(flat.votes) == told(found.votes)
    assert [vote.prompt for vote in flat.votes] == [vote.prompt for vote in found.votes]
    assert flat.left_out == found.left_out + Counter({import_trees.ORPHANS: 1})
    # Eight answers are two votes that meet in one of them.
    tree = rows_of("openassistant_trees.jsonl")[2]
    reply = tree["prompt"]["replies"][0]
    tree["prompt"]["replies"] = [reply | {"rank": n, "text": f"Hello {n}."} for n in range(8)]
    many = read_votes(written(tmp_path, "many.jsonl", [tree])).votes
    assert [len(vote.completions) for vote in many] == [6, 3]
    assert many[0].completions[-1] == many[1].completions[0]


def test_ratings_are_rankings(store: Store) -> None:
    found = read_votes(FILES / "ultrafeedback.jsonl")
    ranked, tie = found.votes
    assert ranked.verdict.ranking == [[1, 3], [0], [2]] and ranked.prompt == "Explain a lever."
    assert tie.verdict.verdict == "tie" and ranked.completions[1][1] == "bard"
    assert found.left_out == {import_ratings.UNRATED: 1, import_ratings.ONE_ANSWER: 1}
    merge(store, found)
    assert len(list(better_and_worse(store.votes()[0]))) == 5
    binary = read_votes(FILES / "ultrafeedback_binarized.jsonl").votes
    assert told(binary) == [
        (("A wheel that turns a pull around.", "A toy."), "ranked", [[0], [1]]),
        (("Neon.", "Argon."), "tie", []),
    ]
    rated = read_votes(FILES / "distilabel_ratings.jsonl")
    assert told(rated.votes) == [
        (("A rod that wheels turn on.", "Axles axle."), "ranked", [[0], [1]])
    ]


def test_arena_records_of_three_kinds() -> None:
    found = read_votes(FILES / "lmsys_conversations.jsonl")
    assert [vote.verdict.verdict for vote in found.votes] == ["ranked", "tie", "both_bad"]
    assert found.rows_of == {PARTED: [4]} and found.votes[0].rater == "arena_user_1"
    newer = read_votes(FILES / "arena_140k.jsonl")
    one, later = newer.votes
    assert newer.rows_of == {PARTED: [2]} and one.prompt == talk("What is a fjord?")
    assert later.prompt == talk("What is a fjord?", "A valley.", "And a loch?")
    table = read_votes(FILES / "arena_table.csv")
    (vote,) = table.votes
    assert vote.prompt == talk("Is it morally right to be late?") and table.rows_of == {PARTED: [3]}
    assert vote.completions[0] == ("It depends on whom you keep waiting.", "gpt-4-1106-preview")


# ---- the table of the documentation


def test_the_table_of_the_documentation_is_what_the_files_give(
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = FILES.parents[2] / "benchmarks/importers.py"
    spec = importlib.util.spec_from_file_location("importers", script)
    assert spec is not None and spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert set(program.SHAPES) == {file.name for file in FILES.iterdir()}
    program.main()
    page = (FILES.parents[2] / "docs/data.md").read_text(encoding="utf-8")
    for line in capsys.readouterr().out.splitlines():
        assert line in page, line


def test_pairs_that_have_ratings_beside_them_are_pairs(tmp_path: Path) -> None:
    row = {
        "prompt": "?",
        "chosen": "a",
        "rejected": "b",
        "generations": ["a", "b"],
        "ratings": [2, 1],
    }
    (vote,) = read_votes(written(tmp_path, "a.jsonl", [row])).votes
    assert vote.completions == (("a", "imported"), ("b", "imported"))
