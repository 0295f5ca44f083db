"""Out of memory in the middle of a run: the same again with half as many sequences in a forward.

The size of a micro-batch changes no step, so the effective batch stays what it was, and what was
sampled is kept.
"""

from collections.abc import Callable
from typing import TypeVar

from lorarlhf.backbone.oom import free_memory, is_out_of_memory
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.runtime.terminal import log_to_stderr

T = TypeVar("T")


def until_it_fits(args: PPOConfig, attempt: Callable[[], T]) -> T:
    """What `attempt` returns; `args.micro_batch_size` is halved for as long as memory runs out.

    The attempt reads the size anew each time and begins from nothing. It must not speak to other
    processes: they know nothing of its second try.

    Raises:
        RuntimeError: what the attempt raised, where a single sequence is too much or it was
            something else.
    """
    while True:
        try:
            return attempt()
        except RuntimeError as error:
            if not is_out_of_memory(error) or args.micro_batch_size == 1:
                raise
        free_memory()
        args.micro_batch_size //= 2
        log_to_stderr(
            f"Out of memory: from here on micro_batch_size is {args.micro_batch_size}. The batch "
            "stays as large as it was, and nothing is lost."
        )
