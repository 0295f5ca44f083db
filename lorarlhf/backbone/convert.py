"""Convert a GGUF file to a Hugging Face folder: `python -m lorarlhf.backbone.convert IN OUT`."""

import sys
from pathlib import Path
from typing import Any

from lorarlhf.backbone.base_cache import REFUSED
from lorarlhf.backbone.gguf_config import complete
from lorarlhf.backbone.gguf_file import read_gguf
from lorarlhf.backbone.gguf_weights import ONE_BY_ONE, write_weights
from lorarlhf.runtime.errors import UserError

PAD_TOKEN = "<|endoftext|>"


def convert(gguf: Path, folder: Path) -> None:
    """Write bfloat16 safetensors, the tokenizer and the configs of `gguf` to `folder`.

    Raises:
        UserError: the file is no model, or transformers can't be told what it says.
    """
    import torch
    from transformers import AutoTokenizer, GenerationConfig

    file, config = read_gguf(gguf), read_config(gguf)
    folder.mkdir(parents=True)
    if file.architecture in ONE_BY_ONE:
        model = write_weights(config, file, folder, torch.bfloat16)
    else:
        model = _write_at_once(config, gguf, folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # In the small base's file the padding token is also <|im_end|>. Code that masks by token id
    # then masks the stop token, and the model never learns to stop (arXiv 2403.17031), so padding
    # gets its own, if the embedding has a row for it: transformers adds tokens while converting.
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.get_vocab().get(PAD_TOKEN, rows) < rows:
        tokenizer.pad_token = PAD_TOKEN
    elif tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token
    config.architectures, config.dtype = [type(model).__name__], "bfloat16"
    config.pad_token_id = tokenizer.pad_token_id
    config._name_or_path = folder.name
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_at_once(config: Any, gguf: Path, folder: Path) -> Any:
    """Write the weights of a family whose matrices transformers puts together; returns the model.

    Raises:
        UserError: the file lacks some of the model's weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    # Without dequantize=True the model stays marked as quantised: saving is refused.
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        config=config,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
    )
    model, about = loaded
    if missing := sorted(about["missing_keys"]):
        raise UserError(
            f"{gguf} lacks {len(missing)} of the model's weights, such as {missing[0]}. Fetch the "
            "file again, or name the model's safetensors as --base."
        )
    model.save_pretrained(folder)
    return model


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
