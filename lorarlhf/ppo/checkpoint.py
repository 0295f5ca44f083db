"""Checkpoints of PPO: adapters, heads, optimizers, loss scales, score scale, price of KL, random
states, place in the prompts. How the folders are written is `lorarlhf.runtime.checkpoints`; nothing
is pickled.
"""

import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from lorarlhf.runtime import checkpoints, distributed
from lorarlhf.runtime.checkpoints import PREFIX, find_damage, newest_first
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json
from lorarlhf.runtime.terminal import log_to_stderr

if TYPE_CHECKING:
    from lorarlhf.ppo.trainer import PPOTrainer

BEST = "best-"
LEARNED = ("policy", "value")


def save(trainer: "PPOTrainer") -> Path:
    """Write `checkpoints/checkpoint-N` under the run's folder; drop all but the newest few."""
    folder = folder_of(trainer)
    target = folder / f"{PREFIX}{trainer.state.global_step}"
    if trainer.is_world_process_zero():
        scratch = checkpoints.make_scratch(target)
        tensors = checkpoints.rng_tensors(trainer.backbone.device)
        tensors["rng.shuffle"] = trainer._shuffle.get_state()
        for role in LEARNED:
            trainer.backbone.save(role, scratch / role)
            tensors |= checkpoints.optimizer_tensors(role, trainer.learner.optimizers[role])
        save_file(tensors, scratch / "state.safetensors")
        (scratch / "state.json").write_text(json.dumps(_state(trainer)), encoding="utf-8")
        checkpoints.publish(scratch, target)
        checkpoints.keep_newest(folder, max(1, trainer.args.save_total_limit or 1))
        needed = {f"{BEST}{_best_step(kept)}" for kept in newest_first(folder)}
        for old in folder.glob(f"{BEST}*"):
            if old.name not in needed:
                shutil.rmtree(old, ignore_errors=True)
    distributed.barrier()
    return target


def save_best(trainer: "PPOTrainer") -> None:
    """Keep the policy as it is now; the one before goes when no checkpoint names it any more."""
    target = folder_of(trainer) / f"{BEST}{trainer.state.global_step}"
    if trainer.is_world_process_zero():
        scratch = checkpoints.make_scratch(target)
        for role in LEARNED:
            trainer.backbone.save(role, scratch / role)
        checkpoints.publish(scratch, target)
    distributed.barrier()


def load_best(trainer: "PPOTrainer") -> None:
    """Put the best policy inside the KL budget, and its value, in the place of the last ones.

    Raises:
        UserError: its folder is gone or torn.
    """
    assert trainer.budget is not None
    folder = folder_of(trainer) / f"{BEST}{trainer.budget.best_step}"
    if reason := find_damage(folder):
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


# ---- going on


def load_newest(trainer: "PPOTrainer", wanted: str | bool) -> None:
    """Put a checkpoint's state into the trainer; nothing happens where there is none yet.

    Raises:
        UserError: a named checkpoint does not exist, or is torn; or a process on another machine
            does not see it.
    """
    if isinstance(wanted, str):
        if reason := distributed.broadcast_from_main(lambda: find_damage(Path(wanted))):
            raise UserError(f"There is no PPO checkpoint to go on from in {wanted}: {reason}.")
        checkpoints.check_visible(Path(wanted))
        _load(trainer, Path(wanted))
        for place in newest_first(folder_of(trainer)):  # or the next --resume would take those
            if (
                checkpoints.step_of(place) > trainer.state.global_step
                and trainer.is_world_process_zero()
            ):
                os.replace(place, place.with_name(f"left-{place.name}-{int(time.time())}"))
        return
    if newest := distributed.broadcast_from_main(lambda: _newest_intact(folder_of(trainer))):
        checkpoints.check_visible(newest)
        _load(trainer, newest)


def _newest_intact(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; torn ones above it are told and removed."""
    for place in newest_first(folder):
        if (reason := find_damage(place)) is None:
            return place
        log_to_stderr(f"The checkpoint {place} is passed over: {reason}.")
        shutil.rmtree(place, ignore_errors=True)  # or it would be kept in a good one's place
    return None


def _load(trainer: "PPOTrainer", folder: Path) -> None:
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "state.safetensors")
    for name, now in _fixed(trainer).items():
        if state.get(name) is None:
            raise UserError(
                f"The checkpoint in {folder} is of an older version, which trained other layers: "
                "begin a new run."
            )
        if state[name] != now:
            raise UserError(
                f"The run in {folder.parent.parent} has {name}={state[name]}, which can't change "
                "on the way: resume it with the same."
            )
    for role in LEARNED:
        trainer.backbone.load_role(role, folder / role)
    trainer.backbone.model.requires_grad_(False)
    trainer.learner.start_anew()
    for role, optimizer in trainer.learner.optimizers.items():
        checkpoints.fill_optimizer(role, optimizer, tensors)
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
    checkpoints.set_rng_state(state, tensors, trainer.backbone.device)
    trainer._shuffle.set_state(tensors["rng.shuffle"])


def _best_step(checkpoint: Path) -> int | None:
    """Which best policy a checkpoint names."""
    return (read_json(checkpoint / "state.json").get("budget") or {}).get("best_step")


# ---- the parts


def _fixed(trainer: "PPOTrainer") -> dict[str, Any]:
    """Settings that decide what the optimizers remember."""
    layers = {f"{role}_layers": count for role, count in trainer.learner.layers.items()}
    return {"value_adapter": trainer.args.value_adapter} | layers


def _state(trainer: "PPOTrainer") -> dict[str, Any]:
    return checkpoints.rng_numbers() | {
        "step": trainer.state.global_step,
        "queue": trainer._queue,
        "scale": trainer.scale.state(),
        "loss_scale": {role: s.state_dict() for role, s in trainer.learner.scalers.items()},
        **_fixed(trainer),
        "kl_coef": trainer.kl.coef,
        "budget": asdict(trainer.budget) if trainer.budget else None,
        "log_history": trainer.state.log_history,
    }
