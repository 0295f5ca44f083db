"""Retries after running out of memory: the rows of a forward run in smaller parts from then on.

The loss of a batch stays what it was: the sum over its parts, or their mean weighted by rows.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch

from lorarlhf.backbone.oom import free_memory, is_out_of_memory
from lorarlhf.runtime.terminal import log_to_stderr

_Trainer: Any = object  # one of TRL's trainers follows in the order of classes

ROWS = "rows"
ACCUMULATED = ("_metrics", "_stored_metrics", "_total_train_tokens")
"""What TRL's trainers add up for their logs in a forward."""


class OOMRetryMixin(_Trainer):
    """A trainer that runs a micro-batch in parts where memory does not suffice for all its rows.

    Attributes:
        parts: into how many parts a micro-batch is divided; doubled each time memory runs out.
    """

    current_gradient_accumulation_steps: float
    parts = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_collator: Any = RowsCollator(self.data_collator)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        """As the trainer's own, without the rows that the collator added."""
        inputs.pop(ROWS)
        return super().prediction_step(model, inputs, *rest, **named)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of a micro-batch, in as many parts as memory needs.

        Raises:
            RuntimeError: memory does not suffice for a single row.
        """
        rows = inputs.pop(ROWS)
        if self.accelerator.num_processes > 1:
            # The others would wait for one gradient more than they have.
            return super().training_step(model, inputs, num_items_in_batch)
        restore = _snapshot(self, model)
        while True:
            try:
                return self._in_parts(model, inputs, rows, num_items_in_batch)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.parts >= len(rows):
                    raise
            free_memory()
            self.parts *= 2
            restore()
            log_to_stderr(
                f"Out of memory: from here on {-(-len(rows) // self.parts)} rows go through "
                "at once. The batch stays as large as it was, and nothing is lost."
            )

    def _in_parts(
        self, model: Any, inputs: dict[str, Any], rows: list[Any], num_items_in_batch: Any
    ) -> torch.Tensor:
        if self.parts == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        size, steps = -(-len(rows) // self.parts), self.current_gradient_accumulation_steps
        losses = []
        try:
            for i in range(0, len(rows), size):
                part = rows[i : i + size]
                # What a mean is divided by; a sum over the batch's tokens is not.
                self.current_gradient_accumulation_steps = steps * len(rows) / len(part)
                inputs = self.data_collator.collate(part)
                losses.append(super().training_step(model, inputs, num_items_in_batch))
        finally:
            self.current_gradient_accumulation_steps = steps
        return torch.stack(losses).sum()


def _snapshot(trainer: Any, model: Any) -> Callable[[], None]:
    """A function that puts gradients and accumulated metrics back as they are now."""
    weights = [p for p in model.parameters() if p.requires_grad]
    gradients = [None if p.grad is None else p.grad.clone() for p in weights]
    metrics = {n: copy.deepcopy(v) for n, v in vars(trainer).items() if n in ACCUMULATED}

    def restore() -> None:
        for name, value in metrics.items():
            setattr(trainer, name, copy.deepcopy(value))
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = None if gradient is None else gradient.clone()

    return restore


class RowsCollator:
    """A collator whose batches also hold the rows that they were made of."""

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        return {**self.collate(rows), ROWS: rows}
