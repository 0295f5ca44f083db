"""Checkpoints of PPO: adapters, heads, optimizers, loss scales, score scale, price of KL, random
states, place in the prompts.

Written to a folder of another name, flushed to the disk with a list of its files and their hashes,
and renamed when whole. So a checkpoint is complete or absent after a kill, and one that a power cut
or a full disk has torn is seen and passed over. Tensors are in safetensors files; nothing is
pickled.
"""

import hashlib
import json
import os
import random
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from lorarlhf.errors import UserError
from lorarlhf.ppo import processes
from lorarlhf.runs import read_json, say_to_stderr

if TYPE_CHECKING:
    from lorarlhf.ppo.trainer import PPOTrainer

PREFIX, BEST, FILES = "checkpoint-", "best-", "files.json"
LEARNED = ("policy", "value")


def save(trainer: "PPOTrainer") -> Path:
    """Write `checkpoints/checkpoint-N` under the run's folder; drop all but the newest few."""
    folder = folder_of(trainer)
    target = folder / f"{PREFIX}{trainer.state.global_step}"
    if trainer.is_world_process_zero():
        scratch = _scratch(target)
        tensors = _random_tensors(trainer)
        for role in LEARNED:
            trainer.backbone.save(role, scratch / role)
            tensors |= _optimizer_tensors(role, trainer.learner.optimizers[role])
        save_file(tensors, scratch / "state.safetensors")
        (scratch / "state.json").write_text(json.dumps(_state(trainer)), encoding="utf-8")
        _publish(scratch, target)
        for old in newest_first(folder)[max(1, trainer.args.save_total_limit or 1) :]:
            shutil.rmtree(old, ignore_errors=True)
        needed = {f"{BEST}{_best_step(kept)}" for kept in newest_first(folder)}
        for old in folder.glob(f"{BEST}*"):
            if old.name not in needed:
                shutil.rmtree(old, ignore_errors=True)
    processes.wait()
    return target


def save_best(trainer: "PPOTrainer") -> None:
    """Keep the policy as it is now; the one before goes when no checkpoint names it any more."""
    target = folder_of(trainer) / f"{BEST}{trainer.state.global_step}"
    if trainer.is_world_process_zero():
        scratch = _scratch(target)
        for role in LEARNED:
            trainer.backbone.save(role, scratch / role)
        _publish(scratch, target)
    processes.wait()


def load_best(trainer: "PPOTrainer") -> None:
    """Put the best policy inside the KL budget, and its value, in the place of the last ones.

    Raises:
        UserError: its folder is gone or torn.
    """
    assert trainer.budget is not None
    folder = folder_of(trainer) / f"{BEST}{trainer.budget.best_step}"
    if reason := damage(folder):
        raise UserError(
            f"The best policy inside the KL budget can't be read from {folder}: {reason}. The last "
            "policy is in the newest checkpoint beside it."
        )
    for role in LEARNED:
        trainer.backbone.load_role(role, folder / role)
    trainer.backbone.model.requires_grad_(False)
    trainer.learner.start_anew()


def folder_of(trainer: "PPOTrainer") -> Path:
    """Where a run's checkpoints lie."""
    return Path(str(trainer.args.output_dir)) / "checkpoints"


