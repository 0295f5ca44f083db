"""Tiny random models of several families, written as GGUF files by llama.cpp's own library.

The tensors are named and changed as llama.cpp's converter does it: rows of queries and keys turned
in Llama's family, Gemma's norms with one added, Phi 3's fused matrices as they are.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
from gguf.tensor_mapping import get_tensor_name_map
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 320,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"head_dim": 16}),
    "mistral": ("llama", {"head_dim": 32, "sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "gemma2": ("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}),
    "gemma3_text": ("gemma3", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}),
    "phi3": ("phi3", {"pad_token_id": 0, "sliding_window": None}),
}
"""transformers' name of each family: llama.cpp's, and what differs from `SIZES`."""
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_model(family: str, **more: Any) -> Any:
    """A random model of a family, the same at each call."""
    _, own = FAMILIES[family]
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SIZES | own | more))
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():  # norms that are all alike would hide what is done to them
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight += 0.2 * torch.randn_like(weight)
            weight.copy_(weight.to(torch.bfloat16))
    return model.eval()


def write_gguf(
    model: Any,
    file: Path,
    *,
    template: str | None = TEMPLATE,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.BF16,
    tensors: dict[str, np.ndarray] | None = None,
    more: dict[str, Any] | None = None,
    name: str = "A tiny model",
) -> Path:
    """Write a model as a GGUF file.

    Args:
        kind: how matrices are stored.
        tensors: further ones; more: further metadata of the family.
    """
    config = model.config
    arch = FAMILIES[config.model_type][0]
    writer = gguf.GGUFWriter(str(file), arch)
    writer.add_name(name)
    _sizes(writer, config)
    for key, value in (more or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(f"{arch}.{key}", value)
    _vocabulary(writer, config.vocab_size, config.model_type)
    if template is not None:
        writer.add_chat_template(template)
    number = next(one for one, name in MODEL_ARCH_NAMES.items() if name == arch)
    names = get_tensor_name_map(MODEL_ARCH(number), config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for own, weight in model.state_dict().items():
        if own == "lm_head.weight" and tied:
            continue
        stem, _, kind_of = own.rpartition(".")
        values = _as_llama_cpp(arch, own, weight, config).float().numpy()
        stored = kind if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(values, stored)
        writer.add_tensor(f"{names.get_name(stem)}.{kind_of}", data, raw_dtype=stored)
    for own, further in (tensors or {}).items():
        writer.add_tensor(own, further.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    ropes = config.rope_parameters
    writer.add_rope_freq_base(ropes.get("full_attention", ropes)["rope_theta"])
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    if window := getattr(config, "sliding_window", None):
        writer.add_sliding_window(window)


def _vocabulary(writer: gguf.GGUFWriter, size: int, family: str) -> None:
    """A vocabulary of single bytes, in the form that files of the family have."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    if family.startswith(("gemma", "mistral", "phi")):
        pieces = ["<unk>", "<s>", "</s>", *special, "\u2581"]
        pieces += [f"<0x{n:02X}>" for n in range(256)] + list("abcdefghijklmnopqrstuvwxyz")
        kinds = [2, 3, 3, 3, 3, 3, 1, *[6] * 256, *[1] * 26]
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        pieces += [f"[extra{n}]" for n in range(size - len(pieces))]
        writer.add_token_scores([-float(n) for n in range(size)])
    else:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        pieces = [*special, *bytes_to_unicode().values(), "he"]
        kinds = [3, 3, 3, *[1] * 257]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        pieces += [f"[extra{n}]" for n in range(size - len(pieces))]
        writer.add_token_merges(["h e"])
    writer.add_token_list(pieces)
    writer.add_token_types([*kinds, *[1] * (size - len(kinds))])
    writer.add_eos_token_id(pieces.index("<|im_end|>"))
    writer.add_pad_token_id(pieces.index("<|endoftext|>"))


def _as_llama_cpp(arch: str, name: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
    if arch == "llama" and (
        "q_proj" in name or "k_proj" in name
    ):  # pairs of neighbours, not halves
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        parts = weight.reshape(heads, 2, -1, *weight.shape[1:])
        return parts.swapaxes(1, 2).reshape(weight.shape).contiguous()
    if arch.startswith("gemma") and "norm" in name:
        return weight + 1
    return weight
