"""Training stages that go on after a stop: TRL's trainers with checkpoints of our own.

A checkpoint holds the trained weights, the optimizer, its schedule, all random states, TRL's own
account of the training, and what callbacks keep. transformers' own checkpoints are pickles; here
tensors are in one safetensors file and everything else in JSON (`lorarlhf.runtime.checkpoints`).
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

FOLDER, STATE, TENSORS = "checkpoints", "state.json", "state.safetensors"
KEPT = 2
"""How many checkpoints stay."""


@runtime_checkable
class Keeps(Protocol):
    """A callback whose memory goes into the checkpoint."""

    def kept(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors by name, and what JSON takes."""

    def restore_kept(self, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
        """Put them back."""


def saving(save_steps: int) -> dict[str, Any]:
    """TRL's words for a checkpoint every `save_steps` optimizer steps and at the end; 0: none."""
    return {"save_strategy": "steps", "save_steps": save_steps} if save_steps else {}


def can_go_on(run_folder: Path) -> bool:
    """Whether a run has a checkpoint to go on from."""
    return _chosen(run_folder / FOLDER) is not None


def _chosen(folder: Path) -> Path | None:
    """The newest whole checkpoint as the first process sees it, the same in all of them."""
    place = distributed.broadcast_from_main(lambda: newest_intact(folder))
    if place is not None:
        checkpoints.check_visible(place)
    return place


def resumable(kind: type) -> type:
    """A trainer of TRL's whose `train(True)` goes on at the run's newest checkpoint.

    Its first Ctrl-C lets the step finish, writes a checkpoint and raises `KeyboardInterrupt`.
    """

    class Resumable(kind):  # type: ignore[misc, valid-type]
        def train(self, resume_from_checkpoint: bool = False) -> Any:  # type: ignore[override]
            place = _chosen(self._folder) if resume_from_checkpoint else None
            if place is not None:
                self.args.eval_on_start = False  # what it found is in the checkpoint
            stopper = StopAfterUpdate()
            self.add_callback(stopper)
            with stopper:
                done = super().train(resume_from_checkpoint=str(place) if place else None)
            if stopper.requested and self.state.global_step < self.state.max_steps:
                raise KeyboardInterrupt
            return done

        @property
        def _folder(self) -> Path:
            return Path(self.args.output_dir) / FOLDER

        # ---- writing

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            own = checkpoints.rng_tensors(self.args.device)
            everyone = distributed.all_gather([own])
            if self.args.save_strategy != "no" and distributed.is_main():
                target = self._folder / f"{PREFIX}{self.state.global_step}"
                scratch = checkpoints.make_scratch(target)
                tensors = {f"weight.{name}": p.detach() for name, p in self._trained().items()}
                tensors |= checkpoints.optimizer_tensors("optimizer", self.optimizer)
                for number, random in enumerate(everyone):
                    tensors |= {f"{number}.{name}": value for name, value in random.items()}
                numbers = self._numbers()
                for name, callback in self._keepers().items():
                    kept, numbers[name] = callback.kept()
                    tensors |= {f"{name}.{key}": value for key, value in kept.items()}
                save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, scratch / TENSORS)
                (scratch / STATE).write_text(json.dumps(numbers), encoding="utf-8")
                self.state.save_to_json(str(scratch / TRAINER_STATE_NAME))
                checkpoints.publish(scratch, target)
                checkpoints.keep_newest(self._folder, KEPT)
            distributed.barrier()

        def _trained(self) -> dict[str, torch.nn.Parameter]:
            return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

        def _keepers(self) -> dict[str, Keeps]:
            known = [c for c in self.callback_handler.callbacks if isinstance(c, Keeps)]
            return {type(callback).__name__: callback for callback in known}

        def _numbers(self) -> dict[str, Any]:
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

        # ---- going on

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
            tensors, numbers = _read(checkpoint)
            checkpoints.fill_optimizer("optimizer", self.optimizer, tensors)
            for group, saved in zip(self.optimizer.param_groups, numbers["groups"], strict=True):
                group.update(saved)
            self.lr_scheduler.load_state_dict(numbers["schedule"])
            self._total_train_tokens = numbers["tokens"]
            for name, callback in self._keepers().items():
                start = f"{name}."
                kept = {n[len(start) :]: t for n, t in tensors.items() if n.startswith(start)}
                callback.restore_kept(kept, numbers[name])

        def _load_scaler(self, checkpoint: str | None) -> None:
            scaler = getattr(self.accelerator, "scaler", None)
            if checkpoint is not None and scaler and (state := _read(checkpoint)[1]["scaler"]):
                scaler.load_state_dict(state)

        def _load_rng_state(self, checkpoint: str | None) -> None:
            if checkpoint is None:
                return
            tensors, numbers = _read(checkpoint)
            start = f"{distributed.rank() % numbers['processes']}."
            own = {n[len(start) :]: t for n, t in tensors.items() if n.startswith(start)}
            checkpoints.set_rng_state(numbers, own, self.args.device)

        def _init_training_state(
            self, max_steps: int, steps_in_epoch: int, epochs: int, *rest: Any
        ) -> tuple[int, int]:
            done = super()._init_training_state(max_steps, steps_in_epoch, epochs, *rest)
            # A run that was over would else take another step where max_steps ends an epoch early.
            return (epochs, 0) if self.state.global_step >= max_steps else done

    Resumable.__name__ = Resumable.__qualname__ = kind.__name__
    return Resumable


def _read(checkpoint: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    folder = Path(checkpoint)
    return load_file(folder / TENSORS), json.loads((folder / STATE).read_text(encoding="utf-8"))
