"""The policy as one model in 16 bit: the base's files, with the changed matrices made anew.

An adapter is trained on the base as it is in memory, which is in 4 bit: NF4 weights, dequantised
for each product. So there are two bases that it can be merged into. The dequantised one is what it
was trained on, and the result says the same up to rounding. The 16-bit original is the better
model without the adapter, but the adapter has never seen it, and the sum is another policy than
the one that was rated. Both are measured before anything is written, and the nearer one is taken.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.plain_weights import BaseWeight, mergeable
from lorarlhf.backbone.roles import ADAPTERS
from lorarlhf.export.difference import Difference
from lorarlhf.export.original import Original, changed, read_merged
from lorarlhf.export.tensor_files import (
    INDEX,
    SINGLE,
    TensorInfo,
    contents,
    read_tensor,
    shards,
    sixteen_bit,
    write_tensors,
)
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_json
from lorarlhf.runtime.terminal import progress_steps

MERGE_LIMIT = 0.02
"""Largest KL from the policy to its merged form, in nats a token. docs/export.md says why."""
TRAINED, STORED = "dequantised", "original"
PACKED = re.compile(r"\.weight\.(absmax|quant_map|nested_|quant_state|SCB)|\.SCB$|\.weight_format$")
"""What a base that is stored in 4 or 8 bit keeps beside its packed weights."""
KEPT = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "tokenizer.model")
Row = dict[str, Any]


@dataclass(frozen=True)
class Merge:
    """How the policy is merged, decided by measurement.

    Attributes:
        into: `dequantised` or `original`.
        measured: the difference of each that could be measured, before anything is written.
        dtype: of the weights in the files.
    """

    into: str
    measured: dict[str, Difference]
    dtype: torch.dtype


class Checkpoint:
    """The base's own weight files.

    Attributes:
        files: the file of each tensor by name; tensors: what is in each file.
        quantised: whether the base is stored in 4 or 8 bit, so that there is no 16-bit original.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.folder = model_folder(backbone.base_path)
        self.tensors = {file: contents(file) for file in shards(self.folder)}
        self.files = {info.name: file for file, found in self.tensors.items() for info in found}
        self.quantised = any(PACKED.search(name) for name in self.files)
        missing = [one.name for one in changed(backbone) if one.name not in self.files]
        if missing:
            raise UserError(
                f"{backbone.base} keeps its weights under other names than the model in memory "
                f"has ({missing[0]} is not in {self.folder}). Bases of this family can't be "
                "merged: export it as an adapter."
            )

    def original(self, one: BaseWeight) -> torch.Tensor:
        """The stored form of a weight."""
        return read_tensor(self.files[one.name], one.name)


def model_folder(path: str) -> Path:
    """The folder of a base's files; those of a Hugging Face id are in the hub's cache by now."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, local_files_only=True))


def decide(backbone: Backbone, original: Original) -> Merge:
    """Measure both ways to merge, and take the nearer one.

    Raises:
        UserError: even the nearer one is too far from the policy, or the base can't be merged.
    """
    if not mergeable(backbone):
        raise UserError(
            f"{backbone.base} has adapters on weights that are not linear layers (experts), which "
            "can't be merged. Export it as an adapter."
        )
    stored = Checkpoint(backbone)
    dtype = file_dtype(stored, backbone)
    bases = [TRAINED]
    if backbone.bits < 16 and not stored.quantised:
        bases.append(STORED)
    measured = {}
    for into in bases:
        with progress_steps(f"measuring on the {into} base", len(original.answers)) as progress:
            make = maker(stored, into, dtype)
            measured[into] = read_merged(backbone, original, make, progress)
    into = min(measured, key=lambda name: measured[name].kl)
    found = measured[into]
    if not found.kl <= MERGE_LIMIT:  # not a number is no success
        raise UserError(
            f"The merged policy would differ too much from the one that was trained: "
            f"{found.in_words()}. The limit is a KL of {MERGE_LIMIT} nats a token. Nothing was "
            "written. Export it as an adapter, which changes no number."
        )
    return Merge(into, measured, dtype)


def file_dtype(stored: Checkpoint, backbone: Backbone) -> torch.dtype:
    """The dtype of the merged weights: 16 bit, as the base's own files if they are."""
    found = [info for some in stored.tensors.values() for info in some]
    return sixteen_bit(found, backbone.compute_dtype)


