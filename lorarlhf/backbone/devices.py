"""Choose the device and the compute dtype, and give freed memory back to the system."""

import ctypes
import os
import shutil
import subprocess
import sys

import torch

from lorarlhf.runtime.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def best_device(bits: int) -> torch.device:
    """CUDA, else Apple's GPU, else the CPU.

    Apple's GPU only without quantisation, because bitsandbytes does not support it. Of several
    cards the first one or, under `torchrun` and `accelerate launch`, the process's own.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if bits == 16 and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def nvidia_card() -> str:
    """The name of an NVIDIA card that the driver sees; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    first = (done.stdout.splitlines() or [""])[0]
    return first.split(" (UUID")[0] if done.returncode == 0 and first.startswith("GPU") else ""


def unused_card() -> str | None:
    """What to say if there is an NVIDIA card that this PyTorch can't use; None if all is well."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if hidden or torch.version.cuda is None or torch.cuda.is_available() or not nvidia_card():
        return None
    return (
        "PyTorch can't use this machine's NVIDIA card, so everything runs on the CPU. The driver "
        "may be older than PyTorch needs: run `lorarlhf doctor`."
    )


def find_device(name: str | None, bits: int) -> torch.device:
    """The device with this name, or the best one if there is no name.

    Raises:
        UserError: this machine does not have the device, or it is a card that has to be named in
            another way.
    """
    if name is None:
        return best_device(bits)
    if name.startswith("cuda:") and name != "cuda:0":
        number = name.removeprefix("cuda:")
        raise UserError(
            f"device is {name}, and the trainers use the first card that they see. Leave device "
            f"out and start the command with CUDA_VISIBLE_DEVICES={number} in front."
        )
    missing = (name.startswith("cuda") and not torch.cuda.is_available()) or (
        name == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise UserError(
            f"device is {name}, and this machine has none that PyTorch can use. Leave device "
            "out, or run `lorarlhf doctor` to see what is wrong."
        )
    return torch.device(name)


def compute_dtype_for(device: torch.device, wanted: str | None = None) -> torch.dtype:
    """The compute dtype: the one asked for, else bfloat16 if the device computes in it.

    A CUDA card without bfloat16 gets float16, with which the stages scale their losses. A CPU
    without bfloat16 instructions gets float32.

    Raises:
        ValueError: an unknown name.
    """
    if wanted is not None:
        if wanted not in DTYPES:
            raise ValueError(f"compute_dtype is one of {', '.join(DTYPES)}, not {wanted!r}")
        return DTYPES[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    if device.type == "cpu":
        return torch.bfloat16 if cpu_has_bfloat16() else torch.float32
    return torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512-BF16, AMX, or Arm's)."""
    flags = torch.backends.cpu.get_cpu_capability()
    if flags.startswith(("AVX512", "AMX")):
        probe = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        return bool(probe())
    if flags == "DEFAULT" and torch.backends.mkldnn.is_available():
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def hold_freed_memory() -> None:
    """Keep freed heap memory in the process until `give_back_memory` (glibc only).

    Otherwise glibc gives the activations of every micro-batch back and asks for them again, with a
    page fault for each 4 KB: a quarter of a million faults, a thirtieth of the time of an update.
    The peak is the same.
    """
    if sys.platform != "linux":
        return
    allow = getattr(ctypes.CDLL(None), "mallopt", None)
    if allow is not None:
        trim_above, map_above = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD in malloc.h
        allow(
            map_above, 1 << 25
        )  # glibc's own final value, which setting the other stops it from reaching
        allow(trim_above, (1 << 31) - 1)


def give_back_memory() -> None:
    """Give freed heap memory back to the system between phases (glibc only; a few milliseconds).

    A phase frees tensors of other sizes than the next one allocates. Without this the holes add up
    to half a gigabyte in a run.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
