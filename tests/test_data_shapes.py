"""Data sets in the shapes of TRL, HH, UltraFeedback and ShareGPT are read as they are meant."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lorarlhf.backbone.tokenizer import Conversation, PromptEncoder
from lorarlhf.cli import prepare
from lorarlhf.data import (
    read_demonstrations,
    read_labelled,
    read_preferences,
    read_prompts,
    write_jsonl,
)
from lorarlhf.runtime.errors import UserError
from lorarlhf.stages.conversations import (
    conversational,
    prompt_conversations,
    refuse_template_columns,
)
from lorarlhf.stages.table import STAGES
from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

Row = dict[str, Any]
USER, GOOD, BAD = (
    {"role": role, "content": text}
    for role, text in (("user", "A fish?"), ("assistant", "A cod."), ("assistant", "No."))
)
SYSTEM = {"role": "system", "content": "Be brief."}
WANTED = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
HH = "\n\nHuman: A fish?\n\nAssistant: A cod.\n\nHuman: A bird?\n\nAssistant:"
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"n": {"default": 1}}}}]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Row]]:
    """`read(reader, *rows)`: the rows, written to a file and read again."""

    def both(reader: Callable[[Path], list[Row]], *rows: Row) -> list[Row]:
        write_jsonl(tmp_path / "rows.jsonl", rows)
        return reader(tmp_path / "rows.jsonl")

    return both


@pytest.mark.parametrize(
    "row",
    [
        WANTED,
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        # UltraFeedback, binarised: the prompt as text, and again in both dialogues.
        {"prompt": "A fish?", "chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 8.0},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "A fish?", "chosen": [GOOD], "rejected": [BAD]},
        # ShareGPT's preferences.
        {
            "conversations": [{"from": "human", "value": "A fish?"}],
            "chosen": {"from": "gpt", "value": "A cod."},
            "rejected": {"from": "gpt", "value": "No."},
        },
        {
            "chosen": "\n\nHuman: A fish?\n\nAssistant: A cod.",
            "rejected": "\n\nHuman: A fish?\n\nAssistant: No.",
        },
    ],
)
def test_preferences(read: Any, row: Row) -> None:
    (found,) = read(read_preferences, row)
    assert {name: found[name] for name in WANTED} == WANTED


def test_hh_dialogues_of_several_turns(read: Any) -> None:
    (row,) = read(
        read_preferences,
        {"chosen": f"{HH} A crow.\n\nHuman: Thanks.\n\nAssistant: Bye.", "rejected": f"{HH} Why?"},
    )
    assert row["prompt"] == [USER, GOOD, {"role": "user", "content": "A bird?"}]
    assert [row[name][0]["content"] for name in ("chosen", "rejected")] == ["A crow.", "Why?"]


def test_texts_with_an_implicit_prompt(read: Any) -> None:
    """As in TRL's documentation; cut before a word, so that no word is cut in two."""
    (row,) = read(read_preferences, {"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert row == {"prompt": "The sky is", "chosen": " blue.", "rejected": " black."}
    with pytest.raises(UserError, match='"prompt"'):
        read(read_preferences, {"chosen": "Blue.", "rejected": "Black."})


def test_parquet_as_data_sets_are_published(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": "A fish?",
            "prompt_id": "a1",
            "chosen": [USER, GOOD],
            "rejected": [USER, BAD],
            "messages": [USER, GOOD],
            "score_chosen": 8.0,
        }
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (row,) = read_preferences(tmp_path / "rows.parquet")
    assert {name: row[name] for name in WANTED} == WANTED


@pytest.mark.parametrize(
    "row",
    [
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "A fish?"},
                {"from": "gpt", "value": "A cod."},
            ]
        },
        {"conversations": [USER, GOOD], "system": "Be brief."},
        {"messages": [USER, GOOD], "system": "Be brief."},
        {"messages": [SYSTEM, USER, GOOD], "system": "Be brief."},
    ],
)
def test_demonstrations(read: Any, row: Row) -> None:
    assert read(read_demonstrations, row) == [{"messages": [SYSTEM, USER, GOOD]}]


