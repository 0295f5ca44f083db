"""Checkpoints of PPO: adapters, heads, optimizers, loss scales, score scale, price of KL, random
states, place in the prompts. `lorarlhf.runtime.checkpoints` writes the folders; nothing is pickled.
"""

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save_file

from lorarlhf.backbone.base import Backbone
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.kl import KLBudget, KLControl
from lorarlhf.ppo.learner import Learner
from lorarlhf.ppo.prompts import PromptOrder
from lorarlhf.ppo.scores import ScoreScale
from lorarlhf.runtime import checkpoints, distributed
from lorarlhf.runtime.checkpoints import PREFIX, find_damage, newest_first
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import move, read_json
from lorarlhf.runtime.terminal import log_to_stderr

BEST = "best-"
TRAINED_ROLES = ("policy", "value")


class TrainingRun(Protocol):
    """A training run as checkpoints see it: `PPOTrainer` has all of this.

    Attributes:
        state: transformers' `TrainerState`; its step and its log are saved.
    """

    args: PPOConfig
    backbone: Backbone
    learner: Learner
    prompt_order: PromptOrder
    scale: ScoreScale
    kl: KLControl
    budget: KLBudget | None
    state: Any


def save(run: TrainingRun) -> Path:
    """Write `checkpoints/checkpoint-N` under the run's folder and remove all but the newest few."""
    folder = checkpoint_folder(run)
    target = folder / f"{PREFIX}{run.state.global_step}"
    if distributed.is_main():
        scratch = checkpoints.make_scratch(target)
        tensors = checkpoints.rng_tensors(run.backbone.device)
        tensors["rng.shuffle"] = run.prompt_order.generator.get_state()
        for role in TRAINED_ROLES:
            run.backbone.save(role, scratch / role)
            tensors |= checkpoints.optimizer_tensors(role, run.learner.optimizers[role])
        save_file(tensors, scratch / "state.safetensors")
        (scratch / "state.json").write_text(json.dumps(_state(run)), encoding="utf-8")
        checkpoints.publish(scratch, target)
        checkpoints.keep_newest(folder, max(1, run.args.save_total_limit or 1))
        needed = {f"{BEST}{_best_step(kept)}" for kept in newest_first(folder)}
        for old in folder.glob(f"{BEST}*"):
            if old.name not in needed:
                shutil.rmtree(old, ignore_errors=True)
    distributed.barrier()
    return target


def save_best(run: TrainingRun) -> None:
    """Save the policy as the best one. `save` removes earlier ones that no checkpoint needs."""
    target = checkpoint_folder(run) / f"{BEST}{run.state.global_step}"
    if distributed.is_main():
        scratch = checkpoints.make_scratch(target)
        for role in TRAINED_ROLES:
            run.backbone.save(role, scratch / role)
        checkpoints.publish(scratch, target)
    distributed.barrier()


def load_best(run: TrainingRun) -> None:
    """Load the best policy inside the KL budget, and its value, over the last ones.

    Raises:
        UserError: its folder is missing or damaged.
    """
    assert run.budget is not None
    folder = checkpoint_folder(run) / f"{BEST}{run.budget.best_step}"
    if reason := find_damage(folder):
        raise UserError(
            f"The best policy inside the KL budget can't be read from {folder}: {reason}. The last "
            "policy is in the newest checkpoint beside it."
        )
    _load_roles(run, folder)


def checkpoint_folder(run: TrainingRun) -> Path:
    """The folder that holds a run's checkpoints."""
    return Path(str(run.args.output_dir)) / "checkpoints"


# ---- resuming


