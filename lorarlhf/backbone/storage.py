"""Roles on disk: plain PEFT folders, safetensors only, with a note about the base they fit."""

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import LoraConfig, PeftModel
from peft.utils import set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lorarlhf.backbone import roles
from lorarlhf.backbone.forward import Forward
from lorarlhf.runtime.errors import UserError

NOTE = "lorarlhf.json"
FINGERPRINT = "base_signs"  # older versions wrote `base_fingerprint`, computed in another way
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HEAD_KEY = "base_model.model.score.weight"  # where PEFT keeps a classification head


class RoleOwner(Protocol):
    """What this module needs of a `Backbone`, whose attributes these are."""

    base: str
    base_path: str
    adapter_layers: int
    hidden_size: int
    model: PeftModel
    causal: Any
    decoder: Any
    forward: Forward
    heads: dict[str, roles.ScalarHead]

    def has(self, role: str) -> bool:
        """Whether the role has an adapter of its own."""

    def add_role(
        self,
        role: str,
        *,
        copy_of: str | None = None,
        pooling: str = "mean",
        own_adapter: bool = True,
    ) -> None:
        """Add a role's adapter."""


def save_role(backbone: RoleOwner, role: str, folder: Path) -> None:
    """Write `adapter_config.json`, `adapter_model.safetensors` and a note to `folder`.

    `PeftModel.from_pretrained` opens a `policy` on the causal model and a `reward` with `last`
    pooling on `AutoModelForSequenceClassification`. A mean-pooled head also reads the trunk and
    opens only here. `lorarlhf.json` holds what PEFT's files have no place for: the bias, the
    pooling, mean and standard deviation of the scores, and the base.
    """
    # A value that is only a head is saved as the policy's adapter with that head.
    head_only = role == "value" and not backbone.has("value")
    adapter = roles.ADAPTERS["policy" if head_only else role]
    head = backbone.heads.get(role)
    config = LoraConfig(**backbone.model.peft_config[adapter].to_dict())
    config.base_model_name_or_path = backbone.base_path
    config.inference_mode = True
    tensors = {
        name.replace(f".{adapter}.", "."): weight.detach().cpu().contiguous()
        for name, weight in roles.adapter_parameters(backbone.model, adapter).items()
    }
    note: dict[str, Any] = {
        "role": role,
        "base": backbone.base,
        FINGERPRINT: fingerprint(backbone),
        "adapter_layers": backbone.adapter_layers,
    }
    if head is not None:
        config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
        tensors[HEAD_KEY] = head.full_weight.cpu()[None]
        note |= {
            "pooling": head.pooling,
            "bias": head.bias.item(),
            "score_mean": head.score_mean.item(),
            "score_std": head.score_std.item(),
            "own_adapter": not head_only,
        }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    config.save_pretrained(str(folder))
    (folder / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def load_role(backbone: RoleOwner, role: str, folder: Path) -> None:
    """Load `folder` into `role`, whatever role it was saved as.

    Raises:
        UserError: no such folder, a damaged file, an adapter of another base or of another shape.
    """
    note, config, tensors = _read(folder)
    _check_base(backbone, note, folder)
    head_weight = tensors.pop(HEAD_KEY, None)
    _check_shapes(backbone, tensors, folder)  # before an older adapter is dropped
    _check_alpha(backbone, config, folder)
    pooling = note.get("pooling", "mean")
    if role in roles.HEADED and head_weight is not None:
        _check_head(backbone, pooling, head_weight, folder)
    own_adapter = role != "value" or note.get("own_adapter", True)
    backbone.add_role(role, pooling=pooling, own_adapter=own_adapter)
    if own_adapter:
        set_peft_model_state_dict(backbone.model, tensors, adapter_name=roles.ADAPTERS[role])
    if role in backbone.heads and head_weight is not None:
        head = backbone.heads[role]
        head.full_weight = head_weight.reshape(-1)
        head.bias.data.fill_(note.get("bias", 0.0))
        head.score_mean.fill_(note.get("score_mean", 0.0))
        head.score_std.fill_(note.get("score_std", 1.0))


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, torch.Tensor]]:
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"There is no adapter in {folder} ({WEIGHTS} is missing). Name a run folder that has "
            "finished, or one of the folders under its adapters/."
        )
    try:
        note = json.loads((folder / NOTE).read_text("utf-8")) if (folder / NOTE).exists() else {}
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        return note, config, load_file(folder / WEIGHTS)
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"The adapter in {folder} is damaged ({error}).") from error


