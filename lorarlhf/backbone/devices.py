"""Choose the device and the compute dtype, and give freed memory back to the system."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from lorarlhf.backbone import four_bit
from lorarlhf.runtime.errors import UserError

OTHERS = {"xpu": "Intel's card", "mps": "Apple's GPU"}
"""Devices on which 4-bit layers are tried before they are used, with what people call them."""
AMD_DRIVER = Path("/dev/kfd")
CARDS = ("cuda", "xpu")
"""Devices with memory of their own. AMD's cards are `cuda` to PyTorch, too."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def best_device(bits: int) -> torch.device:
    """A card of NVIDIA or AMD, else Intel's, else Apple's GPU, else the CPU.

    Intel's and Apple's without quantisation, or in 4 bit if that works there. Of several cards the
    first one or, under `torchrun` and `accelerate launch`, the process's own.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    for kind in OTHERS:
        if is_there(kind) and unfit(kind, bits) is None:
            return torch.device(kind)
    return torch.device("cpu")


def is_there(kind: str) -> bool:
    """Whether PyTorch can use a device of a kind: `cuda`, `xpu`, `mps` or `cpu`."""
    if kind == "mps":
        return torch.backends.mps.is_available()
    return kind == "cpu" or bool(getattr(torch, kind).is_available())


def unfit(kind: str, bits: int) -> str | None:
    """Why layers of so many bits are not computed on a kind of device; None if they are."""
    if bits == 16 or kind not in OTHERS:
        return None
    if bits == 8:
        return "8 bit has not been tried there"
    return four_bit.trouble(kind, compute_dtype_for(torch.device(kind)))


def build_name() -> str:
    """What this PyTorch was built for: `CUDA 13.0`, `ROCm 7.1`, `XPU` or `CPU`."""
    if torch.version.hip is not None:
        return f"ROCm {torch.version.hip}"
    if torch.version.cuda is not None:
        return f"CUDA {torch.version.cuda}"
    return "XPU" if getattr(torch.version, "xpu", None) else "CPU"


def has_amd_driver() -> bool:
    """Whether the driver of AMD's GPUs runs; those of notebooks' processors have it, too."""
    return AMD_DRIVER.exists()


def card_memory(device: torch.device) -> tuple[int, int]:
    """(free, total) bytes of a card, one of `CARDS`.

    Raises:
        RuntimeError: its driver does not tell.
    """
    return torch.get_device_module(device).mem_get_info(device)


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


def unused_card(bits: int = 4) -> str | None:
    """What to say if there is a card or a GPU that is not used; None if all is well."""
    if best_device(bits).type != "cpu":
        return None
    for kind, name in OTHERS.items():
        if is_there(kind):
            return (
                f"{name} is not used with {bits}-bit weights ({unfit(kind, bits)}), so everything "
                "runs on the CPU. --set bits=16 uses it."
            )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    # For Windows, the package index has PyTorch for the CPU alone; elsewhere somebody chose it.
    chosen = torch.version.cuda is None and not (sys.platform == "win32" and build_name() == "CPU")
    if hidden or chosen or not nvidia_card():
        return None
    if torch.version.cuda is None:
        return (
            "This PyTorch is built for the CPU alone, so this machine's NVIDIA card is not used: "
            "run `lorarlhf doctor`."
        )
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
    kind = name.partition(":")[0]
    if not is_there(kind):
        raise UserError(
            f"device is {name}, and this machine has none that PyTorch can use. Leave device "
            "out, or run `lorarlhf doctor` to see what is wrong."
        )
    if bits == 4 and (why := unfit(kind, bits)) is not None:
        raise UserError(
            f"device is {name}, and 4-bit layers do not work there ({why}). Leave device out, or "
            "use bits=16."
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
    if device.type == "xpu":
        return torch.bfloat16 if torch.xpu.is_bf16_supported(False) else torch.float32
    if device.type == "cpu":
        return torch.bfloat16 if cpu_has_bfloat16() else torch.float32
    return torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32 (AMX, AMD's AVX512-BF16, or Arm's).

    Intel's AVX512-BF16 uses one of the two units that multiply float32 and is no faster. Where AMX
    is missing, as in some virtual machines, an update of PPO takes 1.3 times as long in bfloat16.
    """
    flags = torch.backends.cpu.get_cpu_capability()
    if flags.startswith(("AVX512", "AMX")):
        if getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)():
            return True
        has = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
        return has and not made_by_intel()
    if flags == "DEFAULT" and torch.backends.mkldnn.is_available():
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def made_by_intel() -> bool:
    """Whether the CPU is one of Intel's; no where PyTorch does not say."""
    about: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "intel" in str(about.get("cpu_name", "")).lower()


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
