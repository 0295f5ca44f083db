"""Memory that runs out: told from other errors, and the same work again in smaller pieces."""

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

T = TypeVar("T")
TOLD = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What a nearly full card says besides that PyTorch's own allocator and accelerate know of."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less work at once might have gone well."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return should_reduce_batch_size(error) or any(text in str(error) for text in TOLD)


def free_memory() -> None:
    """Free what a failed attempt has left; call it outside of the `except`, whose traceback holds
    the tensors."""
    clear_device_cache(garbage_collection=True)


def shrinking(size: int, attempt: Callable[[int], T]) -> T:
    """What `attempt(size)` returns; begun again with half the size for as long as memory runs out.

    Raises:
        RuntimeError: what the attempt raised, where it was something else or the size is 1.
    """
    while True:
        try:
            return attempt(size)
        except RuntimeError as error:
            if not is_out_of_memory(error) or size == 1:
                raise
        free_memory()
        size //= 2
