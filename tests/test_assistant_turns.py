"""SFT on `messages` learns the assistant's turns, and no others, whatever the template."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.tokenizer import Conversation, PromptEncoder
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.run import Run
from lorarlhf.stages import sft
from lorarlhf.stages.assistant_turns import assistant_tokens
from lorarlhf.stages.sft import SFTSettings, train_sft
from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

DEFAULT = "<|im_start|>system\nYou are kind.<|im_end|>\n"
WITH_SYSTEM = "{% if messages[0]['role'] != 'system' %}" + DEFAULT + "{% endif %}" + CHAT_TEMPLATE
MARKED = CHAT_TEMPLATE.replace(
    "{{ message['content'] }}<|im_end|>\n",
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>{% endif %}{{ '\\n' }}",
)
# Leaves out the reasoning of all turns but the last, as Qwen3's does.
FORGETS = CHAT_TEMPLATE.replace(
    "{{ message['content'] }}",
    "{{ message['content'].split('</think>')[0 if loop.last else -1:] | join('</think>') }}",
)
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "A fish?"},
    {"role": "assistant", "content": "A cod."},
    {"role": "user", "content": "A bird?"},
    {"role": "assistant", "content": "A crow."},
]


def encoder(template: str) -> PromptEncoder:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return PromptEncoder("tiny", tokenizer)


def learned(encoder: PromptEncoder, row: dict[str, Any]) -> list[str]:
    """The pieces of text that are learned, each without a gap."""
    pieces: list[list[int]] = []
    before = 0
    for token, mask in zip(row["input_ids"], row["assistant_masks"], strict=True):
        if mask and not before:
            pieces.append([])
        if mask:
            pieces[-1].append(token)
        before = mask
    return [encoder.tokenizer.decode(ids) for ids in pieces]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, WITH_SYSTEM, MARKED])
def test_every_turn_of_the_assistant_and_nothing_else(template: str) -> None:
    reads = encoder(template)
    (row,) = assistant_tokens(reads, TALK)
    assert learned(reads, row) == ["A cod.<|im_end|>\n", "A crow.<|im_end|>\n"]
    assert row["input_ids"] == reads.tokenize(reads.render(TALK))
    (row,) = assistant_tokens(reads, TALK[1:3])  # the template's own system prompt is not learned
    assert learned(reads, row) == ["A cod.<|im_end|>\n"]
    (row,) = assistant_tokens(reads, [*TALK, {"role": "user", "content": "Thanks."}])
    assert learned(reads, row) == ["A cod.<|im_end|>\n", "A crow.<|im_end|>\n"]
    (row,) = assistant_tokens(reads, [{"role": "assistant", "content": "Welcome."}])
    assert "Welcome.<|im_end|>\n" in learned(reads, row)[0]


def test_a_template_that_changes_earlier_turns_gives_a_row_a_turn() -> None:
    reads = encoder(FORGETS)
    talk = [dict(turn) for turn in TALK]
    for turn in talk:
        if turn["role"] == "assistant":
            turn["content"] = f"<think>hm</think>{turn['content']}"
    rows = assistant_tokens(reads, talk)
    ends = ["<think>hm</think>A cod.<|im_end|>\n", "<think>hm</think>A crow.<|im_end|>\n"]
    assert [learned(reads, row) for row in rows] == [[end] for end in ends]
    # The context of the second is what sampling shows: the first without its reasoning.
    assert "hm</think>A cod" not in reads.tokenizer.decode(rows[1]["input_ids"])


def test_a_template_that_refuses_says_what() -> None:
    reads = encoder(STRICT + CHAT_TEMPLATE)
    with pytest.raises(UserError, match=r"refuses .* roles system, user, assistant.*no system"):
        assistant_tokens(reads, TALK)
    with pytest.raises(UserError, match="no system turn"):
        reads.encode(TALK)


def test_arguments_of_the_template_reach_it() -> None:
    reads = encoder("{{ tools | length }} {{ tone }}: " + CHAT_TEMPLATE)
    talk = Conversation(TALK, {"tools": [{"name": "look"}], "tone": "kind"})
    (row,) = assistant_tokens(reads, talk)
    assert reads.tokenizer.decode(row["input_ids"]).startswith("1 kind: <|im_start|>")
    assert learned(reads, row) == ["A cod.<|im_end|>\n", "A crow.<|im_end|>\n"]


@pytest.mark.parametrize("template", [WITH_SYSTEM, MARKED])
def test_messages_train_as_prompt_and_completion_do(
    template: str, make_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base()
    config = json.loads((base / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    (base / "chat_template.jinja").write_text(template)
    pairs = [("A fish?", "A cod."), ("Another one, please?", "A pike, or a trout.")]
    split = [{"prompt": prompt, "completion": answer} for prompt, answer in pairs]
    whole = [
        {
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer},
            ]
        }
        for prompt, answer in pairs
    ]
    seen: list[list[Any]] = []
    plain = sft.run_trl_trainer

    def watched(*args: Any, **named: Any) -> Any:
        trainer = plain(*args, **named)
        columns = ("input_ids", "labels")
        seen.append([[row[name] for name in columns] for row in trainer.train_dataset])
        return trainer

    monkeypatch.setattr(sft, "run_trl_trainer", watched)
    losses = []
    for name, rows in (("split", split), ("whole", whole)):
        backbone = Backbone.load(str(base), bits=16, compute_dtype="float32", lora_rank=4)
        run = Run(tmp_path / name, "sft", {"seed": 0})
        losses.append(train_sft(backbone, rows, run, SFTSettings(save_steps=0))["loss_last"])
    assert seen[0] == seen[1] and losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert sum(label != -100 for label in seen[0][0][1]) <= 8

    backbone = Backbone.load(str(base), bits=16, compute_dtype="float32", lora_rank=4)
    run = Run(tmp_path / "all", "sft", {"seed": 0})
    train_sft(backbone, whole, run, SFTSettings(save_steps=0, assistant_only=False))
    assert all(-100 not in labels for _, labels in seen[2])
