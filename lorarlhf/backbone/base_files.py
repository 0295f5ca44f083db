"""A base before its weights are loaded: its location, configuration and tokenizer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lorarlhf.backbone.devices import compute_dtype_for, find_device, unused_card
from lorarlhf.backbone.fetch import PACKAGED, find_base
from lorarlhf.backbone.loading import load_config, load_tokenizer
from lorarlhf.backbone.tokenizer import RESIZE, PromptEncoder
from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError


def context_length(config: Any) -> int | None:
    """The most tokens that a model reads; None if its configuration has no limit.

    Rotary embeddings can be stretched: then the limit is the original one times the factor.
    """
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    ropes = getattr(config, "rope_parameters", None) or {}
    for rope in (ropes, *(value for value in ropes.values() if isinstance(value, dict))):
        original, factor = rope.get("original_max_position_embeddings"), rope.get("factor")
        if original and factor:
            limits.append(int(original * factor))
    return max((limit for limit in limits if isinstance(limit, int)), default=None)


@dataclass(frozen=True)
class BaseFiles:
    """A base whose configuration and tokenizer are read and whose weights are not.

    Attributes:
        name: the name given by the user; path: the folder or id to load.
        config: transformers' configuration.
        tokenizer: pads on the left.
        device: where the weights will be loaded; dtype: the compute dtype.
    """

    name: str
    path: str
    config: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype

    @property
    def encoder(self) -> PromptEncoder:
        """Encodes prompts with this base's tokenizer."""
        text = self.config.get_text_config()
        vocabulary = getattr(text, "vocab_size", None)
        return PromptEncoder(self.name, self.tokenizer, vocabulary, context_length(text))

    @property
    def plain_modules(self) -> tuple[str, ...]:
        """Patterns of the linear layers that 4 bit leaves in the compute dtype."""
        return PACKAGED[self.name].plain_modules if self.name in PACKAGED else ()


def open_base(
    name: str,
    *,
    bits: int = 4,
    device: str | None = None,
    compute_dtype: str | None = None,
    chat_template: str | None = None,
    thinking: bool = False,
    log: Callable[[str], None] = lambda text: None,
) -> BaseFiles:
    """Find a base, download it if needed, and read its configuration and tokenizer.

    The arguments are those of `Backbone.load`.

    Raises:
        UserError: no such base or device, not a causal language model, no network, no disk space,
            or a tokenizer whose special tokens the embedding has no rows for.
    """
    target = find_device(device, bits)
    if device is None and (notice := unused_card(bits)):
        log(notice)
    path = distributed.main_process_first(lambda: find_base(name, log))
    base = BaseFiles(
        name,
        path,
        load_config(path),
        load_tokenizer(path, chat_template, thinking),
        target,
        compute_dtype_for(target, compute_dtype),
    )
    _check_special_tokens(base)
    return base


def _check_special_tokens(base: BaseFiles) -> None:
    """See that the embedding has rows for the tokens that every run uses.

    Other tokens may be beyond it, as in text-only copies of models that also read pictures.
    """
    rows, tokenizer = base.encoder.vocabulary, base.tokenizer
    named = {"padding": "pad_token", "end": "eos_token", "beginning": "bos_token"}
    for kind, name in named.items():
        number = getattr(tokenizer, f"{name}_id")
        if rows is not None and number is not None and number >= rows:
            raise UserError(
                f"The tokenizer in {base.path} has {len(tokenizer)} tokens, and the embedding has "
                f"{rows} rows: none for the {kind} token {getattr(tokenizer, name)} (number "
                f"{number}). {RESIZE}"
            )