def maker(
    stored: Checkpoint, into: str, dtype: torch.dtype
) -> Callable[[BaseWeight], torch.Tensor]:
    """A function that makes one changed matrix: added in float32, rounded once."""

    def make(one: BaseWeight) -> torch.Tensor:
        instead = stored.original(one) if into == STORED else None
        with torch.no_grad():
            return one.merged(ADAPTERS["policy"], instead).detach().to(dtype)

    return make


def write_merged(
    backbone: Backbone, merge: Merge, folder: Path, progress: Callable[[int], Any]
) -> None:
    """Write the merged model: weights file by file, configuration, tokenizer, chat template.

    Args:
        progress: called with the bytes that are written by now.
    """
    stored = Checkpoint(backbone)
    make = maker(stored, merge.into, merge.dtype)
    anew = {one.name: one for one in changed(backbone)}
    where: dict[str, str] = {}
    total = 0
    for file, found in stored.tensors.items():
        wanted = [
            _in_16_bit(info, anew, merge.dtype) for info in found if not PACKED.search(info.name)
        ]

        def read(info: TensorInfo, file: Path = file) -> torch.Tensor:
            if info.name in anew:
                return make(anew[info.name])
            return read_tensor(file, info.name).to(info.dtype)

        for written in write_tensors(folder / file.name, wanted, read):
            total += written
            progress(total)
        where |= {info.name: file.name for info in wanted}
    if list(stored.tensors) != [stored.folder / SINGLE]:
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    write_config(backbone, stored.folder, folder, merge.dtype)


def size_of(backbone: Backbone) -> int:
    """Bytes of the merged weights."""
    stored = Checkpoint(backbone)
    dtype = file_dtype(stored, backbone)
    anew = {one.name: one for one in changed(backbone)}
    found = [info for some in stored.tensors.values() for info in some]
    return sum(_in_16_bit(i, anew, dtype).nbytes for i in found if not PACKED.search(i.name))


def _in_16_bit(info: TensorInfo, anew: dict[str, BaseWeight], dtype: torch.dtype) -> TensorInfo:
    shape = tuple(anew[info.name].shape) if info.name in anew else info.shape
    plain = info.name in anew or info.dtype.is_floating_point
    return TensorInfo(info.name, dtype if plain else info.dtype, shape)


def write_config(backbone: Backbone, base: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write all but the weights: what a program needs to sample as this one does."""
    config = read_json(base / "config.json")
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path", "torch_dtype"):
        config.pop(name, None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    write_json(folder / "config.json", config)
    # `stop_ids` are in there: `Backbone` puts them into its generation configuration.
    backbone.causal.generation_config.save_pretrained(folder)
    write_tokenizer(backbone, base, folder)


def write_tokenizer(backbone: Backbone, base: Path, folder: Path) -> None:
    """Write the tokenizer with the chat template that the policy was trained with, and licences."""
    backbone.tokenizer.save_pretrained(folder)
    for pattern in KEPT:
        for file in base.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)


def describe(merge: Merge) -> str:
    """What was merged into what, and why, in sentences."""
    words = {
        TRAINED: "the dequantised weights that it was trained on",
        STORED: "the 16-bit original",
    }
    lines = [f"merged into {words[merge.into]}: {merge.measured[merge.into].in_words()}"]
    others = {name: found for name, found in merge.measured.items() if name != merge.into}
    lines += [f"not into {words[name]}: KL {found.kl:.4f}" for name, found in others.items()]
    return "; ".join(lines) + "."


def merge_json(merge: Merge) -> Row:
    """The same for a file."""
    measured = {name: found.as_json() for name, found in merge.measured.items()}
    return json.loads(json.dumps({"into": merge.into, "before": measured, "limit": MERGE_LIMIT}))