def load_newest(run: TrainingRun, wanted: str | bool) -> None:
    """Restore a checkpoint, by default the newest one; without any, nothing changes.

    Raises:
        UserError: a named checkpoint does not exist or is damaged, or a process on another machine
            can't see it.
    """
    if isinstance(wanted, str):
        if reason := distributed.broadcast_from_main(lambda: find_damage(Path(wanted))):
            raise UserError(f"There is no PPO checkpoint to go on from in {wanted}: {reason}.")
        checkpoints.check_visible(Path(wanted))
        _load(run, Path(wanted))
        for place in newest_first(checkpoint_folder(run)):  # or the next --resume would take those
            if checkpoints.step_of(place) > run.state.global_step and distributed.is_main():
                move(place, place.with_name(f"left-{place.name}-{int(time.time())}"))
        return
    if newest := distributed.broadcast_from_main(lambda: _newest_intact(checkpoint_folder(run))):
        checkpoints.check_visible(newest)
        _load(run, newest)


def _newest_intact(folder: Path) -> Path | None:
    """The newest checkpoint that is intact; newer, damaged ones are reported and removed."""
    for place in newest_first(folder):
        if (reason := find_damage(place)) is None:
            return place
        log_to_stderr(f"The checkpoint {place} is skipped: {reason}.")
        shutil.rmtree(place, ignore_errors=True)  # or it would count as one of those to keep
    return None


def _load(run: TrainingRun, folder: Path) -> None:
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "state.safetensors")
    _check_fixed(run, folder, state)
    _load_roles(run, folder)
    for role, optimizer in run.learner.optimizers.items():
        checkpoints.fill_optimizer(role, optimizer, tensors)
        if scale := state.get("loss_scale", {}).get(role):  # of a run in float16
            run.learner.scalers[role].load_state_dict(scale)
    run.state.global_step = state["step"]
    run.state.log_history = state["log_history"]
    run.prompt_order.remaining = state["queue"]
    run.prompt_order.generator.set_state(tensors["rng.shuffle"])
    run.scale.load_state_dict(state["scale"])
    if run.kl.target is not None:  # a fixed price comes from the settings of the resumed run
        run.kl.coef = state["kl_coef"]
    if run.budget is not None and state["budget"]:
        by = state["budget"].get("by", "score")
        if by != run.budget.by:
            raise UserError(
                f"The best policy of the run in {folder.parent.parent} was kept by the {by}, which "
                f"can't change on the way: resume it with keep_best_by={by}."
            )
        run.budget.best_step = state["budget"]["best_step"]
        run.budget.best_score = state["budget"]["best_score"]
        seen = [row["eval_kl"] for row in state["log_history"] if "eval_kl" in row]
        run.budget.spent = any(not kl <= run.budget.limit for kl in seen)
    checkpoints.set_rng_state(state, tensors, run.backbone.device)


def _load_roles(run: TrainingRun, folder: Path) -> None:
    for role in TRAINED_ROLES:
        run.backbone.load_role(role, folder / role)
    run.backbone.model.requires_grad_(False)
    run.learner.reset_optimizers()


def _check_fixed(run: TrainingRun, folder: Path, state: dict[str, Any]) -> None:
    for name, now in _fixed(run).items():
        if state.get(name) is None:
            raise UserError(
                f"The checkpoint in {folder} is from an older version, which trained other layers: "
                "start a new run."
            )
        if state[name] != now:
            raise UserError(
                f"The run in {folder.parent.parent} has {name}={state[name]}, which can't change "
                "on the way: resume it with the same value."
            )


def _best_step(checkpoint: Path) -> int | None:
    """The update of the best policy that a checkpoint refers to."""
    return (read_json(checkpoint / "state.json").get("budget") or {}).get("best_step")


# ---- what is saved


def _fixed(run: TrainingRun) -> dict[str, Any]:
    """Settings that a resumed run can't change, since the optimizers' states depend on them."""
    layers = {f"{role}_layers": count for role, count in run.learner.layers.items()}
    return {"value_adapter": run.args.value_adapter} | layers


def _state(run: TrainingRun) -> dict[str, Any]:
    return checkpoints.rng_numbers() | {
        "step": run.state.global_step,
        "queue": run.prompt_order.remaining,
        "scale": run.scale.state_dict(),
        "loss_scale": {role: s.state_dict() for role, s in run.learner.scalers.items()},
        **_fixed(run),
        "kl_coef": run.kl.coef,
        "budget": asdict(run.budget) if run.budget else None,
        "log_history": run.state.log_history,
    }
