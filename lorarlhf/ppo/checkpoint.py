"""Checkpoints of PPO: adapters, heads, optimizers, score scale, random state, place in the prompts.

Written to a folder of another name and renamed when whole, so a checkpoint is complete or absent.
Tensors are in safetensors files; nothing is pickled.
"""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from lorarlhf.errors import UserError

if TYPE_CHECKING:
    from lorarlhf.ppo.trainer import PPOTrainer

PREFIX = "checkpoint-"
KEEP = 2  # the newest, and one before it


def save(trainer: "PPOTrainer") -> Path:
    """Write `checkpoints/checkpoint-N` under the run's folder and drop all but the newest two."""
    folder = Path(str(trainer.args.output_dir)) / "checkpoints"
    target = folder / f"{PREFIX}{trainer.state.global_step}"
    for left_over in folder.glob(f".{PREFIX}*"):  # by a process that was killed while it wrote
        shutil.rmtree(left_over, ignore_errors=True)
    scratch = folder / f".{target.name}.{os.getpid()}"
    scratch.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {"rng.torch": torch.get_rng_state()}
    if trainer.backbone.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(trainer.backbone.device)
    tensors["rng.shuffle"] = trainer._shuffle.get_state()
    for role in ("policy", "value"):
        trainer.backbone.save(role, scratch / role)
        tensors |= _optimizer_tensors(role, trainer.optimizers_of[role])
    save_file(tensors, scratch / "state.safetensors")
    state = {
        "step": trainer.state.global_step,
        "queue": trainer._queue,
        "scale": trainer.scale.state(),
        "kl_coef": trainer.kl.coef,
        "log_history": trainer.state.log_history,
    }
    (scratch / "state.json").write_text(json.dumps(state), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(scratch, target)
    for old in newest_first(folder)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest_first(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, the newest first."""
    found = [p for p in folder.glob(f"{PREFIX}*") if p.name[len(PREFIX) :].isdigit()]
    return sorted(found, key=lambda p: int(p.name[len(PREFIX) :]), reverse=True)


def load_newest(trainer: "PPOTrainer", wanted: str | bool) -> None:
    """Put a checkpoint's state into the trainer; nothing happens where there is none yet.

    Raises:
        UserError: a named checkpoint does not exist.
    """
    if isinstance(wanted, str):
        folder: Path | None = Path(wanted)
        if not (Path(wanted) / "state.json").is_file():
            raise UserError(f"There is no PPO checkpoint in {wanted} (state.json is missing).")
    else:
        whole = newest_first(Path(str(trainer.args.output_dir)) / "checkpoints")
        folder = whole[0] if whole else None
    if folder is None:
        return
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "state.safetensors")
    for role in ("policy", "value"):
        trainer.backbone.load_role(role, folder / role)
    trainer.backbone.model.requires_grad_(False)
    for role, rate in (
        ("policy", trainer.args.learning_rate),
        ("value", trainer.args.value_learning_rate),
    ):
        trainer.optimizers_of[role] = trainer._adam(role, rate)
        _fill_optimizer(role, trainer.optimizers_of[role], tensors)
    trainer.state.global_step = state["step"]
    trainer.state.log_history = state["log_history"]
    trainer._queue = state["queue"]
    trainer.scale.restore(state["scale"])
    trainer.kl.coef = state["kl_coef"]
    torch.set_rng_state(tensors["rng.torch"])
    trainer._shuffle.set_state(tensors["rng.shuffle"])
    if "rng.cuda" in tensors and trainer.backbone.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["rng.cuda"], trainer.backbone.device)


def _weights(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _optimizer_tensors(role: str, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{role}.{number}.{name}": value.detach().cpu().contiguous()
        for number, weight in enumerate(_weights(optimizer))
        for name, value in optimizer.state.get(weight, {}).items()
    }


def _fill_optimizer(
    role: str, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    for number, weight in enumerate(_weights(optimizer)):
        start = f"{role}.{number}."
        saved: dict[str, Any] = {
            name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)
        }
        for name, value in saved.items():
            optimizer.state[weight][name] = value if name == "step" else value.to(weight.device)
