"""KTO whose steps do not depend on the size of a forward or the number of processes."""

import copy
from typing import Any

import torch

from lorarlhf.runtime import distributed

_Trainer: Any = object  # TRL's KTOTrainer follows in the order of classes


class KTOMixin(_Trainer):
    """Takes the mean KL that answers are compared with over all rows of an optimizer step.

    TRL's KTOTrainer takes it over the rows of a forward, and pairs each prompt with the answer
    before it in that forward, so that a step changes with `micro_batch_size`. Here both are done
    over the step's rows (arXiv 2402.01306, section 4.1, estimates it over a batch).
    """

    step_rows: list[dict[str, Any]] | None
    _step_kl = 0.0

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, name: str) -> Any:
        """TRL's columns; it pairs the rows of as many as this size is."""
        whole = copy.copy(args)
        whole.per_device_train_batch_size *= args.gradient_accumulation_steps
        whole.per_device_train_batch_size *= distributed.world_size()
        return super()._prepare_dataset(dataset, processing_class, whole, name)

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        """Forward and backward of a micro-batch; the first of a step finds the step's KL."""
        if self.step_rows is not None and self.calculate_KL:
            self._step_kl = self._mean_kl(self.step_rows)
        self.step_rows = None  # only now: after running out of memory this is called again
        return super().training_step(model, inputs, *rest)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the trainer's own, with the mean KL of all held-out rows."""
        if self.calculate_KL:
            self.model.eval()
            self._step_kl = self._mean_kl(list(self._remove_unused_columns(self.eval_dataset)))
        return super().evaluate(*args, **kwargs)

    def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> torch.Tensor | None:
        """For TRL, which takes the mean difference between the policy's and the reference's."""
        if not self.calculate_KL:
            return super()._compute_kl_logps(model, batch)
        reference = self.accelerator.unwrap_model(self.model).active_adapter == "ref"
        value = 0.0 if reference else self._step_kl
        return torch.full((len(batch["label"]),), value, device=self.accelerator.device)

    @torch.no_grad()
    def _mean_kl(self, rows: list[dict[str, Any]]) -> float:
        """Over the step's rows in all processes, in nats an answer."""
        from trl.trainer.utils import use_adapter

        size = -(-self.args.per_device_train_batch_size // self.parts)
        found: list[float] = []
        for start in range(0, len(rows), size):
            batch = self.data_collator.collate(rows[start : start + size])
            batch = self._prepare_inputs(batch)
            with self.compute_loss_context_manager():
                # Not through the wrapper of several processes, whose first forward waits for the
                # others: one of them may have no rows.
                policy = super()._compute_kl_logps(self.model, batch)
                with use_adapter(self.accelerator.unwrap_model(self.model), adapter_name="ref"):
                    reference = super()._compute_kl_logps(self.model, batch)
            found += (policy - reference).tolist()
        kept = distributed.all_gather(found)
        return sum(kept) / len(kept)
