"""A GGUF file of one's own becomes a base by the command that the message names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.convert import convert

OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
INSIDE = {
    **{f"self_attn.{side}_proj": f"attn_{side}" for side in "qkv"},
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def name_in_gguf(name: str) -> str:
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{INSIDE[part]}.weight"


def write_gguf(base: Path, file: Path) -> Any:
    """The base as a GGUF file; returns its model."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(base),
        AutoTokenizer.from_pretrained(base),
    )
    writer, config = gguf.GGUFWriter(str(file), "llama"), model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = tokenizer.get_vocab()
    merges = json.loads((base / "tokenizer.json").read_text())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_types([1] * len(vocabulary))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, weight in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:  # llama.cpp turns pairs of neighbours, not halves
            parts = weight.reshape(config.num_attention_heads, 2, -1, weight.shape[1])
            weight = parts.swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(name_in_gguf(name), weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_a_converted_file_is_a_base(make_base: Callable[..., Path], tmp_path: Path) -> None:
    model = write_gguf(make_base(num_key_value_heads=4), tmp_path / "tiny.gguf")
    convert(tmp_path / "tiny.gguf", tmp_path / "tiny")
    backbone = Backbone.load(str(tmp_path / "tiny"), bits=16, compute_dtype="float32")
    assert backbone.pad_id < 384 and backbone.encode([{"role": "user", "content": "Hi"}])
    ids = torch.arange(5, 25)[None]
    assert max(backbone.stop_ids) < 384
    with torch.no_grad(), backbone.role("base"):
        made = backbone.model(input_ids=ids).logits
        expected = model(input_ids=ids).logits
    torch.testing.assert_close(made, expected, rtol=0, atol=0.1)  # of logits up to 3, in bfloat16
