"""Adapters that PEFT wrote, here or elsewhere: what can be read exactly, and how they are scaled.

An adapter adds `scaling * B @ A` to the weight of a linear layer. Rank and scaling may differ from
layer to layer, and layers may be left out; all of that has an equal form in one rank and scaling.
Whatever adds something else, or changes the base, is refused with the reason.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorarlhf.runtime.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HEAD_KEY = "base_model.model.score.weight"  # where PEFT keeps a classification head
PREFIX = "base_model.model."

MERGE = (
    "Merge it into its base by PEFT's merge_and_unload(), save the merged model and the tokenizer "
    "with save_pretrained, and name that folder as --base instead of naming the adapter."
)
TRAIN_ANOTHER = "It can't be merged into a base either, so train an adapter without that setting."
CHANGES_THE_BASE = {
    "use_dora": "DoRA also scales the base's weights",
    "modules_to_save": "it replaces whole modules of the base",
    "trainable_token_indices": "it replaces rows of the embedding",
    "kasa_config": "KaSA cuts the base's weights",
    "use_bdlora": "its matrices are in blocks",
    "monteclora_config": "it has weights of a sampler",
}
"""Settings of PEFT's `LoraConfig` that can't be read, and what they do. Merging is possible."""
NOT_A_SUM = {
    "lora_bias": "it adds biases, also to layers that have none",
    "layer_replication": "it repeats layers of the base",
    "alora_invocation_tokens": "it acts only after certain tokens (aLoRA)",
    "use_qalora": "QALoRA averages the inputs of its layers",
    "arrow_config": "Arrow chooses among several adapters for each token",
}
"""The same, where PEFT can't merge either."""
HARMLESS = {
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),  # scaling, read below
    # Of training, of how weights began, or of which modules there are, which the weights show.
    *("lora_dropout", "target_modules", "exclude_modules", "target_parameters", "bias"),
    *("layers_to_transform", "layers_pattern", "fan_in_fan_out", "inference_mode", "velora_config"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
    *("megatron_config", "megatron_core", "ensure_weight_tying", "init_lora_weights"),
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("peft_version",),
}
HEAD_MODULES = {"score", "classifier"}  # PEFT names both for every sequence classifier
BASE_CHANGING_STARTS = ("pissa", "olora", "corda", "loftq")


def check_config(config: Mapping[str, Any], folder: Path) -> None:
    """See that an adapter's configuration describes sums of `scaling * B @ A`.

    Raises:
        UserError: it does not; says why, and what to do.
    """
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise _refusal(folder, f"it is of PEFT's type {kind}, and only LORA is read", MERGE)
    for reasons, advice in ((CHANGES_THE_BASE, MERGE), (NOT_A_SUM, TRAIN_ANOTHER)):
        for name, reason in reasons.items():
            value = config.get(name)
            if value and not (name == "modules_to_save" and set(value) <= HEAD_MODULES):
                raise _refusal(folder, f"{reason} ({name})", advice)
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(BASE_CHANGING_STARTS):
        reason = f"the base was changed when it began (init_lora_weights is {start})"
        raise _refusal(
            folder,
            reason,
            "Save it once more by PEFT's save_pretrained with "
            "path_initial_model_for_weight_conversion, which turns it into plain LoRA.",
        )
    known = {*HARMLESS, *CHANGES_THE_BASE, *NOT_A_SUM}
    if unknown := sorted(name for name in config if name not in known and config[name]):
        version = config.get("peft_version", "another version")
        raise _refusal(
            folder, f"it has {', '.join(unknown)}, unknown here (written by PEFT {version})", MERGE
        )


def check_weights(names: Iterable[str], folder: Path) -> list[str]:
    """The adapter's weights by name, as far as they matter in use.

    Raises:
        UserError: some are not LoRA's matrices of a decoder layer.
    """
    kept = [name for name in names if "lora_velora_" not in name]  # of VeLoRA's training alone
    for name in kept:
        if name == HEAD_KEY:
            continue
        module = module_of(name)
        if ".lora_embedding_" in name or ".layers." not in name:
            reason = f"it also changes {module}, outside the base's layers"
            raise _refusal(folder, reason, MERGE)
        if not name.endswith((".lora_A.weight", ".lora_B.weight")):
            raise _refusal(folder, f"it also has {name.removeprefix(PREFIX)}", MERGE)
    return kept


def _refusal(folder: Path, reason: str, advice: str) -> UserError:
    return UserError(f"The adapter in {folder} can't be used here: {reason}. {advice}")


def module_of(name: str) -> str:
    """The module that a saved weight belongs to, as the base names it."""
    return name.removeprefix(PREFIX).rsplit(".lora_", 1)[0].removesuffix(".weight")


def rank_and_scaling(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """The rank and scaling of a module's matrices, as PEFT reads them from a configuration."""
    from peft.utils.other import get_pattern_key

    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    rank = ranks.get(get_pattern_key(list(ranks), module), config["r"])
    alpha = alphas.get(get_pattern_key(list(alphas), module), config["lora_alpha"])
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def largest_rank(config: Mapping[str, Any]) -> int | None:
    """The largest rank in a configuration; None if it names none."""
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    return max((rank for rank in ranks if isinstance(rank, int)), default=None)


def weight_names(folder: Path) -> list[str]:
    """The names in the weights' file, from its first bytes; empty if it can't be read."""
    try:
        with (folder / WEIGHTS).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (OSError, ValueError, MemoryError, OverflowError):
        return []  # loading will say what is wrong
    return [name for name in header if name != "__metadata__"]
