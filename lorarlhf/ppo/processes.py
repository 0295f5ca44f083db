"""Several processes as one (`accelerate launch`): each answers its share of an update's prompts.

All processes then hold the tables of the whole rollout and compute the same scores, advantages and
metrics; gradients are sums over the tokens of the whole minibatch. So any number of processes
takes the same steps. Alone, every function here gives back what it was given.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import distributed, nn

T = TypeVar("T")


def count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _together() else 1


def first() -> bool:
    """Whether this process does what is done once for all."""
    return not _together() or distributed.get_rank() == 0


def own_share(rows: int) -> range:
    """Which of an update's `rows` sequences this process answers: neighbours, in order."""
    rank = distributed.get_rank() if _together() else 0
    return range(rank * rows // count(), (rank + 1) * rows // count())


def total(x: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes."""
    if _together():
        distributed.all_reduce(x)
    return x


def all_rows(rows: Sequence[T]) -> list[T]:
    """The rows of all processes, in the order of `own_share`."""
    if not _together():
        return list(rows)
    gathered: list[Any] = [None] * count()
    distributed.all_gather_object(gathered, list(rows))
    return [row for part in gathered for row in part]


def add_gradients(weights: Sequence[nn.Parameter]) -> None:
    """Make each gradient the sum over all processes; a process without a sequence adds nothing."""
    if not _together():
        return
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        distributed.all_reduce(weight.grad)


def wait() -> None:
    """Until all processes have come here."""
    if _together():
        distributed.barrier()


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