# ---- what is there


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    found = [p for p in folder.glob(f"{PREFIX}*") if p.name[len(PREFIX) :].isdigit()]
    return sorted(found, key=_number, reverse=True)


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(PREFIX))


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all there and as they were written."""
    return next((place for place in newest_first(folder) if damage(place) is None), None)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, None where nothing is."""
    try:
        listed = json.loads((checkpoint / FILES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{FILES} is missing or torn"
    for name, digest in listed.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if _digest(file) != digest:
            return f"{name} is torn"
    return None


def load_newest(trainer: "PPOTrainer", wanted: str | bool) -> None:
    """Put a checkpoint's state into the trainer; nothing happens where there is none yet.

    Raises:
        UserError: a named checkpoint does not exist, or is torn.
    """
    if isinstance(wanted, str):
        if reason := damage(Path(wanted)):
            raise UserError(f"There is no PPO checkpoint to go on from in {wanted}: {reason}.")
        _load(trainer, Path(wanted))
        for place in newest_first(folder_of(trainer)):  # or the next --resume would take those
            if _number(place) > trainer.state.global_step and trainer.is_world_process_zero():
                os.replace(place, place.with_name(f"left-{place.name}-{int(time.time())}"))
        return
    for place in newest_first(folder_of(trainer)):
        if (reason := damage(place)) is None:
            _load(trainer, place)
            return
        say_to_stderr(f"The checkpoint {place} is passed over: {reason}.")
        if trainer.is_world_process_zero():
            shutil.rmtree(place, ignore_errors=True)  # or it would be kept in a good one's place


def _load(trainer: "PPOTrainer", folder: Path) -> None:
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "state.safetensors")
    if state["value_adapter"] != trainer.args.value_adapter:
        raise UserError(
            f"The run in {folder.parent.parent} has value_adapter={state['value_adapter']}, which "
            "can't change on the way: resume it with the same."
        )
    for role in LEARNED:
        trainer.backbone.load_role(role, folder / role)
    trainer.backbone.model.requires_grad_(False)
    trainer.learner.start_anew()
    for role, optimizer in trainer.learner.optimizers.items():
        _fill_optimizer(role, optimizer, tensors)
        if scale := state.get("loss_scale", {}).get(role):  # of a run in float16
            trainer.learner.scalers[role].load_state_dict(scale)
    trainer.state.global_step = state["step"]
    trainer.state.log_history = state["log_history"]
    trainer._queue = state["queue"]
    trainer.scale.restore(state["scale"])
    if trainer.kl.target is not None:  # a fixed price is that of the settings as they are now
        trainer.kl.coef = state["kl_coef"]
    if trainer.budget is not None and state["budget"]:
        trainer.budget.best_step = state["budget"]["best_step"]
        trainer.budget.best_score = state["budget"]["best_score"]
        seen = [row["eval_kl"] for row in state["log_history"] if "eval_kl" in row]
        trainer.budget.spent = any(not kl <= trainer.budget.limit for kl in seen)
    _set_random_state(trainer, state, tensors)


def _best_step(checkpoint: Path) -> int | None:
    """Which best policy a checkpoint names."""
    return (read_json(checkpoint / "state.json").get("budget") or {}).get("best_step")


# ---- the parts


def _state(trainer: "PPOTrainer") -> dict[str, Any]:
    kind, numbers, *rest = np.random.get_state()
    return {
        "step": trainer.state.global_step,
        "queue": trainer._queue,
        "scale": trainer.scale.state(),
        "loss_scale": {role: s.state_dict() for role, s in trainer.learner.scalers.items()},
        "value_adapter": trainer.args.value_adapter,
        "kl_coef": trainer.kl.coef,
        "budget": asdict(trainer.budget) if trainer.budget else None,
        "log_history": trainer.state.log_history,
        "random": random.getstate(),
        "numpy": [kind, np.asarray(numbers).tolist(), *rest],
    }


def _random_tensors(trainer: "PPOTrainer") -> dict[str, torch.Tensor]:
    tensors = {"rng.torch": torch.get_rng_state(), "rng.shuffle": trainer._shuffle.get_state()}
    if trainer.backbone.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(trainer.backbone.device)
    return tensors


def _set_random_state(
    trainer: "PPOTrainer", state: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> None:
    version, numbers, gauss = state["random"]
    random.setstate((version, tuple(numbers), gauss))
    kind, numbers, *rest = state["numpy"]
    np.random.set_state((kind, np.array(numbers, dtype=np.uint32), *rest))
    torch.set_rng_state(tensors["rng.torch"])
    trainer._shuffle.set_state(tensors["rng.shuffle"])
    if "rng.cuda" in tensors and trainer.backbone.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["rng.cuda"], trainer.backbone.device)


def _scratch(target: Path) -> Path:
    """An empty folder beside `target`; those of processes that were killed at this are removed."""
    for left_over in target.parent.glob(".*"):
        shutil.rmtree(left_over, ignore_errors=True)
    scratch = target.parent / f".{target.name}.{os.getpid()}"
    scratch.mkdir(parents=True)
    return scratch


def _publish(scratch: Path, target: Path) -> None:
    """List the files with their hashes, flush them to the disk, and rename the folder."""
    files = sorted(p for p in scratch.rglob("*") if p.is_file())
    listed = {p.relative_to(scratch).as_posix(): _digest(p) for p in files}
    (scratch / FILES).write_text(json.dumps(listed, indent=1), encoding="utf-8")
    for place in (*files, scratch / FILES):
        _flush(place)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(scratch, target)
    _flush(target.parent)


def _flush(place: Path) -> None:
    if place.is_dir() and os.name == "nt":  # Windows does not open folders
        return
    handle = os.open(place, os.O_RDONLY if place.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


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
