"""Collective operations for several processes (`accelerate launch`, `torchrun`).

In PPO each process answers its share of an update's prompts. Then all hold the tables of the whole
rollout and compute the same scores, advantages and metrics, and gradients are summed over the
tokens of the whole minibatch. So any number of processes takes the same steps. In a single process
every function here returns its input. torch is imported only if there are several processes.
"""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")


def is_main() -> bool:
    """Whether this is the main process (rank 0), which writes files and messages."""
    return int(os.environ.get("RANK", "0")) == 0


def world_size() -> int:
    """Number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def node_count() -> int:
    """Number of machines they run on."""
    return max(1, world_size() // int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size()))))


def rank() -> int:
    """Index of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def initialize() -> None:
    """Join the process group if a launcher has started several processes.

    accelerate, which would do it later, then uses this group.
    """
    if world_size() == 1 or _is_distributed():
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl")  # either kind of tensor
    else:
        torch.distributed.init_process_group("gloo")


def shut_down() -> None:
    """Leave the process group, at the end of a run without errors."""
    if _is_distributed():
        import torch

        torch.distributed.destroy_process_group()


def own_share(rows: int) -> range:
    """This process's share of `rows` rows: consecutive, in the order of the ranks, even in size."""
    index, count = (rank(), world_size()) if _is_distributed() else (0, 1)
    return range(index * rows // count, (index + 1) * rows // count)


def all_reduce(x: "torch.Tensor") -> "torch.Tensor":
    """Sum a tensor over all processes, in place; returns it."""
    if _is_distributed():
        import torch

        torch.distributed.all_reduce(x)
    return x


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process; all get the same answer."""
    return any(all_gather([flag]))


def all_gather(rows: Sequence[T]) -> list[T]:
    """The rows of all processes, in the order of their ranks."""
    if not _is_distributed():
        return list(rows)
    import torch

    gathered: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(gathered, list(rows))
    return [row for part in gathered for row in part]


def broadcast_from_main(make: Callable[[], T]) -> T:
    """The object that `make` returns in the main process; the others wait for it."""
    if not _is_distributed():
        return make()
    import torch

    objects: list[Any] = [make() if is_main() else None]
    torch.distributed.broadcast_object_list(objects)
    return objects[0]


def main_process_first(make: Callable[[], T]) -> T:
    """Call `make` in every process: first in the main one, then in one of each node, then in all.

    A download then happens once for each machine, and only once if they share a disk.
    """
    is_local_main = int(os.environ.get("LOCAL_RANK", "0")) == 0
    turn = 0 if is_main() else 1 if is_local_main else 2
    for _ in range(turn):
        barrier()
    made = make()
    for _ in range(turn, 2):
        barrier()
    return made


def all_reduce_gradients(weights: "Sequence[nn.Parameter]") -> None:
    """Sum each gradient over all processes; a missing gradient counts as zero."""
    if not _is_distributed():
        return
    import torch

    gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    flat = torch.cat([gradient.flatten() for gradient in gradients])  # one message for all
    torch.distributed.all_reduce(flat)
    sums = flat.split([gradient.numel() for gradient in gradients])
    for weight, gradient, summed in zip(weights, gradients, sums, strict=True):
        weight.grad = summed.view_as(gradient)


def barrier() -> None:
    """Wait until all processes have reached this call."""
    if _is_distributed():
        import torch

        torch.distributed.barrier()


def _is_distributed() -> bool:
    if world_size() == 1:
        return False
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()
