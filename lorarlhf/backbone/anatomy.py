"""Where things are inside a causal language model, and what is set on it once at load."""

from typing import TYPE_CHECKING, Any

from lorarlhf.errors import UserError

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


def count_adapter_layers(wanted: int | str, layers: int) -> int:
    """`upper-half`, `all` or a number -> how many layers carry adapters, counted from the top.

    Raises:
        ValueError: another word, or a number below 1 or above the number of layers.
    """
    if wanted == "all":
        return layers
    if wanted == "upper-half":
        return layers - layers // 2
    try:
        number = int(wanted)
    except ValueError:
        number = 0
    if not 1 <= number <= layers:
        raise ValueError(
            f"adapter_layers is 'upper-half', 'all' or a number from 1 to {layers}, not {wanted!r}"
        )
    return number


def count_trained_layers(role: str, wanted: int | None, adapted: int) -> int:
    """How many of the layers with adapters PPO trains of a role, counted from the top.

    Args:
        wanted: as set; None: two thirds of them for the policy and one for the value.
    """
    thirds = {"policy": 2, "value": 1}[role]
    return min(-(-adapted * thirds // 3) if wanted is None else wanted, adapted)
