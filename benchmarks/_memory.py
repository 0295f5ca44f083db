"""Memory of this process, and the environment of measuring processes.

Memory is that of the GPU if there is one, and main memory otherwise; all figures are in MB (10^6
bytes). `--device cpu` of a benchmark hides the GPUs from its processes, and `--avx2` lets a
processor with AVX512 compute as one without.
"""

import os
import subprocess
import sys
from pathlib import Path

import psutil

AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own kernels, and so the compute dtype: float32
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


def environment(device: str | None, avx2: bool = False) -> dict[str, str]:
    """The environment variables of measuring processes.

    Args:
        device: `cpu` hides the GPUs.
        avx2: cap the instruction set at AVX2.

    Raises:
        SystemExit: `device` is `cuda`, and PyTorch finds no GPU.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA card here. `lorarlhf doctor` says what is wrong.")
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" or avx2 else {}
    return os.environ | hidden | (AVX2 if avx2 else {})


def has_card() -> bool:
    """Whether this process measures on a GPU."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_available()


def interpreter_mb() -> float:
    """Memory before any model is loaded: the process with its libraries, or the GPU's context."""
    if not has_card():
        return held_mb()
    import torch

    others = _taken_on_card()
    torch.zeros(1, device="cuda")  # creates the context
    free, total = torch.cuda.mem_get_info()
    return (total - free - torch.cuda.memory_reserved()) / 1e6 - others


def _taken_on_card() -> float:
    """What the desktop and other programs use on the first GPU, according to its driver."""
    command = ["nvidia-smi", "-i", "0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return float(said) * 2**20 / 1e6
    except (OSError, ValueError, subprocess.CalledProcessError):
        return 0.0


def held_mb() -> float:
    """Memory in use now; on a GPU what PyTorch has reserved, without the context."""
    if has_card():
        import torch

        return torch.cuda.memory_reserved() / 1e6
    return psutil.Process().memory_info().rss / 1e6


def forget_peak() -> None:
    """Restart the measurement of the peak."""
    if has_card():
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mb() -> float:
    """The peak since `forget_peak`; on a GPU without the context."""
    if has_card():
        import torch

        return torch.cuda.max_memory_reserved() / 1e6
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit("/proc/self/status has no VmHWM")
