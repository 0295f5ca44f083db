"""Out of memory: tell it from other errors, free what is left over, and retry at half the size."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from lorarlhf.backbone.devices import give_back_memory

T = TypeVar("T")
CUDA_MESSAGES = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Messages of a nearly full card that neither PyTorch's allocator nor accelerate recognises."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, so that a smaller attempt may succeed."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return should_reduce_batch_size(error) or any(text in str(error) for text in CUDA_MESSAGES)


def free_memory() -> None:
    """Free what a failed attempt left behind.

    Call it outside the `except` block: the traceback still holds the tensors inside it.
    """
    clear_device_cache(garbage_collection=True)


def retry_halving(
    size: int,
    attempt: Callable[[int], T],
    *,
    on_halved: Callable[[int], None] = lambda size: None,
) -> T:
    """Return `attempt(size)`; when memory runs out, try again with half the size.

    Each attempt must start from scratch. It must not communicate with other processes, because
    they do not know about the retry.

    Args:
        size: of the first attempt, at least 1.
        on_halved: called with the new size before each retry.

    Raises:
        RuntimeError: the attempt's own error, if it is not about memory or the size is already 1.
    """
    while True:
        try:
            return attempt(size)
        except RuntimeError as error:
            if not is_out_of_memory(error) or size == 1:
                raise
        free_memory()
        size //= 2
        on_halved(size)


def batches_by_length(
    lengths: Sequence[int], size: int, forward: Callable[[list[int]], T]
) -> Iterator[tuple[list[int], T]]:
    """Batches of rows of similar length, the shortest first: (numbers of the rows, their result).

    Args:
        lengths: n lengths.
        size: most rows in a batch. After memory ran out, no later batch is larger than the one
            that fitted.
        forward: the result for some rows; called again with fewer when memory runs out.
    """
    left = sorted(range(len(lengths)), key=lengths.__getitem__)
    while left:

        def attempt(count: int, waiting: list[int] = left) -> tuple[list[int], T]:
            return waiting[:count], forward(waiting[:count])

        rows, found = retry_halving(min(size, len(left)), attempt)
        size, left = len(rows), left[len(rows) :]
        yield rows, found
        give_back_memory()  # the gaps that dequantised weights leave in the heap of a CPU
