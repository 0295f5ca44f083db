"""A base before its weights are loaded: its location, configuration and tokenizer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lorarlhf.backbone.devices import compute_dtype_for, find_device
from lorarlhf.backbone.fetch import PACKAGED, find_base
from lorarlhf.backbone.loading import load_config, load_tokenizer
from lorarlhf.backbone.tokenizer import PromptEncoder
from lorarlhf.runtime import distributed


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
        return PromptEncoder(self.name, self.tokenizer)

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
    log: Callable[[str], None] = lambda text: None,
) -> BaseFiles:
    """Find a base, download it if needed, and read its configuration and tokenizer.

    The arguments are those of `Backbone.load`.

    Raises:
        UserError: no such base or device, not a causal language model, no network, no disk space.
    """
    target = find_device(device, bits)
    path = distributed.main_process_first(lambda: find_base(name, log))
    return BaseFiles(
        name,
        path,
        load_config(path),
        load_tokenizer(path, chat_template),
        target,
        compute_dtype_for(target, compute_dtype),
    )