def _check_base(backbone: RoleOwner, note: dict[str, Any], folder: Path) -> None:
    theirs = note.get(FINGERPRINT)
    if theirs is not None and theirs != fingerprint(backbone):
        raise UserError(
            f"The adapter in {folder} was trained on the base {note.get('base')}, and the base "
            f"loaded here is {backbone.base}. Adapters fit only the base they were trained on: "
            f"load it with --base {note.get('base')}, or train a new adapter on {backbone.base}."
        )


def _check_shapes(backbone: RoleOwner, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    adapter = roles.ADAPTERS["policy"]  # always there, and all roles have its shapes
    ours = {
        name.replace(f".{adapter}.", "."): weight.shape
        for name, weight in roles.adapter_parameters(backbone.model, adapter).items()
    }
    theirs = {name: tensor.shape for name, tensor in tensors.items()}
    if ours == theirs:
        return
    modules, wanted = (
        {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names} for names in (theirs, ours)
    )
    if modules != wanted:
        raise UserError(
            f"The adapter in {folder} is on {', '.join(sorted(modules))}, and the roles here are "
            f"on {', '.join(sorted(wanted))}. Train one with this package."
        )
    layers = {int(n.split(".layers.")[1].split(".")[0]) for n in theirs if ".layers." in n}
    rank = min((shape[0] for name, shape in theirs.items() if "lora_A" in name), default=0)
    raise UserError(
        f"The adapter in {folder} does not have this backbone's shape (it covers {len(layers)} "
        f"layers at rank {rank}). Load the base with adapter_layers={len(layers)} and "
        f"lora_rank={rank}."
    )


def _check_head(backbone: RoleOwner, pooling: str, head: torch.Tensor, folder: Path) -> None:
    reads_trunk = roles.reads_trunk(pooling, backbone.forward.keeps_trunk)
    wanted = backbone.hidden_size * (1 + reads_trunk)
    if head.numel() != wanted:
        raise UserError(
            f"The head in {folder} reads {head.numel()} numbers a token, and here it would read "
            f"{wanted}. It was saved by another version, or on a base whose lower layers can't be "
            "run separately. Train the role again."
        )


def _check_alpha(backbone: RoleOwner, config: dict[str, Any], folder: Path) -> None:
    # Alpha scales the adapter but is part of no weight: a different one would silently give wrong
    # numbers.
    own: Any = backbone.model.peft_config[roles.ADAPTERS["policy"]]
    ours, theirs = own.lora_alpha, config.get("lora_alpha")
    if config.get("use_rslora"):
        raise UserError(f"The adapter in {folder} uses rsLoRA's scaling, which is not supported.")
    if theirs != ours:
        raise UserError(
            f"The adapter in {folder} was trained with lora_alpha={theirs}, and this backbone has "
            f"{ours}. Load the base with lora_alpha={theirs}."
        )


def fingerprint(backbone: RoleOwner) -> str:
    """A short hash that identifies a base: its sizes, vocabulary, and signs in the embedding.

    The same base gives the same hash in 4, 8 and 16 bit, because embeddings are not quantised, and
    in every dtype, because float16 and bfloat16 round digits differently but keep signs.
    """
    embedding = backbone.causal.get_input_embeddings().weight
    negative = embedding[:: max(1, len(embedding) // 1024)].detach().signbit().cpu()
    layers = len(backbone.decoder.layers)
    digest = hashlib.sha256(f"{layers} {tuple(embedding.shape)}".encode())
    digest.update(negative.numpy().tobytes())
    return digest.hexdigest()[:16]
