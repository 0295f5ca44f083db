"""Several processes as one (`accelerate launch`): who am I, sums over all, waiting for the others.

In PPO each process answers its share of an update's prompts; all then hold the tables of the whole
rollout and compute the same scores, advantages and metrics, and gradients are sums over the tokens
of the whole minibatch. So any number of processes takes the same steps. Alone, every function here
gives back what it was given. torch is imported only where there is something to do.
"""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")


def is_main() -> bool:
    """Whether this is the process that writes files and speaks: the first, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def node_count() -> int:
    """On how many machines they run."""
    return max(1, world_size() // int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size()))))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def initialize() -> None:
    """Join the others, where a launcher has started several; accelerate finds it done."""
    if world_size() == 1 or _is_distributed():
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl")  # either kind of tensor
    else:
        torch.distributed.init_process_group("gloo")


def shut_down() -> None:
    """Leave the others, at the end of a run that went well."""
    if _is_distributed():
        import torch

        torch.distributed.destroy_process_group()


def own_share(rows: int) -> range:
    """Which of `rows` rows are this process's: neighbours, in order, as many as the others'."""
    place, all_of_us = (rank(), world_size()) if _is_distributed() else (0, 1)
    return range(place * rows // all_of_us, (place + 1) * rows // all_of_us)


def all_reduce(x: "torch.Tensor") -> "torch.Tensor":
    """The sum of a tensor over all processes."""
    if _is_distributed():
        import torch

        torch.distributed.all_reduce(x)
    return x


def any_process(flag: bool) -> bool:
    """Whether it is so in any process: all get the same answer."""
    return any(all_gather([flag]))


def all_gather(rows: Sequence[T]) -> list[T]:
    """The rows of all processes, in the order of `own_share`."""
    if not _is_distributed():
        return list(rows)
    import torch

    gathered: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(gathered, list(rows))
    return [row for part in gathered for row in part]


def broadcast_from_main(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them; the others wait for it."""
    if not _is_distributed():
        return make()
    import torch

    box: list[Any] = [make() if is_main() else None]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def main_process_first(make: Callable[[], T]) -> T:
    """What each process makes by itself: the first one, then one on each other machine, then all.

    So what is fetched is fetched once a machine, and once for all where they share a disk.
    """
    leads_machine = int(os.environ.get("LOCAL_RANK", "0")) == 0
    own_turn = 0 if is_main() else 1 if leads_machine else 2
    for _ in range(own_turn):
        barrier()
    made = make()
    for _ in range(own_turn, 2):
        barrier()
    return made


def all_reduce_gradients(weights: "Sequence[nn.Parameter]") -> None:
    """Make each gradient the sum over all processes; a process without a sequence adds nothing."""
    if not _is_distributed():
        return
    import torch

    gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    together = torch.cat([gradient.flatten() for gradient in gradients])  # one message
    torch.distributed.all_reduce(together)
    sums = together.split([gradient.numel() for gradient in gradients])
    for weight, gradient, whole in zip(weights, gradients, sums, strict=True):
        weight.grad = whole.view_as(gradient)


def barrier() -> None:
    """Until all processes have come here."""
    if _is_distributed():
        import torch

        torch.distributed.barrier()


def _is_distributed() -> bool:
    if world_size() == 1:
        return False
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()
