"""How an answer ends, where the tokenizer's EOS is not what the chat template ends a turn with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import generate
from lorarlhf.backbone.tokenizer import turn_end, turn_end_notice
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.health import diagnose
from lorarlhf.ppo.trainer import PPOTrainer
from lorarlhf.rewards.role import encode_answer
from lorarlhf.runtime.run import Run
from lorarlhf.stages.sft import SFTSettings, train_sft
from tests.tiny import CHAT_TEMPLATE, SPECIALS, tiny_tokenizer

EOS, END = "<|endoftext|>", "<|im_end|>"
ENDED = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
LATE = "{% for m in messages %}{{ m['content'] }}\n\n<|im_end|>{{ eos_token }}{% endfor %}"
TEXT = "{% for m in messages %}### {{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
STRICT = "{{ raise_exception('only system prompts') }}"


@pytest.fixture(scope="module")
def base(make_base: Callable[..., Path]) -> Path:
    return make_base(eos=EOS)


def load(base: Path, **more: Any) -> Backbone:
    settings = {"bits": 16, "compute_dtype": "float32", "adapter_layers": 4, "lora_rank": 8}
    return Backbone.load(str(base), **(settings | more))


@pytest.mark.parametrize(
    ("template", "wanted"),
    [(CHAT_TEMPLATE, END), (ENDED, EOS), (LATE, END), (TEXT, None), (STRICT, None), (None, None)],
)
def test_the_token_that_a_template_ends_a_turn_with(template: str, wanted: str | None) -> None:
    tokenizer = tiny_tokenizer(eos=EOS)
    tokenizer.chat_template = template
    found = turn_end(tokenizer)
    assert (None if found is None else tokenizer.convert_ids_to_tokens(found)) == wanted
    said = turn_end_notice(tokenizer, {tokenizer.eos_token_id}) or ""
    if wanted == END:
        assert END in said and EOS in said
    elif template in (TEXT, STRICT):
        assert "does not learn to stop" in said
        assert turn_end_notice(tokenizer, {tokenizer.eos_token_id, 7}) is None
    else:
        assert said == ""


def test_answers_end_at_both_and_it_is_told_once(base: Path) -> None:
    told: list[str] = []
    backbone = load(base, log=told.append)
    ids = backbone.tokenizer.convert_tokens_to_ids([END, EOS])
    assert backbone.stop_ids == sorted(ids) and backbone.stop_id == ids[0]
    assert backbone.tokenizer.eos_token == EOS
    # Where TRL's trainers and an exported model look.
    assert backbone.causal.generation_config.eos_token_id == sorted(ids)
    assert len([text for text in told if END in text and EOS in text]) == 1
    assert encode_answer(backbone, [{"role": "user", "content": "Hi"}], "Yes").ids[-1] == ids[0]


def test_one_stop_token_is_not_told(tiny_base: Path) -> None:
    told: list[str] = []
    backbone = load(tiny_base, log=told.append)
    assert [text for text in told if END in text] == []
    assert backbone.stop_ids == [backbone.stop_id] == [backbone.tokenizer.eos_token_id]


def test_a_tuned_model_stops(base: Path, tmp_path: Path) -> None:
    backbone = load(base)
    rows = [
        {"prompt": text, "completion": "Yes."} for text in ("Is it?", "Really?", "Sure?", "So?")
    ]
    run = Run(tmp_path, "sft", {"seed": 0})
    train_sft(backbone, rows, run, SFTSettings(epochs=60, learning_rate=1e-2, save_steps=0))
    chats = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    for answer in generate(backbone, chats, max_new_tokens=24, temperature=0.0):
        assert answer.ended and answer.ids[-1] == backbone.stop_id
        assert answer.text == "Yes."


@pytest.mark.parametrize("ends", [True, False])
def test_ppo_counts_what_ended_and_tells_where_nothing_does(
    ends: bool,
    make_base: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = make_base(eos=EOS)
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"][SPECIALS.index(END)] *= 6  # likely in about half of all places
    if not ends:
        monkeypatch.setattr(Backbone, "stop_ids", [100_000])
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    args = PPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        disable_tqdm=True,
        updates=6,
        rollout_batch_size=8,
        micro_batch_size=8,
        max_new_tokens=12,
        critic_warmup=0,
        save_steps=1000,
        learning_rate=1e-4,
    )
    rows = [{"prompt": f"What is {n}?"} for n in range(8)]
    trainer = PPOTrainer(load(base), args, rows, lambda completions, **_: [1.0] * len(completions))
    trainer.train()
    log = [row for row in trainer.state.log_history if "ended_fraction" in row]
    found = {finding.alarm.name for finding in diagnose(log)}
    assert all((row["ended_fraction"] > 0.3) == ends for row in log)
    assert ("endless_answers" in found) != ends
