"""Convert a GGUF file to a Hugging Face folder: `python -m lorarlhf.backbone.convert IN OUT`."""

import sys
from pathlib import Path
from typing import Any

from lorarlhf.backbone.base_cache import REFUSED
from lorarlhf.backbone.gguf_config import complete
from lorarlhf.backbone.gguf_file import read_gguf
from lorarlhf.runtime.errors import UserError

PAD_TOKEN = "<|endoftext|>"


def convert(gguf: Path, folder: Path) -> None:
    """Write bfloat16 safetensors, the tokenizer and the configs of `gguf` to `folder`.

    Raises:
        UserError: the file is no model, or transformers can't be told what it says.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    # Without dequantize=True the model stays marked as quantised: saving and training are refused.
    model: Any = AutoModelForCausalLM.from_pretrained(
        **source,
        config=read_config(gguf),
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # In the small base's file the padding token is also <|im_end|>. Code that masks by token id
    # then masks the stop token, and the model never learns to stop (arXiv 2403.17031), so padding
    # gets its own, if the embedding has a row for it: transformers adds tokens while converting.
    rows = len(model.get_input_embeddings().weight)
    if tokenizer.get_vocab().get(PAD_TOKEN, rows) < rows:
        tokenizer.pad_token = PAD_TOKEN
    elif tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config._name_or_path = folder.name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def read_config(gguf: Path) -> Any:
    """transformers' configuration of a GGUF file, with what its loader leaves at a default.

    Raises:
        UserError: the file is no model, or can't be described to transformers.
    """
    from transformers import AutoConfig, LlamaConfig

    file = read_gguf(gguf)
    config: Any = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if config.model_type == "mistral":
        # Mistral's files are of the family llama. If their name is just "mistral", transformers
        # makes the other family of it, for which it then finds no names of tensors.
        own = config.to_dict() | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        config = LlamaConfig.from_dict(own)
    complete(config, file)
    return config


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(REFUSED)
