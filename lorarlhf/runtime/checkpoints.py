"""Checkpoint folders without pickles: tensors in safetensors files, everything else in JSON.

A checkpoint is written to a folder of another name, flushed to the disk with a list of its files
and their hashes, and renamed when complete. After a kill it is therefore complete or absent, and
one that a power cut or a full disk has damaged is detected and skipped.
"""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import move

PREFIX, FILES = "checkpoint-", "files.json"


# ---- finding


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    found = [p for p in folder.glob(f"{PREFIX}*") if p.name[len(PREFIX) :].isdigit()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


def newest_intact(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all there and unchanged."""
    return next((path for path in newest_first(folder) if find_damage(path) is None), None)


def check_visible(checkpoint: Path) -> None:
    """Check that every process can read the checkpoint that the main process has chosen.

    Raises:
        UserError: one of them, on another machine, can't.
    """
    if distributed.any_process(not (checkpoint / FILES).is_file()):
        raise UserError(
            f"Not every process can read the checkpoint {checkpoint}. The run's folder has to be "
            "on a disk that all machines share, at the same path."
        )


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        listed = json.loads((checkpoint / FILES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{FILES} is missing or torn"
    for name, digest in listed.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if _digest(file) != digest:
            return f"{name} is torn"
    return None


# ---- writing


def make_scratch(target: Path) -> Path:
    """An empty folder beside `target`; left-over ones of killed processes are removed."""
    for left_over in target.parent.glob(".*"):
        shutil.rmtree(left_over, ignore_errors=True)
    scratch = target.parent / f".{target.name}.{os.getpid()}"
    scratch.mkdir(parents=True)
    return scratch


def publish(scratch: Path, target: Path) -> None:
    """List the files with their hashes, flush them to the disk, and rename the folder."""
    files = sorted(p for p in scratch.rglob("*") if p.is_file())
    listed = {p.relative_to(scratch).as_posix(): _digest(p) for p in files}
    (scratch / FILES).write_text(json.dumps(listed, indent=1), encoding="utf-8")
    for path in (*files, scratch / FILES):
        _flush(path)
    shutil.rmtree(target, ignore_errors=True)
    move(scratch, target)
    _flush(target.parent)


def keep_newest(folder: Path, count: int) -> None:
    """Remove all but the newest `count` checkpoints."""
    for old in newest_first(folder)[count:]:
        shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows does not open folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# ---- states of random number generators: tensors for safetensors, numbers for JSON


def rng_numbers() -> dict[str, Any]:
    """The states of Python's and NumPy's generators."""
    kind, numbers, *rest = np.random.get_state()
    return {"random": random.getstate(), "numpy": [kind, np.asarray(numbers).tolist(), *rest]}


def rng_tensors(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of torch's generators."""
    tensors = {"rng.torch": torch.get_rng_state()}
    if device.type != "cpu":
        own = torch.get_device_module(device).get_rng_state(device)
        tensors[f"rng.{device.type}"] = own
    return tensors


def set_rng_state(
    numbers: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], device: torch.device
) -> None:
    """Restore the states that `rng_numbers` and `rng_tensors` returned."""
    version, words, gauss = numbers["random"]
    random.setstate((version, tuple(words), gauss))
    kind, words, *rest = numbers["numpy"]
    np.random.set_state((kind, np.array(words, dtype=np.uint32), *rest))
    torch.set_rng_state(tensors["rng.torch"])
    if (name := f"rng.{device.type}") in tensors:
        torch.get_device_module(device).set_rng_state(tensors[name], device)


# ---- optimizers


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """An optimizer's state as `name.NUMBER.KEY`, with the weights numbered in their order."""
    return {
        f"{name}.{number}.{key}": torch.as_tensor(value, device="cpu").detach().clone().contiguous()
        for number, weight in enumerate(_weights(optimizer))
        for key, value in optimizer.state.get(weight, {}).items()
    }


def fill_optimizer(
    name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Restore the state that `optimizer_tensors` returned."""
    # Fused and capturable kernels count steps on the weight's device, all others on the CPU.
    counts_on_device = {
        id(weight)
        for group in optimizer.param_groups
        if group.get("fused") or group.get("capturable")
        for weight in group["params"]
    }
    for number, weight in enumerate(_weights(optimizer)):
        start = f"{name}.{number}."
        saved: dict[str, Any] = {
            key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)
        }
        for key, value in saved.items():
            if value.dtype == torch.int64 and not value.dim():  # bitsandbytes counts in Python
                optimizer.state[weight][key] = value.item()
            elif key == "step" and id(weight) not in counts_on_device:
                optimizer.state[weight][key] = value
            else:
                optimizer.state[weight][key] = value.to(weight.device)


def _weights(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
