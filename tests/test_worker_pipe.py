"""A worker's end of its pipe: order, waiting, the other end's death, and a broken device."""

import multiprocessing
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from lorarlhf.runtime.worker_pipe import WorkerPipe, breaks_device

CONTEXT: Any = multiprocessing.get_context("spawn")
ASSERT = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously"
BREAKS = f"""
from lorarlhf.runtime.worker_pipe import end_if_broken
end_if_broken(ValueError("a request"))
print("goes on", flush=True)
end_if_broken(RuntimeError({ASSERT!r}))
print("never said")
"""


def echo(connection: Any) -> None:
    """Send back what arrives, with how many messages came before it."""
    pipe = WorkerPipe(connection)
    for count, (number, kind, value) in enumerate(pipe.messages(lambda: True)):
        pipe.send(number, kind, (count, value))


def test_messages_come_in_their_order_and_the_end_of_the_other_side_ends_the_process() -> None:
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=echo, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    for number in range(50):
        ours.send((number, "say", "x" * 5000))
    assert [ours.recv() for _ in range(50)] == [
        (number, "say", (number, "x" * 5000)) for number in range(50)
    ]
    ours.close()
    process.join(60)
    assert process.exitcode == 0


def without_waiting(connection: Any) -> None:
    """Look for messages without waiting, then wait for one and no more."""
    pipe = WorkerPipe(connection)
    pipe.send(0, "there", list(pipe.messages(lambda: False)))
    waiting = iter([True, False])
    pipe.send(0, "waited", next(pipe.messages(lambda: next(waiting))))
    pipe.send(0, "there", list(pipe.messages(lambda: False)))
    pipe.send(0, "end", next(pipe.messages(lambda: True)))


def test_who_has_work_does_not_wait() -> None:
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=without_waiting, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    assert ours.recv() == (0, "there", [])
    ours.send((1, "answer", None))
    assert ours.recv() == (0, "waited", (1, "answer", None))
    assert ours.recv() == (0, "there", [])
    ours.send((2, "stop", None))
    assert ours.recv() == (0, "end", (2, "stop", None))
    process.join(60)


@pytest.mark.parametrize(
    ("error", "breaks"),
    [
        (RuntimeError(ASSERT), True),
        (RuntimeError("HIP error: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: out of memory"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), False),
        (RuntimeError("CUDA error: no kernel image is available for execution"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), False),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("CUDA error: said by somebody else"), False),
    ],
)
def test_errors_that_break_a_device(error: Exception, breaks: bool) -> None:
    assert breaks_device(error) is breaks


def test_a_broken_device_ends_the_process_and_other_errors_do_not() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", BREAKS], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 1 and done.stdout.split("\n") == ["goes on", ""]
    assert "device-side assert" in done.stderr
