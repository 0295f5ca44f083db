"""The same optimizer steps by any number of processes, and with any size of a forward.

TRL's trainers weigh the micro-batches of a step alike, whatever their rows, and fill up the last
step of an epoch with rows that were there before, so that every process has as many. Here a step
takes the next `batch_size` rows of one order, each process its share of them, and a mean over rows
is a mean over all rows of the step.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import find_batch_size

from lorarlhf.runtime import distributed


@dataclass
class Piece:
    """The rows of one forward.

    Attributes:
        rows: their places in the order; one of another process's where this one has none left.
        weight: this process's mean over them counts so much in the gradients' mean over processes.
        even: whether the other processes' forwards beside this one have as many rows.
    """

    rows: list[int]
    weight: float
    even: bool


class Dealer(Sampler[list[int]]):
    """Deals the rows of each optimizer step to processes and forwards.

    Args:
        sampler: the order of the rows, the same in all processes.
        micro: rows in one forward; steps: forwards of one process in an optimizer step.
        epoch: how many epochs are over.
    """

    def __init__(
        self, sampler: Sampler[int], micro: int, steps: int, epoch: Callable[[], int]
    ) -> None:
        self.order, self.micro, self.epoch = sampler, micro, epoch
        self.size = micro * steps * distributed.world_size()  # rows of an optimizer step
        self.rows = len(sampler)  # type: ignore[arg-type]
        self.full = self.rows // self.size
        rest = self.rows % self.size
        # As many forwards as the process with the most rows needs: the others go along.
        self.last = math.ceil(math.ceil(rest / distributed.world_size()) / micro)
        self.forwards = self.full * steps + self.last
        self.steps = steps

    def __len__(self) -> int:
        return self.forwards

    def __iter__(self) -> Iterator[list[int]]:
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(self.epoch())
        order = list(self.order)
        for step in range(math.ceil(self.rows / self.size)):
            rows = order[step * self.size : (step + 1) * self.size]
            for piece in self.pieces(step):
                yield [rows[place] for place in piece.rows]

    def pieces(self, step: int) -> list[Piece]:
        """This process's forwards in a step of the epoch, by places in the step's rows."""
        count = min(self.size, self.rows - step * self.size)
        own = list(distributed.own_share(count))
        forwards = self.steps if step < self.full else self.last
        cut = [own[n * self.micro : (n + 1) * self.micro] for n in range(forwards)]
        even = count % distributed.world_size() == 0
        return [
            Piece(part or [0], len(part) * distributed.world_size() / count, even) for part in cut
        ]


def together(kind: type) -> type:
    """A trainer of TRL's that takes the same steps in any number of processes.

    Put it around all other subclasses: it tells `training_step` how much a forward counts.
    """

    class Together(kind):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._even, self._gather_even = True, self.accelerator.gather
            self.accelerator.gather = self._gather

        def _gather(self, rows: torch.Tensor) -> torch.Tensor:
            """The rows (of a metric) in all processes, which may have different numbers of them."""
            if self._even:
                return self._gather_even(rows)
            parts = distributed.all_gather([torch.atleast_1d(rows.detach().cpu())])
            return torch.cat(parts).to(rows.device)

        def get_train_dataloader(self) -> DataLoader:
            args = self.args
            self.dealer = Dealer(
                self._get_train_sampler(self.train_dataset),
                args.per_device_train_batch_size,
                args.gradient_accumulation_steps,
                lambda: self.state.global_step // self._steps_in_epoch,
            )
            self._steps_in_epoch = math.ceil(len(self.dealer) / args.gradient_accumulation_steps)
            return self._loader(self.train_dataset, batch_sampler=self.dealer)

        def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
            # Each process measures all of the few held-out rows, and so all come to one decision.
            rows = self.eval_dataset if eval_dataset is None else eval_dataset
            return self._loader(rows, batch_size=self.args.per_device_eval_batch_size)

        def _loader(self, rows: Any, **how: Any) -> DataLoader:
            return DataLoader(
                self._remove_unused_columns(rows),
                collate_fn=self.data_collator,
                num_workers=self.args.dataloader_num_workers,
                pin_memory=self.args.dataloader_pin_memory,
                **how,
            )

        def get_batch_samples(
            self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
        ) -> tuple[list[Any], Any]:
            batches = list(itertools.islice(epoch_iterator, num_batches))
            pieces = self.dealer.pieces(self.state.global_step % self._steps_in_epoch)
            for batch, piece in zip(batches, pieces, strict=True):
                if not piece.weight and "labels" in batch:  # a loss that counts tokens, not rows
                    batch["labels"].fill_(-100)
            self._pieces = iter(pieces)
            return batches, self._get_num_items_in_batch(batches, device)

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            piece = next(self._pieces)
            # The trainer divides a mean over rows by this; a sum over tokens it leaves alone.
            parts = 1 / piece.weight if piece.weight else float("inf")
            self.current_gradient_accumulation_steps, self._even = parts, piece.even
            loss = super().training_step(model, inputs, *args, **kwargs)
            self._even = True
            return loss

        def prediction_step(
            self, model: Any, inputs: Any, *args: Any, **kwargs: Any
        ) -> tuple[Any, Any, Any]:
            rows = find_batch_size(inputs)
            loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
            # A last batch of fewer rows counts as much as its rows.
            return None if loss is None else loss.expand(rows), logits, labels

    Together.__name__ = Together.__qualname__ = kind.__name__
    return Together
