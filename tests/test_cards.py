"""What waits on machines with cards: several of them, other people's weights, 16-bit rounding."""

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import SFTConfig

from lorarlhf.backbone import devices, trunk
from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.base_files import open_base
from lorarlhf.backbone.devices import find_device
from lorarlhf.backbone.loading import load_config, load_model
from lorarlhf.backbone.memory import adapter_bytes, base_bytes
from lorarlhf.backbone.memory_plan import Plan
from lorarlhf.backbone.shape import read_shape
from lorarlhf.backbone.tokenizer import PromptEncoder, turn_end
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.rollout import rows_at_once
from lorarlhf.ppo.trainer import PPOTrainer
from lorarlhf.rewards.role import encode_answer
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.run import Run
from lorarlhf.stages.dpo_orpo import DirectSettings, train_direct
from lorarlhf.stages.sft import SFTSettings, train_sft
from lorarlhf.stages.trl import trainer
from lorarlhf.stages.trl.arguments import Placement, trl_arguments
from tests.tiny import TINY_SIZES, tiny_tokenizer, write_base

CPU = torch.device("cpu")


def test_one_of_several_cards_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer copies the model to as many cards as its arguments count."""
    monkeypatch.setattr(SFTConfig, "n_gpu", property(lambda self: self.__dict__.get("_n_gpu") or 2))
    made = trl_arguments(SFTConfig, Placement(CPU, torch.float32, tmp_path, 0), {}, {})
    assert made._n_gpu == made.n_gpu == 1


def test_another_card_is_chosen_outside() -> None:
    with pytest.raises(UserError, match="with CUDA_VISIBLE_DEVICES=1 in front"):
        find_device("cuda:1", 4)
    with pytest.raises(UserError, match="none that PyTorch can use"):
        find_device("cuda:0", 4)


def test_a_card_that_torch_cannot_use_is_told(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a driver that is older than this build of torch."""
    said: list[str] = []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    open_base(str(tiny_base), log=said.append)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(devices, "nvidia_card", lambda: "GPU 0: NVIDIA A10")
    assert not any("NVIDIA" in text for text in said)
    open_base(str(tiny_base), device="cpu", log=said.append)
    assert not any("NVIDIA" in text for text in said)
    open_base(str(tiny_base), log=said.append)
    assert any("can't use this machine's NVIDIA card" in text for text in said)
    for value, told in (("", False), ("-1", False), ("0", True)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert (devices.unused_card() is not None) == told


# ---- other people's weights


def test_a_gated_model_says_how_to_log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it.")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refused)
    with pytest.raises(UserError, match="is gated. Accept its terms .* `hf auth login`"):
        Backbone.load("someone/gated")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose weights were stored in 4 bit, with another compute dtype."""
    folder = tmp_path_factory.mktemp("stored")
    write_base(folder / "base")
    model = load_model(str(folder / "base"), 4, CPU, torch.bfloat16)
    shutil.copytree(folder / "base", folder / "4bit")
    (folder / "4bit" / "model.safetensors").unlink()
    model.save_pretrained(folder / "4bit")  # type: ignore[operator]
    return folder / "4bit"


def test_weights_stored_in_4_bit_compute_as_asked(stored: Path) -> None:
    backbone = Backbone.load(str(stored), compute_dtype="float32")
    kinds = [m for m in backbone.causal.modules() if type(m).__name__ == "Linear4bit"]
    assert len(kinds) == 4 * 7 and {m.compute_dtype for m in kinds} == {torch.float32}
    ids = torch.arange(12)[None] + 4
    whole = Backbone.load(str(stored.parent / "base"), compute_dtype="bfloat16")
    mine, theirs = (b.forward.hidden(ids, torch.ones_like(ids)) for b in (backbone, whole))
    assert mine.dtype == torch.float32
    assert (mine - theirs.float()).norm() < 0.03 * mine.norm()


def test_weights_stored_in_another_form_are_refused(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stored in 4 bit, and bits is 16. Use bits=4"):
        Backbone.load(str(stored), bits=16)
    folder = write_base(tmp_path / "gptq")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="quantised by gptq.* Name the original model"):
        Backbone.load(str(folder))


def test_experts_stay_in_16_bit_and_are_counted_so(tmp_path: Path) -> None:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    folder = write_base(tmp_path / "experts", family="qwen3_moe", decoder_sparse_step=1, **sizes)
    said: list[str] = []
    backbone = Backbone.load(str(folder), compute_dtype="float32", log=said.append)
    assert any("is a mixture of experts. They take" in text for text in said)
    said.clear()
    Backbone.load(str(folder), bits=16, compute_dtype="float32", log=said.append)
    assert not any("experts" in text for text in said)
    real = sum(p.nbytes for p in backbone.parameters_of("policy"))
    shape = read_shape(str(folder))
    assert adapter_bytes(shape, Plan("sft", lora_rank=16)) == real
    weights = {
        weight.data_ptr(): weight.nbytes
        for name, weight in backbone.causal.named_parameters()
        if "lora_" not in name
    }
    assert base_bytes(shape, 4, 4) == pytest.approx(sum(weights.values()), rel=0.05)


# ---- answers sampled together


def test_a_card_samples_as_many_as_learning_has_room_for(tiny: Backbone) -> None:
    card: Any = SimpleNamespace(
        device=torch.device("cuda"),
        compute_dtype=torch.float16,
        adapter_layers=2,
        has=lambda role: True,
        causal=SimpleNamespace(config=SimpleNamespace(to_dict=tiny.causal.config.to_dict)),
    )
    args = PPOConfig(
        output_dir="x", use_cpu=True, rollout_batch_size=64, micro_batch_size=1, max_new_tokens=256
    )
    prompts = [[5] * 20]
    assert rows_at_once(card, prompts, args) > rows_at_once(tiny, prompts, args) == 8
    sizes = tiny.causal.config.to_dict() | {"intermediate_size": [8, 8]}  # one for each layer
    card.causal.config.to_dict = lambda: sizes
    assert rows_at_once(card, prompts, args) == 8


# ---- gradient checkpointing, which is on by default on a card


@pytest.mark.parametrize("stage", ["sft", "dpo", "orpo"])
def test_no_gradient_goes_through_the_frozen_layers(
    stage: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    for stops in (True, False):
        backbone = Backbone.load(
            str(tiny_base), bits=16, compute_dtype="float32", adapter_layers=2, lora_rank=4
        )
        embedded: list[torch.Tensor] = []
        backbone.causal.get_input_embeddings().register_forward_hook(
            lambda module, args, output, found=embedded: found.append(output)
        )
        if not stops:
            monkeypatch.setattr(
                trainer, "no_input_gradients", lambda *args: contextlib.nullcontext()
            )
        train(stage, backbone, Run(tmp_path / str(stops), stage, {"seed": 0}))
        assert any(output.requires_grad for output in embedded) != stops
        weights.append([weight.detach().clone() for weight in backbone.parameters_of("policy")])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert any(weight.abs().sum() > 0 for weight in weights[0])


def test_ppo_leaves_no_gradient_at_the_embeddings(tiny_base: Path, tmp_path: Path) -> None:
    backbone = Backbone.load(str(tiny_base), bits=16, compute_dtype="float32", adapter_layers=2)
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, updates=1)
    args = replace(args, rollout_batch_size=4, max_new_tokens=4, gradient_checkpointing=True)
    PPOTrainer(backbone, args, [{"prompt": "Why?"}], [lambda prompts, **_: [1.0] * 4]).train()
    assert not backbone.causal.get_input_embeddings()._forward_hooks


def test_the_old_kind_of_checkpointing_trains_too(tiny_base: Path, tmp_path: Path) -> None:
    backbone = Backbone.load(str(tiny_base), bits=16, compute_dtype="float32", adapter_layers=2)
    reentrant = {"gradient_checkpointing_kwargs": {"use_reentrant": True}}
    train("sft", backbone, Run(tmp_path, "sft", {"seed": 0}), **reentrant)
    assert any(weight.abs().sum() > 0 for weight in backbone.parameters_of("policy"))


def train(stage: str, backbone: Backbone, run: Run, **trl: Any) -> None:
    rows = [{"prompt": f"What is {n}?", "completion": "A sum."} for n in range(4)]
    sizes: dict[str, Any] = {"epochs": 1.0, "batch_size": 2, "micro_batch_size": 2}
    sizes |= {"trl": {"gradient_checkpointing": True} | trl}
    if stage == "sft":
        train_sft(backbone, rows, run, SFTSettings(**sizes))
    else:
        pairs = [{"prompt": r["prompt"], "chosen": "A sum.", "rejected": "No."} for r in rows]
        train_direct(backbone, pairs, run, stage, DirectSettings(**sizes))


# ---- rounding


def test_rounding_is_told_from_a_wrong_mask(tiny_base: Path) -> None:
    backbone = Backbone.load(str(tiny_base), bits=16, compute_dtype="bfloat16")
    one, two = torch.arange(9)[None] + 4, torch.arange(30, 37)[None]
    with torch.no_grad():
        alone, both = (
            backbone.decoder(input_ids=ids).last_hidden_state[0, -7:].float()
            for ids in (two, torch.cat([one, two], dim=1))
        )
    noise = torch.randn(alone.shape, generator=torch.Generator().manual_seed(0))
    rounded = alone + 0.02 * noise * alone.norm() / noise.norm()
    rounded[0, 0] += 0.3  # a single element of a large model's moves by more
    assert trunk._same_numbers(rounded, alone, backbone.decoder)
    assert not trunk._same_numbers(both, alone, backbone.decoder)
    one_row = alone.clone()
    one_row[3] = both[3]
    assert not trunk._same_numbers(one_row, alone, backbone.decoder)


# ---- bases that read images, too


@pytest.fixture(scope="module")
def with_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3 like its larger sizes: layers for images are named as those for text."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    tokenizer = tiny_tokenizer()
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    text = TINY_SIZES | ends | {"vocab_size": len(tokenizer), "pad_token_id": 0}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    tokens = {"mm_tokens_per_image": 4, "image_token_index": 5}
    config = Gemma3Config(text_config=text, vision_config=vision, **tokens)
    folder = tmp_path_factory.mktemp("images")
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_base_that_reads_images_trains_its_text_layers_alone(
    with_images: Path, tmp_path: Path
) -> None:
    load = {"bits": 16, "compute_dtype": "float32", "adapter_layers": 2, "lora_rank": 4}
    backbone = Backbone.load(str(with_images), **load)  # type: ignore[arg-type]
    adapted = [name for name, _ in backbone.model.named_parameters() if "lora_A" in name]
    assert len(adapted) == 14 and all(".language_model.layers." in name for name in adapted)
    rows = [{"prompt": f"{n}?", "completion": "Blue."} for n in range(8)]
    train_sft(backbone, rows, Run(tmp_path / "sft", "sft", {"seed": 0}), SFTSettings(epochs=1.0))
    pairs = [{"prompt": f"{n}?", "chosen": "Blue.", "rejected": "No."} for n in range(8)]
    train_direct(backbone, pairs, Run(tmp_path / "dpo", "dpo", {"seed": 0}), "dpo")
    again = Backbone.load(str(with_images), **load)  # type: ignore[arg-type]
    again.load_role("policy", tmp_path / "dpo" / "adapters" / "policy")
    ids = torch.arange(10, 20)[None]
    with torch.no_grad():
        mine, read = (b.causal(input_ids=ids).logits for b in (backbone, again))
    assert torch.equal(mine, read)


@pytest.mark.parametrize("family", ["mistral3", "qwen2_5_vl", "qwen3_vl"])
def test_families_without_a_plain_language_model_are_refused(tmp_path: Path, family: str) -> None:
    config = {"model_type": family, "architectures": ["SomeForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"family {family}, which reads more than text"):
        load_config(str(tmp_path))


# ---- tokenizers that mark words by a space in front


def spaced_tokenizer(kind: str) -> Any:
    """A tokenizer of llama-2's kind, which puts a space before a text, or of gemma's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    spaces = normalizers.Replace(" ", "▁")
    front = [normalizers.Prepend("▁")] if kind == "llama-2" else []
    ends = ["<s>", "</s>", "<start_of_turn>", "<end_of_turn>"]
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([*front, spaces])
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<unk>", *ends], show_progress=False
    )
    raw.train_from_iterator([f"[INST] user model\n {answer} [/INST]" for answer in SPACED], trainer)
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    turn = "{% for m in messages %}"
    template = turn + (
        "{% if m['role'] == 'user' %}<s>[INST] {{ m['content'] }} [/INST]{% else %} "
        "{{ m['content'] }}</s>{% endif %}{% endfor %}"
        if kind == "llama-2"
        else "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
        "{{ m['content'] }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    eos = "</s>" if kind == "llama-2" else "<end_of_turn>"
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=eos,
        additional_special_tokens=[end for end in ends if end != eos],
        chat_template=template,
    )


SPACED = ["Blue is a colour.", "blue", "No idea, ask again.", "colour blue is", "1. Blue"]


@pytest.mark.parametrize("kind", ["llama-2", "gemma"])
@pytest.mark.parametrize("answer", SPACED)
def test_an_answer_alone_has_the_tokens_that_it_has_in_its_turn(kind: str, answer: str) -> None:
    """The reward role reads what SFT and DPO train on, and what the policy writes."""
    tokenizer = spaced_tokenizer(kind)
    encoder: Any = PromptEncoder(kind, tokenizer)
    encoder.stop_id = turn_end(tokenizer)
    prompt = [{"role": "user", "content": "Name a colour."}]
    read = encode_answer(encoder, prompt, answer)
    whole = encoder.tokenize(encoder.render([*prompt, {"role": "assistant", "content": answer}]))
    assert whole[: len(read.ids)] == read.ids and read.ids[-1] == encoder.stop_id
    assert tokenizer.decode(read.ids[read.start : read.end]).strip() == answer