def test_a_system_column_is_the_first_message(read: Any) -> None:
    system = {"system": "Be brief."}
    (row,) = read(read_demonstrations, {"prompt": "A fish?", "completion": "A cod."} | system)
    assert row == {"prompt": [SYSTEM, USER], "completion": [GOOD]}
    (row,) = read(read_preferences, {"chosen": [USER, GOOD], "rejected": [USER, BAD]} | system)
    assert row == WANTED | {"prompt": [SYSTEM, USER]}
    (row,) = read(read_labelled, {"prompt": "A fish?", "completion": "No.", "label": 0} | system)
    assert row == {"prompt": [SYSTEM, USER], "completion": [BAD], "label": False}
    (row,) = read(read_prompts, {"prompt": "A fish?"} | system)
    assert row == {"prompt": [SYSTEM, USER], "system": "Be brief."}


def test_columns_that_are_not_used_are_said_once(
    read: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "A fish?", "completion": "A cod.", "topic": "sea", "source": None}
    read(read_demonstrations, row, row | {"score": 1})
    assert capsys.readouterr().err.count('not used: "topic", "score"') == 1
    read(read_prompts, row)  # a reward function may use any column
    assert capsys.readouterr().err == ""


def test_answers_marked_bad_are_no_demonstrations(read: Any) -> None:
    good = {"prompt": "A fish?", "completion": "A cod.", "label": True}
    assert read(read_demonstrations, good) == [{"prompt": "A fish?", "completion": "A cod."}]
    for label in (False, 0, "false"):
        with pytest.raises(UserError, match=r'line 2, field "label".*command kto'):
            read(read_demonstrations, good, good | {"label": label})


@pytest.mark.parametrize(("name", "value"), [("tools", "look"), ("chat_template_kwargs", [1])])
def test_columns_for_the_template_are_checked(read: Any, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f'line 1, field "{name}"'):
        read(read_demonstrations, {"messages": [USER, GOOD], name: value})


def test_tools_and_arguments_reach_the_template(read: Any) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ tools | length }} {{ tone }}: " + CHAT_TEMPLATE
    encoder = PromptEncoder("tiny", tokenizer)
    more = {"tools": TOOLS, "chat_template_kwargs": {"tone": "kind"}}
    rows = read(read_preferences, WANTED | more, WANTED | more)
    for row in conversational(rows, encoder, plain=False):
        assert isinstance(row["prompt"], Conversation)
        assert tokenizer.decode(encoder.encode(row["prompt"])).startswith("1 kind: <|im_start|>")
        assert json.loads(row["tools"]) == TOOLS  # for TRL, which hands them to the template
        assert row["chat_template_kwargs"] == {"tone": "kind"}
    prompts = read(read_prompts, {"prompt": "A fish?"} | more)
    (row,) = prompt_conversations(prompts, plain=False)
    assert tokenizer.decode(encoder.encode(row["prompt"])).startswith("1 kind: <|im_start|>")
    with pytest.raises(UserError, match="tools and chat_template_kwargs.* in orpo"):
        refuse_template_columns(rows, "orpo")


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_files_of_votes_are_read_as_an_import_reads_them(stage: str, tmp_path: Path) -> None:
    battle = {"conversation_a": [USER, GOOD], "conversation_b": [USER, BAD], "winner": "model_a"}
    more = {"model_a": "one", "model_b": "two", "question_id": "1", "judge": "ann"}
    write_jsonl(tmp_path / "battles.jsonl", [battle | more])
    rows = prepare.read_stage_rows(STAGES[stage], str(tmp_path / "battles.jsonl"))
    if stage == "dpo":
        assert [{name: row[name] for name in WANTED} for row in rows] == [WANTED]
    else:
        assert [(row["completion"], row["label"]) for row in rows] == [
            ([GOOD], True),
            ([BAD], False),
        ]
    with pytest.raises(UserError, match='"completion"'):  # prompts are not
        prepare.read_stage_rows(STAGES["kto"], str(write_prompts(tmp_path)))


def write_prompts(folder: Path) -> Path:
    write_jsonl(folder / "prompts.jsonl", [{"prompt": "A fish?"}])
    return folder / "prompts.jsonl"
