"""Safetensors read and written one tensor at a time, so that a model never has to be in memory."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lorarlhf.runtime.errors import UserError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
NAMES |= {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"}
NAMES |= {torch.uint8: "U8", torch.bool: "BOOL"}
DTYPES = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file: its name, dtype and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its bytes in a file."""
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


def shards(folder: Path) -> list[Path]:
    """The weight files of a model folder.

    Raises:
        UserError: it has none in safetensors.
    """
    index = folder / INDEX
    if index.is_file():
        names = json.loads(index.read_text("utf-8"))["weight_map"].values()
        return [folder / name for name in dict.fromkeys(names)]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    raise UserError(
        f"The base in {folder} has no {SINGLE}. Save it with save_pretrained of transformers 5, "
        "which writes safetensors, and name that folder with --base."
    )


def contents(file: Path) -> list[TensorInfo]:
    """The tensors of a file, from its first bytes.

    Raises:
        UserError: the file is damaged, or has a dtype that is not known here.
    """
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        return [
            TensorInfo(name, DTYPES[about["dtype"]], tuple(about["shape"]))
            for name, about in header.items()
            if name != "__metadata__"
        ]
    except KeyError as error:
        raise UserError(
            f"{file} has weights of the kind {error}, which can't be merged."
        ) from error
    except (OSError, ValueError, MemoryError, OverflowError) as error:
        raise UserError(
            f"{file} is damaged or was cut off ({error}). Fetch the base again."
        ) from error


def sixteen_bit(found: Iterable[TensorInfo], compute: torch.dtype) -> torch.dtype:
    """The 16-bit dtype of most matrices, or the compute dtype, bfloat16 where that is wider."""
    kinds = [info.dtype for info in found if len(info.shape) == 2]
    kinds = [kind for kind in kinds if kind in (torch.float16, torch.bfloat16)]
    if kinds:
        return max(set(kinds), key=kinds.count)
    return torch.float16 if compute == torch.float16 else torch.bfloat16


def read_tensor(file: Path, name: str) -> torch.Tensor:
    """One tensor of a file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} is damaged or was cut off ({error}). Fetch the base again."
        ) from error


def write_tensors(
    file: Path, wanted: list[TensorInfo], read: Callable[[TensorInfo], torch.Tensor]
) -> Iterator[int]:
    """Write a file of these tensors, each made when it is written.

    Yields:
        the bytes of each tensor, after it is written.

    Raises:
        ValueError: a tensor has another dtype or shape than was said.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for info in wanted:
        end = start + info.nbytes
        header[info.name] = {
            "dtype": NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format's alignment
    with file.open("xb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for info in wanted:
            tensor = read(info).detach().cpu().contiguous()
            if tensor.dtype != info.dtype or tuple(tensor.shape) != info.shape:
                raise ValueError(f"{info} was made as {tensor.dtype} {tuple(tensor.shape)}")
            stream.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            yield info.nbytes
