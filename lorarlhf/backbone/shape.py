"""The sizes of a decoder, read from a model's `config.json`. Needs neither weights nor torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorarlhf.backbone.fetch import GATED, PACKAGED, find_base
from lorarlhf.backbone.gguf_base import converted_before, gguf_config, is_gguf
from lorarlhf.runtime.errors import UserError

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""The names by which configurations give the number of MLPs in a layer."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder's layers, and its vocabulary.

    Attributes:
        tied: whether the LM head is the embedding matrix.
        experts: MLPs in each layer; 1 unless it is a mixture of experts.
        plain_weights: of the layers' weights, those that 4 bit leaves in the compute dtype, and
            8 bit, too, if they are experts.
        capped: whether attention's scores have a cap.
    """

    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    experts: int = 1
    plain_weights: int = 0
    capped: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shape":
        """Read a decoder's configuration.

        Raises:
            KeyError: a size is missing under the name that these configurations use.
        """
        whole, config = config, config.get("text_config") or config
        # Left out of the file if it is the family's own default.
        default = str(config.get("model_type", "")).startswith(("gemma", "cohere"))
        tied = config.get("tie_word_embeddings", whole.get("tie_word_embeddings", default))
        heads = config["num_attention_heads"]
        experts = max((config.get(name) or 1 for name in EXPERTS), default=1)
        width = config.get("moe_intermediate_size") or config["intermediate_size"]
        mixed = experts * 3 * config["hidden_size"] * width if experts > 1 else 0
        return cls(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            key_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            intermediate=width,
            vocabulary=config["vocab_size"],
            tied=tied,
            experts=experts,
            plain_weights=mixed * config["num_hidden_layers"],  # bitsandbytes quantises no experts
            capped=bool(config.get("attn_logit_softcapping")),
        )

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(in, out) of each linear layer in one decoder layer."""
        queries, keys = self.heads * self.head_dim, self.key_heads * self.head_dim
        attention = [(self.hidden, queries), *[(self.hidden, keys)] * 2, (queries, self.hidden)]
        mlp = [(self.hidden, self.intermediate)] * 2 + [(self.intermediate, self.hidden)]
        return attention + mlp * self.experts

    @property
    def adapted(self) -> list[tuple[int, int]]:
        """Of `matrices`, those that bitsandbytes quantises and LoRA adapts: not those of experts,
        which are no linear layers."""
        return self.matrices if self.experts == 1 else self.matrices[:4]


def read_shape(base: str) -> Shape:
    """The sizes of a base: a `config.json`, a folder with one, a GGUF file, a name or an id.

    Raises:
        UserError: it is not found, or lacks the sizes of a decoder.
    """
    file = Path(base).expanduser()
    if is_gguf(base) and file.is_file() and converted_before(file) is None:
        return Shape.of(gguf_config(file))  # an estimate needs no conversion
    path = config_file(base)
    try:
        shape = Shape.of(json.loads(path.read_text(encoding="utf-8")))
        packaged = PACKAGED.get(base)
        return shape if packaged is None else replace(shape, plain_weights=packaged.plain_weights)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as JSON ({error}).") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} does not have the sizes of a decoder ({error} is missing), so its memory "
            "can't be estimated."
        ) from error


def config_file(base: str) -> Path:
    """The path of a base's `config.json`; for a hub id only that file is downloaded.

    Raises:
        UserError: there is none, or it can't be downloaded.
    """
    if base.endswith(".json"):
        return Path(base).expanduser()
    found = find_base(base)
    if base in PACKAGED or Path(found).is_dir():
        return Path(found) / "config.json"
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(found, "config.json"))
    except Exception as error:  # of many kinds: offline, gated, no such repository
        if "gated repo" in str(error):
            raise UserError(GATED.format(base)) from error
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"The config.json of {base} is neither in the local Hugging Face cache nor reachable "
            f"({reason}). Name a folder, or a config.json."
        ) from error
