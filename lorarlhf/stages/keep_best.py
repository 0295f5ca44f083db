"""The weights from where the held-out loss was lowest are kept, and the training may end early."""

from typing import Any

import torch
from transformers import TrainerCallback

from lorarlhf.backbone.base import Backbone
from lorarlhf.stages.callbacks import log_beside_bars
from lorarlhf.stages.conversations import Row


class KeepBest(TrainerCallback):
    """Keeps a copy of a role's weights from where the held-out loss was lowest.

    Args:
        role: whose weights.
        min_gain: a loss that is lower by less than this replaces nothing.
        patience: the training ends after so many measurements in a row that were not the lowest,
            of those in its second half; None: it goes on. The step size falls to 0 over a training,
            and a loss that large steps have raised may fall again as they get smaller.

    Attributes:
        best_step: the step of those weights; 0 for those at the start.
    """

    def __init__(
        self, backbone: Backbone, role: str, *, min_gain: float = 0.0, patience: int | None = None
    ) -> None:
        self.backbone, self.role = backbone, role
        self.min_gain, self.patience = min_gain, patience
        self.best_loss, self.best_step, self.waited = float("inf"), 0, 0
        self.weights: list[torch.Tensor] = []

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Row | None = None, **kwargs: Any
    ) -> None:
        loss = (metrics or {}).get("eval_loss", float("inf"))
        if loss < self.best_loss - (self.min_gain if self.weights else 0.0):
            self.best_loss, self.best_step, self.waited = loss, state.global_step, 0
            self.weights = [p.detach().clone() for p in self.backbone.parameters_of(self.role)]
            return
        left = state.max_steps - state.global_step
        self.waited += left <= state.global_step
        if self.patience is not None and self.waited >= self.patience and left > 0:
            control.should_training_stop = True
            log_beside_bars(
                f"Stopped {left} steps before the end: the held-out loss was lowest at step "
                f"{self.best_step}."
            )

    def state_dict(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """For the checkpoint: the best weights, and where they come from."""
        names = ("best_loss", "best_step", "waited")
        values = {name: getattr(self, name) for name in names}
        return {str(n): weight for n, weight in enumerate(self.weights)}, values

    def load_state_dict(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Back from a checkpoint."""
        own = self.backbone.parameters_of(self.role)
        if tensors:
            self.weights = [tensors[str(n)].to(p.device) for n, p in enumerate(own)]
        self.best_loss, self.best_step = values["best_loss"], values["best_step"]
        self.waited = values["waited"]

    def restore(self) -> None:
        """Put the best weights back, if anything was measured."""
        if not self.weights:
            return
        own = self.backbone.parameters_of(self.role)
        for weight, best in zip(own, self.weights, strict=True):
            weight.data.copy_(best)
