"""Load the weights and the tokenizer of a base, with errors that explain what is wrong."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorarlhf.backbone.fetch import GATED
from lorarlhf.runtime.errors import UserError


def load_model(
    path: str,
    bits: int,
    device: torch.device,
    dtype: torch.dtype,
    plain_modules: Sequence[str] = (),
) -> nn.Module:
    """The causal language model in 4, 8 or 16 bit on `device`, frozen, in eval mode.

    Args:
        plain_modules: patterns of the linear layers that 4 bit leaves in `dtype`.

    Raises:
        UserError: unknown bits, not a causal language model, not found, or damaged weights.
    """
    from transformers import AutoModelForCausalLM

    if bits not in (4, 8, 16):
        raise UserError(f"bits is 4, 8 or 16, not {bits}.")
    stored = _check_stored(path, load_config(path), bits)
    model = _explained(
        path,
        lambda: AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            quantization_config=_quantization(bits, dtype, plain_modules),
            device_map={"": device},
            # On the CPU, at the lengths of chat answers, the backward of fused attention takes as
            # long as all matrix products of a layer together.
            attn_implementation="eager" if device.type == "cpu" else None,
        ),
    )
    model.requires_grad_(False)
    if stored:
        _set_dtype(model, dtype)
    if bits < 16:
        _copy_out_of_memory_map(model)
    if bits == 8 and device.type == "cpu":
        for module in model.modules():
            kind: Any = type(module)
            if kind.__name__ == "Linear8bitLt":
                module.__class__ = _with_float32_sums(kind)
    return model.eval()


class Float32Sums:
    """Placed before bitsandbytes' class of 8-bit layers: its product runs without autocast.

    Without AVX512 bitsandbytes multiplies 8-bit integers in float32, and autocast would round the
    sums to its own dtype: float16 ends at 65,504, and five products of 127 and 127 exceed that.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        own: Any = super()
        with torch.autocast(x.device.type, enabled=False):
            return own.forward(x)


@cache
def _with_float32_sums(kind: Any) -> type:
    return type(f"Float32Sums{kind.__name__}", (Float32Sums, kind), {})


def load_config(path: str) -> Any:
    """The configuration of a base.

    Raises:
        UserError: it is missing, or not that of a causal language model.
    """
    from transformers import AutoConfig

    config = _explained(path, lambda: AutoConfig.from_pretrained(path))
    _check_causal(path, config)
    return config


def _copy_out_of_memory_map(model: nn.Module) -> None:
    """Copy the tensors that were not quantised out of the checkpoint's memory map.

    One tensor in the map, such as the embeddings on the CPU, keeps in memory all of the 16-bit
    weights that were read through it.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point() and tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def _quantization(bits: int, dtype: torch.dtype, plain_modules: Sequence[str]) -> Any:
    from transformers import BitsAndBytesConfig

    if bits == 16:
        return None
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,  # arXiv 2305.14314, section 3
        bnb_4bit_compute_dtype=dtype,
        # By default transformers leaves out the LM head; a list of one's own replaces that.
        llm_int8_skip_modules=["lm_head", *plain_modules] if plain_modules else None,
    )


def _check_causal(path: str, config: Any) -> None:
    names = getattr(config, "architectures", None) or []
    causal = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    if getattr(config, "is_encoder_decoder", False) or not any(n.endswith(causal) for n in names):
        found = ", ".join(names) or config.model_type
        raise UserError(
            f"{path} is not a causal language model (its config names {found}). RLHF needs a model "
            "that writes text from left to right. Name one whose architecture ends in ForCausalLM."
        )
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        more = any(getattr(config, f"{kind}_config", None) for kind in ("vision", "audio"))
        what = ", which reads more than text" if more else ""
        raise UserError(
            f"{path} is of the family {config.model_type}{what}, and transformers has no plain "
            "language model for it. Name a model of that family for text alone, or another one."
        )


def _set_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Weights that were stored in 4 or 8 bit are loaded with the compute dtype of that time."""
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            layer: Any = module
            layer.compute_dtype = layer.weight.quant_state.dtype = dtype
    for weight in model.parameters():
        # Packed weights may be stored in a floating-point dtype, too; they are no numbers.
        if weight.is_floating_point() and type(weight).__name__ != "Params4bit":
            weight.data = weight.data.to(dtype)


def _check_stored(path: str, config: Any, bits: int) -> bool:
    """Whether the weights were stored in a quantised form; refuse one that was not asked for."""
    stored = getattr(config, "quantization_config", None) or {}
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    method = str(stored.get("quant_method", "")).rpartition(".")[2].lower()
    if not method:
        return False
    if method != "bitsandbytes":
        raise UserError(
            f"The weights in {path} are quantised by {method}, and lorarlhf trains on top of "
            "bitsandbytes' 4 or 8 bit. Name the original model; it is quantised while it is loaded."
        )
    own = 8 if stored.get("load_in_8bit") else 4
    if bits != own:
        raise UserError(
            f"The weights in {path} are stored in {own} bit, and bits is {bits}. Use bits={own}, "
            "or name the original model."
        )
    return True


def _explained(path: str, load: Any) -> Any:
    """Run a loader of transformers and turn its errors into `UserError`s."""
    try:
        return load()
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        if Path(path).is_dir():
            raise UserError(f"The model in {path} can't be loaded: {first}") from error
        if "gated repo" in str(error):
            raise UserError(GATED.format(path)) from error
        raise UserError(
            f"The model {path} is neither in the local Hugging Face cache nor reachable ({first}). "
            "Check the name and the network connection, or name a folder that holds the model."
        ) from error
    except Exception as error:  # safetensors raises its own kind for a damaged file
        if type(error).__name__ != "SafetensorError":
            raise
        raise UserError(
            f"A weight file in {path} is damaged or was cut off ({error}). Fetch the model again."
        ) from error


THINKING = "enable_thinking"
"""The variable by which chat templates let a model write its thoughts before an answer."""
NO_THOUGHTS = f"{{% if {THINKING} is not defined %}}{{% set {THINKING} = false %}}{{% endif +%}}"
"""Begins a chat template that a base without thoughts gets."""


def load_tokenizer(path: str, chat_template: str | None, thinking: bool = False) -> Any:
    """The tokenizer, padding on the left.

    Its padding token is not the stop token, unless the tokenizer has no other.

    Args:
        chat_template: a Jinja file to be used in place of the tokenizer's own template.
        thinking: leave it to the template whether an answer begins with thoughts. Otherwise a
            template that knows `enable_thinking` is told not to, wherever it is used.

    Raises:
        UserError: the chat template's file is missing.
    """
    from transformers import AutoTokenizer

    tokenizer = _explained(path, lambda: AutoTokenizer.from_pretrained(path))
    tokenizer.padding_side = "left"  # save and reload lose it, so it is set after every load
    if chat_template is not None:
        file = Path(chat_template)
        if not file.is_file():
            raise UserError(f"There is no chat template file {file}. Name a Jinja file.")
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    if not thinking and has_thinking(tokenizer):
        # A row of data may still ask for it. The `+` keeps a line break that the template begins
        # with.
        tokenizer.chat_template = NO_THOUGHTS + tokenizer.chat_template
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        spare = tokenizer.unk_token if tokenizer.unk_token_id != tokenizer.eos_token_id else None
        tokenizer.pad_token = spare or tokenizer.eos_token
    return tokenizer


def has_thinking(tokenizer: Any) -> bool:
    """Whether the chat template can let a model think before it answers."""
    return isinstance(tokenizer.chat_template, str) and THINKING in tokenizer.chat_template
