"""The same optimizer steps by any number of processes, and with micro-batches of any size.

TRL's trainers give every micro-batch of a step the same weight, however many rows it has, and fill
the last step of an epoch with rows that were used before, so that every process has as many. Here a
step takes the next `batch_size` rows of one order, each process takes its share of them, and a mean
over rows is a mean over all rows of the step.
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
from lorarlhf.stages.trl.oom_retry import ROWS

_Trainer: Any = object  # one of TRL's trainers follows in the order of classes


@dataclass
class MicroBatch:
    """The rows of one forward.

    Attributes:
        rows: their places in the step; a row of another process where this one has none left.
        weight: the weight of this process's mean over them in the mean over processes.
        even: whether the other processes' forwards at the same time have as many rows.
    """

    rows: list[int]
    weight: float
    even: bool


class BatchSampler(Sampler[list[int]]):
    """Divides the rows of each optimizer step among processes and forwards.

    Args:
        order: the order of the rows, the same in all processes.
        micro: rows in one forward; steps: forwards of one process in an optimizer step.
        epoch: gives the number of finished epochs.
    """

    def __init__(
        self, order: Sampler[int], micro: int, steps: int, epoch: Callable[[], int]
    ) -> None:
        self.order, self.micro, self.epoch = order, micro, epoch
        processes = distributed.world_size()
        self.size = micro * steps * processes  # rows of an optimizer step
        self.rows = len(order)  # type: ignore[arg-type]
        self.full = self.rows // self.size
        rest = self.rows % self.size
        # As many forwards as the process with the most rows needs; the others run along.
        self.last = math.ceil(math.ceil(rest / processes) / micro)
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
            for micro_batch in self.micro_batches(step):
                yield [rows[place] for place in micro_batch.rows]

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """This process's forwards in a step of the epoch, by places in the step's rows."""
        count, processes = min(self.size, self.rows - step * self.size), distributed.world_size()
        own = list(distributed.own_share(count))
        forwards = self.steps if step < self.full else self.last
        slices = [own[n * self.micro : (n + 1) * self.micro] for n in range(forwards)]
        even = count % processes == 0
        return [MicroBatch(part or [0], len(part) * processes / count, even) for part in slices]


class LongestFirst(Sampler[int]):
    """Rows in random order, a new one each epoch; the longest row of all begins the first epoch.

    A run that has memory for its first step has memory for the others.

    Args:
        lengths: of the rows, in tokens.
    """

    def __init__(self, lengths: list[int], seed: int) -> None:
        self.lengths, self.seed, self.epoch = lengths, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that comes next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator("cpu").manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator, device="cpu").tolist()
        if self.epoch == 0:
            longest = max(order, key=lambda i: self.lengths[i])
            place = order.index(longest)
            order[0], order[place] = order[place], order[0]
        return iter(order)


def row_length(row: dict[str, Any]) -> int:
    """Tokens of a row as a forward sees it: of a pair the longer answer, prompt included."""
    sizes = {name: len(ids) for name, ids in row.items() if name.endswith("_ids") and ids}
    prompt = sizes.pop("prompt_ids", 0)  # in DPO's and KTO's columns answers stand without it
    return prompt + max(sizes.values(), default=0)


class EvenStepsMixin(_Trainer):
    """A trainer that takes the same steps in any number of processes.

    It comes before all other mixins: it tells `training_step` how much a forward counts.

    Attributes:
        step_rows: this process's rows of the step that begins.
    """

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
        """Micro-batches as `BatchSampler` divides them."""
        args = self.args
        self.batches = BatchSampler(
            self.row_order(),
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
            lambda: self.state.global_step // self._steps_in_epoch,
        )
        self._steps_in_epoch = math.ceil(len(self.batches) / args.gradient_accumulation_steps)
        return self._loader(self.train_dataset, batch_sampler=self.batches)

    def row_order(self) -> Any:
        """The sampler that orders the training rows."""
        if self.args.train_sampling_strategy != "random":
            return self._get_train_sampler(self.train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LongestFirst([row_length(row) for row in self.train_dataset], seed)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """All held-out rows in every process: they are few, and all come to one decision."""
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
        """The micro-batches of the next step, and how many labelled tokens they have."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        planned = self.batches.micro_batches(self.state.global_step % self._steps_in_epoch)
        for batch, micro_batch in zip(batches, planned, strict=True):
            if not micro_batch.weight and "labels" in batch:  # a loss that counts tokens, not rows
                batch["labels"].fill_(-100)
        self._planned = iter(planned)
        pairs = zip(batches, planned, strict=True)
        self.step_rows = [row for batch, part in pairs if part.weight for row in batch[ROWS]]
        return batches, self._get_num_items_in_batch(batches, device)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of one micro-batch, with its weight in the step."""
        micro_batch = next(self._planned)
        # The trainer divides a mean over rows by this; a sum over tokens it leaves alone.
        parts = 1 / micro_batch.weight if micro_batch.weight else float("inf")
        self.current_gradient_accumulation_steps: float = parts
        self._even = micro_batch.even
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._even = True
        return loss

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """A last batch of fewer rows counts as much as it has rows."""
        rows = find_batch_size(inputs)
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        return None if loss is None else loss.expand(rows), logits, labels
