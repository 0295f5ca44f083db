"""TRL's trainers where memory is short: the longest row first, and forwards that can be halved.

A run that fits its first step then fits the others; and where memory runs out all the same, the
rows of a forward are run in pieces from there on. The loss of a batch is what it was: a sum of its
pieces, or their mean weighted by rows.
"""

import copy
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch.utils.data import Sampler

from lorarlhf.backbone.oom import free_memory, is_out_of_memory
from lorarlhf.runtime.terminal import log_to_stderr

ROWS = "rows"
ACCOUNTS = ("_metrics", "_stored_metrics", "_total_train_tokens")
"""What TRL's trainers add up for their logs in a forward."""


@cache
def careful(kind: type) -> type:
    """A TRL trainer class that takes care of memory."""

    class Careful(kind):  # type: ignore[misc, valid-type]
        data_collator: Any
        current_gradient_accumulation_steps: float
        pieces = 1

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.data_collator = _WithRows(self.data_collator)

        def prediction_step(
            self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any
        ) -> Any:
            inputs.pop(ROWS)
            return super().prediction_step(model, inputs, *rest, **named)

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            rows = self.train_dataset if train_dataset is None else train_dataset
            if self.args.train_sampling_strategy != "random":
                return super()._get_train_sampler(rows)
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return LongestFirst([_width(row) for row in rows], seed)

        def training_step(
            self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
        ) -> torch.Tensor:
            """Forward and backward of a batch, in as many pieces as memory asks for."""
            rows = inputs.pop(ROWS)
            if self.accelerator.num_processes > 1:
                # The others would wait for gradients that come once more than theirs.
                return super().training_step(model, inputs, num_items_in_batch)
            weights = [p for p in model.parameters() if p.requires_grad]
            before = [None if p.grad is None else p.grad.clone() for p in weights]
            accounts = {n: copy.deepcopy(v) for n, v in vars(self).items() if n in ACCOUNTS}
            while True:
                try:
                    return self._in_pieces(model, inputs, rows, num_items_in_batch)
                except RuntimeError as error:
                    if not is_out_of_memory(error) or self.pieces >= len(rows):
                        raise
                free_memory()
                self.pieces *= 2
                for name, value in accounts.items():
                    setattr(self, name, copy.deepcopy(value))
                for weight, grad in zip(weights, before, strict=True):
                    weight.grad = None if grad is None else grad.clone()
                log_to_stderr(
                    f"Out of memory: from here on {-(-len(rows) // self.pieces)} rows go through "
                    "at once. The batch stays as large as it was, and nothing is lost."
                )

        def _in_pieces(
            self, model: Any, inputs: dict[str, Any], rows: list[Any], num_items_in_batch: Any
        ) -> torch.Tensor:
            if self.pieces == 1:
                return super().training_step(model, inputs, num_items_in_batch)
            size, steps = -(-len(rows) // self.pieces), self.current_gradient_accumulation_steps
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

    Careful.__name__ = kind.__name__  # TRL writes it into model cards and logs
    return Careful


def _width(row: dict[str, Any]) -> int:
    """Tokens of a row as a forward sees it: of a pair the longer one, prompt included."""
    sizes = {name: len(ids) for name, ids in row.items() if name.endswith("_ids") and ids}
    prompt = sizes.pop("prompt_ids", 0)  # DPO's, whose answers stand without it
    return prompt + max(sizes.values(), default=0)


class _WithRows:
    """A collator whose batches also hold the rows that they were made of."""

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        return {**self.collate(rows), ROWS: rows}


class LongestFirst(Sampler[int]):
    """Rows in random order, another one each epoch; the longest of all is the first of the first.

    Args:
        lengths: of the rows.
    """

    def __init__(self, lengths: list[int], seed: int) -> None:
        self.lengths, self.seed, self.epoch = lengths, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next; told by the dataloader."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        dealer = torch.Generator("cpu").manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=dealer, device="cpu").tolist()
        if self.epoch == 0:
            longest = max(order, key=lambda i: self.lengths[i])
            place = order.index(longest)
            order[0], order[place] = order[place], order[0]
        return iter(order)
