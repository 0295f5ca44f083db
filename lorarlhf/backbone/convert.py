"""Convert a GGUF file to a Hugging Face folder: `python -m lorarlhf.backbone.convert IN OUT`."""

import sys
from pathlib import Path
from typing import Any

PAD_TOKEN = "<|endoftext|>"


def convert(gguf: Path, folder: Path) -> None:
    """Write bfloat16 safetensors, the tokenizer and the configs of `gguf` to `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    # Without dequantize=True the model stays marked as quantised: saving and training are refused.
    model: Any = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
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


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
