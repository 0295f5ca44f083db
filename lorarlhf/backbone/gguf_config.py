"""What transformers leaves unread of a GGUF file's configuration, and needs for the same logits.

Its loader takes the sizes. Stretched rotary embeddings (Llama 3, Phi 3, Gemma 3 and YaRN), the size
of a head, the windows of attention and the caps on logits it takes from the family's default.
"""

from typing import Any

import numpy as np

from lorarlhf.backbone.gguf_file import GGUFFile
from lorarlhf.runtime.errors import UserError

ATTRIBUTES = {
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
"""llama.cpp's keys, and the attributes of configurations that mean the same."""
QUERY_SCALARS = {("gemma2", 46): 144, ("gemma3", 62): 168}
"""Of the largest models of two families, known by their layers: what scales attention. Files don't
have it; llama.cpp knows it in the same way. In all others it is the size of a head."""


def complete(config: Any, file: GGUFFile) -> None:
    """Change a configuration that transformers made of a file, so that it says what the file says.

    Raises:
        UserError: the rotary embeddings are stretched in a way that is not known here.
    """
    for key, attribute in ATTRIBUTES.items():
        value = file.values.get(f"{file.architecture}.{key}")
        if value and hasattr(config, attribute):
            setattr(config, attribute, value)
    if (scalar := _query_scalar(config, file)) is not None:
        config.query_pre_attn_scalar = scalar
    ropes = getattr(config, "rope_parameters", None)
    if not isinstance(ropes, dict):
        return
    stretched = _stretched(config, file)
    base = file.values.get(f"{file.architecture}.rope.freq_base")
    if "full_attention" in ropes:  # with a base of its own for layers with a window
        ropes["full_attention"] |= ({"rope_theta": float(base)} if base else {}) | stretched
    else:
        ropes |= ({"rope_theta": float(base)} if base else {}) | stretched
    config.rope_parameters = ropes


def _query_scalar(config: Any, file: GGUFFile) -> int | None:
    if not hasattr(config, "query_pre_attn_scalar"):
        return None
    large = QUERY_SCALARS.get((file.architecture, config.num_hidden_layers))
    return large or file.values.get(f"{file.architecture}.attention.key_length")


def _stretched(config: Any, file: GGUFFile) -> dict[str, Any]:
    """How the rotary embeddings reach further than the model was trained at first."""
    about = {
        key.removeprefix(f"{file.architecture}.rope.scaling."): value
        for key, value in file.values.items()
        if key.startswith(f"{file.architecture}.rope.scaling.")
    }
    if "rope_freqs.weight" in file.factors:
        return _llama3(config, file)
    if "rope_factors_long.weight" in file.factors:
        return _longrope(config, file, about)
    kind, factor = about.get("type"), about.get("factor")
    if not factor or float(factor) == 1.0 or kind in (None, "none"):
        return {}
    found = {"rope_type": kind, "factor": float(factor)}
    if original := about.get("original_context_length"):
        found["original_max_position_embeddings"] = int(original)
    if kind not in ("linear", "yarn"):
        raise UserError(
            f'The rotary embeddings of {file.path} are stretched by "{kind}", which is not known '
            "here. Name the model's safetensors as --base."
        )
    return found


def _llama3(config: Any, file: GGUFFile) -> dict[str, Any]:
    """Llama 3's stretching, whose parameters follow from the factors in the file.

    Files have the factor of each frequency. All models of the family share the other parameters,
    and it is checked that they give these factors.
    """
    factors = np.asarray(file.factors["rope_freqs.weight"], dtype=np.float64).ravel()
    if np.allclose(factors, 1.0):
        return {}
    low, high, original = 1.0, 4.0, 8192
    base = float(file.values.get(f"{file.architecture}.rope.freq_base") or 10000.0)
    frequencies = base ** -(np.arange(len(factors)) / len(factors))
    waves = 2 * np.pi / frequencies
    factor = float(factors.max())
    smooth = np.clip((original / waves - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not np.allclose(factors, expected, rtol=1e-3):
        raise UserError(
            f"The rotary embeddings of {file.path} are stretched by factors of their own, which "
            "transformers can't be told. Name the model's safetensors as --base."
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _longrope(config: Any, file: GGUFFile, about: dict[str, Any]) -> dict[str, Any]:
    """Phi 3's stretching, with its factors for short and for long texts."""
    original = int(about.get("original_context_length") or config.max_position_embeddings)
    config.original_max_position_embeddings = original
    long, short = (
        np.asarray(file.factors[f"rope_factors_{name}.weight"], dtype=np.float64).ravel().tolist()
        for name in ("long", "short")
    )
    return {
        "rope_type": "longrope",
        "long_factor": long,
        "short_factor": short,
        "original_max_position_embeddings": original,
    }
