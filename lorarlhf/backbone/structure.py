"""Find the parts of a causal language model, and settings that are applied once after loading."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lorarlhf.runtime.errors import UserError


def make_contiguous(_head: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """A forward pre-hook for the LM head that makes its input contiguous.

    The last positions, cut out of (B, T, H), are not contiguous. With them the LM head becomes a
    batched product with one copy of the vocabulary matrix for each sequence (900 MB for 16).
    """
    return (args[0].contiguous(), *args[1:])


def never_repack(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for CPU inference.

    On CPUs with AVX512-BF16 the first forward in eval mode repacks a weight in place. The kernel
    for repacked weights has no backward, so no gradient flows through that layer any more, without
    an error; and every `state_dict()` packs the weight back with rounding, which changes the base
    (bitsandbytes 0.50.2).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def layers_of(model: Any, name: str) -> Any:
    """The decoder's list of layers. Raises a `UserError` for families built differently."""
    layers = getattr(decoder_of(model), "layers", None)
    if layers is None:
        raise UserError(
            f"{name} is of the family {model.config.model_type}, whose layers are not where they "
            "are expected. Families that work: llama, smollm3, qwen2, qwen3, mistral, gemma2, "
            "gemma3, phi3, and others built like them."
        )
    return layers


def decoder_of(model: Any) -> Any:
    """The stack of layers inside a causal language model."""
    return model.get_decoder() if hasattr(model, "get_decoder") else model.base_model


@contextmanager
def no_input_gradients(
    model: nn.Module, checkpointing: dict[str, Any] | None = None
) -> Iterator[None]:
    """Let no gradient go through the layers below the lowest adapter.

    With gradient checkpointing TRL and transformers make the embeddings' output require one, which
    only the old, reentrant kind of checkpointing needs. The weights come out the same, and the
    backward of the lower layers and the inputs stored for it are saved.

    Args:
        checkpointing: arguments of gradient checkpointing; with `use_reentrant` nothing changes.
    """
    if (checkpointing or {}).get("use_reentrant"):
        yield
        return
    name = "enable_input_require_grads"
    modules: list[Any] = [module for module in model.modules() if hasattr(module, name)]
    for module in modules:
        module.__dict__[name] = lambda: None
    try:
        yield
    finally:
        for module in modules:
            del module.__dict__[name]
