"""Freed memory stays in the process between tensors, and goes back when it is told to."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from lorarlhf.backbone.devices import give_back_memory, hold_freed_memory
from pathlib import Path

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 10**6

def use():
    many = [torch.ones(1 << 19) for _ in range(100)]  # 100 times 2 MB

hold_freed_memory()
before, empty = faults(), resident()
use()
first, kept = faults() - before, resident() - empty
use()
again = faults() - before - first
give_back_memory()
print(first, again, kept, resident() - empty)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_what_is_freed_is_used_again_and_goes_back_when_told() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, check=True)
    first, again, kept, left = map(int, done.stdout.split())
    assert first > again * 10
    assert kept > 180  # MB, of 200
    assert left < 40
