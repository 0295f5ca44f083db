"""Out of memory: tell it from other errors, free what is left over, and retry at half the size."""

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

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
