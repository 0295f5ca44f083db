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
from lorarlhf.backbone.peft_folder import (
    CONFIG,
    HEAD_KEY,
    WEIGHTS,
    check_config,
    check_weights,
    module_of,
    rank_and_scaling,
)
from lorarlhf.runtime.errors import UserError

NOTE = "lorarlhf.json"
FINGERPRINT = "base_signs"  # older versions wrote `base_fingerprint`, computed in another way
Tensors = dict[str, torch.Tensor]


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

    An adapter of fewer layers or modules, or of other ranks and scalings, is brought to the shape
    of the roles here, which computes the same.

    Raises:
        UserError: no such folder, a damaged file, an adapter of another base, or one that the
            roles here can't hold.
    """
    note, config, tensors = _read(folder)
    check_config(config, folder)
    tensors = {name: tensors[name] for name in check_weights(tensors, folder)}
    _check_base(backbone, note, folder)
    head_weight = tensors.pop(HEAD_KEY, None)
    fitted = _fitted(backbone, tensors, config, folder)  # before an older adapter is dropped
    # Without our note it is a plain sequence classifier, which reads the last token.
    pooling = note.get("pooling", "mean" if note else "last")
    _check_head(backbone, role, note, pooling, head_weight, folder)
    own_adapter = role != "value" or note.get("own_adapter", True)
    backbone.add_role(role, pooling=pooling, own_adapter=own_adapter)
    if own_adapter:
        set_peft_model_state_dict(backbone.model, fitted, adapter_name=roles.ADAPTERS[role])
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


def _fitted(backbone: RoleOwner, tensors: Tensors, config: dict[str, Any], folder: Path) -> Tensors:
    """The weights of an adapter in the shapes and the scaling of the roles here.

    Its matrices become parts of ours, and the rest of B is 0. The rest of A stays as it was drawn,
    so that training can use it.
    """
    adapter = roles.ADAPTERS["policy"]  # always there, and all roles have its shapes
    ours = {
        name.replace(f".{adapter}.", "."): weight.detach()
        for name, weight in roles.adapter_parameters(backbone.model, adapter).items()
    }
    _check_places(backbone, ours, tensors, folder)
    own_config: Any = backbone.model.peft_config[adapter]
    own = own_config.to_dict()
    fitted: Tensors = {}
    for name, weight in ours.items():
        theirs, module = tensors.get(name), module_of(name)
        is_b = name.endswith(".lora_B.weight")
        fitted[name] = torch.zeros_like(weight) if is_b else weight.clone()
        if theirs is None:
            continue
        rank, scaling = rank_and_scaling(config, module)
        own_rank, own_scaling = rank_and_scaling(own, module)
        if rank != own_rank:
            _check_rank(theirs.shape[1 if is_b else 0], rank, own_rank, module, folder)
        if theirs.shape == weight.shape:
            fitted[name] = theirs
        else:
            fitted[name][: theirs.shape[0], : theirs.shape[1]] = theirs
        if is_b and scaling != own_scaling:
            fitted[name] = fitted[name].float() * (scaling / own_scaling)
    return fitted


def _check_places(backbone: RoleOwner, ours: Tensors, theirs: Tensors, folder: Path) -> None:
    """See that each weight of an adapter has a place in the roles here, and that it fits there."""
    strange = [name for name in theirs if name not in ours]
    wanted = {name.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for name in ours}
    modules = {module_of(name).rsplit(".", 1)[-1] for name in strange} - wanted
    if modules:
        raise UserError(
            f"The adapter in {folder} is on {', '.join(sorted(modules))}, and the roles here are "
            f"on {', '.join(sorted(wanted))}. It was trained on a base of another family: load "
            "that one with --base, or train an adapter on this one."
        )
    if strange:
        first, layers = min(map(roles.layer_of, strange)), len(backbone.decoder.layers)
        last = max(map(roles.layer_of, strange))
        if last >= layers:
            raise UserError(
                f"The adapter in {folder} has a layer {last}, and {backbone.base} has {layers} "
                "layers. It was trained on another base: load that one with --base."
            )
        raise UserError(
            f"The adapter in {folder} changes layer {first}, and the roles here have adapters on "
            f"the upper {backbone.adapter_layers} of {layers} layers. Load the base with --set "
            f"adapter_layers={layers - first}."
        )
    for name, weight in theirs.items():
        side = 0 if name.endswith(".lora_B.weight") else 1
        if weight.dim() != 2 or weight.shape[side] != ours[name].shape[side]:
            raise UserError(
                f"The adapter in {folder} has {module_of(name)} in the shape "
                f"{tuple(weight.shape)}, and here it is {tuple(ours[name].shape)}. It was trained "
                "on another base: load that one with --base."
            )


def _check_rank(found: int, rank: int, own_rank: int, module: str, folder: Path) -> None:
    """See that matrices of one rank fit into those of another."""
    if found != rank:
        raise UserError(
            f"The adapter in {folder} is damaged: {module} has rank {found}, and its configuration "
            f"says {rank}."
        )
    if rank > own_rank:
        raise UserError(
            f"The adapter in {folder} has rank {rank}, and the roles here have {own_rank}. Load "
            f"the base with --set lora_rank={rank}."
        )


def _check_head(
    backbone: RoleOwner,
    role: str,
    note: dict[str, Any],
    pooling: str,
    head: torch.Tensor | None,
    folder: Path,
) -> None:
    """See that the head in a folder is one for the role, and that it reads the same states."""
    if role not in roles.HEADED:
        return
    if head is None:
        if role == "reward":
            raise UserError(
                f"The adapter in {folder} has no head, so it gives no scores. Name a run of the "
                "command reward, or a sequence classifier that PEFT saved."
            )
        return
    if not note and head.dim() == 2 and len(head) > 1:
        raise UserError(
            f"The head in {folder} gives {len(head)} scores, one a label, and a reward is one "
            "score. Train a classifier with num_labels=1, or a reward role here."
        )
    reads_trunk = roles.reads_trunk(pooling, backbone.forward.keeps_trunk)
    layers = note.get("adapter_layers", backbone.adapter_layers)
    if pooling == "mean" and layers != backbone.adapter_layers:
        raise UserError(
            f"The head in {folder} reads the states below the upper {layers} layers, and the roles "
            f"here have adapters on {backbone.adapter_layers}. Load the base with --set "
            f"adapter_layers={layers}."
        )
    wanted = backbone.hidden_size * (1 + reads_trunk)
    if head.numel() != wanted:
        raise UserError(
            f"The head in {folder} reads {head.numel()} numbers a token, and here it would read "
            f"{wanted}. It was saved by another version, or on a base whose lower layers can't be "
            "run separately. Train the role again."
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
