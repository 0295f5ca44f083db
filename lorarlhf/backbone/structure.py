"""Where things are inside a causal language model, and what is set on it once at load."""

from typing import TYPE_CHECKING, Any

from lorarlhf.runtime.errors import UserError

if TYPE_CHECKING:  # `count_adapter_layers` is asked for where torch is not loaded
    import torch
    from torch import nn


def contiguous(_head: "nn.Module", args: "tuple[torch.Tensor, ...]") -> "tuple[torch.Tensor, ...]":
    # The last positions cut out of (B, T, H) are not contiguous: as they are, the LM head becomes a
    # batched product with one copy of the vocabulary matrix a sequence (900 MB at 16 of them).
    return (args[0].contiguous(), *args[1:])


def never_repack(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for CPU inference.

    On CPUs with AVX512-BF16 the first forward in eval mode repacks a weight in place. Its kernel
    has no backward, so from then on no gradient flows through that layer, without an error; and
    every `state_dict()` packs it back with rounding, which changes the base (bitsandbytes 0.50.2).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def layers_of(model: Any, name: str) -> Any:
    """The decoder's list of layers. Raises a `UserError` for families built otherwise."""
    layers = getattr(decoder_of(model), "layers", None)
    if layers is None:
        raise UserError(
            f"{name} is of the family {model.config.model_type}, whose layers are not where they "
            "are looked for. Families that work: llama, smollm3, qwen2, qwen3, mistral, gemma2, "
            "gemma3, phi3, and others built like them."
        )
    return layers


def decoder_of(model: Any) -> Any:
    """The stack of layers inside a causal language model."""
    return model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
