"""Checkpoints of TRL's trainers without pickles, and resuming from them.

A checkpoint holds the trained weights, the optimizer, its schedule, all random states, the state of
the trainer and of its callbacks. The checkpoints of transformers are pickles; here tensors are in
one safetensors file and everything else in JSON (`lorarlhf.runtime.checkpoints`).
"""

import json
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import load_file, save_file
from transformers.trainer import TRAINER_STATE_NAME

from lorarlhf.runtime import checkpoints, distributed
from lorarlhf.runtime.checkpoints import PREFIX, newest_intact
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.interrupt import StopAfterUpdate

_Trainer: Any = object  # one of TRL's trainers follows in the order of classes

FOLDER, STATE, TENSORS = "checkpoints", "state.json", "state.safetensors"
MOST_CHECKPOINTS = 2
"""How many of the newest are kept."""


@runtime_checkable
class StatefulCallback(Protocol):
    """A callback whose state goes into the checkpoint."""

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors by name, and values that JSON can hold."""

    def load_state_dict(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Put both back."""


def saving(save_steps: int) -> dict[str, Any]:
    """TRL's fields for a checkpoint every `save_steps` optimizer steps and at the end; 0: none."""
    return {"save_strategy": "steps", "save_steps": save_steps} if save_steps else {}


def has_checkpoint(run_folder: Path) -> bool:
    """Whether a run has a checkpoint to resume from."""
    return _newest(run_folder / FOLDER) is not None


def _newest(folder: Path) -> Path | None:
    """The newest intact checkpoint as the main process sees it, the same in all processes."""
    place = distributed.broadcast_from_main(lambda: newest_intact(folder))
    if place is not None:
        checkpoints.check_visible(place)
    return place


class CheckpointingMixin(_Trainer):
    """A trainer whose `train(True)` resumes from the run's newest checkpoint.

    Its first Ctrl-C lets the update finish, writes a checkpoint and raises `KeyboardInterrupt`.

    Attributes:
        steps_in_update: optimizer steps between two moments at which training can go on from a
            checkpoint; checkpoints are counted in updates of so many steps.
        interrupted: whether Ctrl-C was pressed in the last step, whose training is done: it is for
            those who would go on with something else to stop there.
    """

    steps_in_update = 1
    interrupted = False

    def train(self, resume_from_checkpoint: bool = False) -> Any:
        """Train to the end, from the newest checkpoint where that is wanted and there is one.

        Raises:
            KeyboardInterrupt: Ctrl-C, after the checkpoint was written.
        """
        place = _newest(self._folder) if resume_from_checkpoint else None
        if place is not None:
            self.args.eval_on_start = False  # its result is in the checkpoint
        stopper = StopAfterUpdate(self.steps_in_update)
        self.add_callback(stopper)
        with stopper:
            done = super().train(resume_from_checkpoint=str(place) if place else None)
        if stopper.requested and self.state.global_step < self.state.max_steps:
            raise KeyboardInterrupt
        self.interrupted = distributed.any_process(stopper.requested)
        return done

    @property
    def _folder(self) -> Path:
        return Path(str(self.args.output_dir)) / FOLDER

    # ---- writing

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        own = checkpoints.rng_tensors(self.args.device)
        everyone = distributed.all_gather([own])
        if self.args.save_strategy != "no" and distributed.is_main():
            done = self.state.global_step // self.steps_in_update
            target = self._folder / f"{PREFIX}{done}"
            scratch = checkpoints.make_scratch(target)
            tensors = {f"weight.{name}": p.detach() for name, p in self._trained().items()}
            tensors |= checkpoints.optimizer_tensors("optimizer", self.optimizer)
            for number, random in enumerate(everyone):
                tensors |= {f"{number}.{name}": value for name, value in random.items()}
            values = self._values()
            for name, callback in self._stateful_callbacks().items():
                state, values[name] = callback.state_dict()
                tensors |= {f"{name}.{key}": value for key, value in state.items()}
            save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, scratch / TENSORS)
            (scratch / STATE).write_text(json.dumps(values), encoding="utf-8")
            self.state.save_to_json(str(scratch / TRAINER_STATE_NAME))
            checkpoints.publish(scratch, target)
            checkpoints.keep_newest(self._folder, MOST_CHECKPOINTS)
        distributed.barrier()

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _stateful_callbacks(self) -> dict[str, StatefulCallback]:
        known = [c for c in self.callback_handler.callbacks if isinstance(c, StatefulCallback)]
        return {type(callback).__name__: callback for callback in known}

    def _values(self) -> dict[str, Any]:
        groups = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.optimizer.param_groups
        ]
        scaler = getattr(self.accelerator, "scaler", None)
        return checkpoints.rng_numbers() | {
            "groups": groups,
            "schedule": self.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "tokens": getattr(self, "_total_train_tokens", 0),
            "processes": distributed.world_size(),
        }

    # ---- resuming: what transformers calls at the places where it would read its own pickles

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved, _ = _read(resume_from_checkpoint)
        trained = self._trained()
        shapes = {f"weight.{name}": weight.shape for name, weight in trained.items()}
        found = {n: t.shape for n, t in saved.items() if n.startswith("weight.")}
        if shapes != found:
            raise UserError(
                f"The checkpoint {resume_from_checkpoint} has adapters of another shape than "
                "this run: resume it with the settings that it was started with."
            )
        for name, weight in trained.items():
            weight.data.copy_(saved[f"weight.{name}"])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        tensors, values = _read(checkpoint)
        checkpoints.fill_optimizer("optimizer", self.optimizer, tensors)
        for group, saved in zip(self.optimizer.param_groups, values["groups"], strict=True):
            group.update(saved)
        self.lr_scheduler.load_state_dict(values["schedule"])
        self._total_train_tokens = values["tokens"]
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler and values["scaler"]:
            scaler.load_state_dict(values["scaler"])
        for name, callback in self._stateful_callbacks().items():
            if name in values:  # an older version's run may have had no such callback
                callback.load_state_dict(_with_prefix(tensors, name), values[name])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        tensors, values = _read(checkpoint)
        own = _with_prefix(tensors, str(distributed.rank() % values["processes"]))
        checkpoints.set_rng_state(values, own, self.args.device)

    def _init_training_state(
        self, max_steps: int, steps_in_epoch: int, epochs: int, *rest: Any
    ) -> tuple[int, int]:
        done = super()._init_training_state(max_steps, steps_in_epoch, epochs, *rest)
        # A finished run would take one more step where max_steps ends an epoch early.
        return (epochs, 0) if self.state.global_step >= max_steps else done


def _with_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    start = f"{prefix}."
    return {n[len(start) :]: t for n, t in tensors.items() if n.startswith(start)}


def _read(checkpoint: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    folder = Path(checkpoint)
    return load_file(folder / TENSORS), json.loads((folder / STATE).read_text(encoding="utf-8"))
