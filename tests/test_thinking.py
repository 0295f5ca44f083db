"""Bases whose chat template lets them think: by default no reader of the template asks for it."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, Trainer

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.loading import has_thinking, load_tokenizer
from lorarlhf.backbone.tokenizer import Conversation, PromptEncoder
from lorarlhf.runtime.run import Run
from lorarlhf.stages.assistant_turns import assistant_tokens
from lorarlhf.stages.sft import SFTSettings, train_sft

QUESTION = [{"role": "user", "content": "Hi"}]
TALK = [*QUESTION, {"role": "assistant", "content": "Ho"}]
EMPTY = "<think>\n\n</think>\n\n"


def template(name: str) -> Path:
    """A real template; TRL brings those of many families."""
    return Path(str(files("trl") / "chat_templates" / f"{name}.jinja"))


def encoder(base: Path, name: str, thinking: bool = False) -> PromptEncoder:
    return PromptEncoder(name, load_tokenizer(str(base), str(template(name)), thinking))


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "nemotron_3_nano"])
def test_a_prompt_ends_with_no_thoughts(name: str, tiny_base: Path) -> None:
    calm, free = (encoder(tiny_base, name, thinking) for thinking in (False, True))
    plain = AutoTokenizer.from_pretrained(tiny_base)
    plain.chat_template = template(name).read_text(encoding="utf-8")
    told = plain.apply_chat_template(
        QUESTION, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    own = plain.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    assert told != own
    assert calm.render(QUESTION, answer_next=True) == told
    assert free.render(QUESTION, answer_next=True) == own
    asked = Conversation(QUESTION, {"enable_thinking": True})  # as a row of data can
    assert calm.render(asked, answer_next=True) == own


def test_training_sees_what_sampling_writes(tiny_base: Path) -> None:
    reader = encoder(tiny_base, "qwen3")
    prompt = reader.encode(QUESTION)
    assert reader.render(QUESTION, answer_next=True).endswith(EMPTY)
    (row,) = assistant_tokens(reader, TALK)
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["assistant_masks"] == [0] * len(prompt) + [1] * (len(row["input_ids"]) - len(prompt))


def test_trl_s_trainers_read_it_too(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned, own = [], Trainer.training_step

    def recorded(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        learned.append(inputs["input_ids"][0].clone())
        return own(self, model, inputs, *rest)

    monkeypatch.setattr(Trainer, "training_step", recorded)
    backbone = Backbone.load(
        str(tiny_base),
        bits=16,
        compute_dtype="float32",
        adapter_layers=2,
        chat_template=str(template("qwen3")),
    )
    rows = [{"prompt": "Hi", "completion": "Ho"}] * 2
    settings = SFTSettings(epochs=1.0, batch_size=2, micro_batch_size=2)
    train_sft(backbone, rows, Run(tmp_path, "sft", {"seed": 0}), settings)
    text = backbone.tokenizer.decode(learned[0])
    assert EMPTY in text and text.rstrip().endswith("Ho<|im_end|>")


def test_other_templates_stay_as_they_are(tiny_base: Path, tmp_path: Path) -> None:
    before = AutoTokenizer.from_pretrained(tiny_base).chat_template
    tokenizer = load_tokenizer(str(tiny_base), None)
    assert tokenizer.chat_template == before and not has_thinking(tokenizer)
    file = tmp_path / "template.jinja"
    file.write_text("\n\n{{ messages[0]['content'] }}{{ enable_thinking is defined }}")
    for thinking, said in ((False, "\n\nHiTrue"), (True, "\n\nHiFalse")):
        made = load_tokenizer(str(tiny_base), str(file), thinking)
        assert made.apply_chat_template(QUESTION, tokenize=False) == said
