"""Pooled hidden states of answers on the disk, so that a second run over the same votes skips them.

Reading an answer takes a forward through the base, and ten thousand votes take hours on a CPU. A
row is known by its content: the base as it is loaded, the pooling and the answer's token ids. Each
process appends to a file of its own, so a kill costs at most the row that was being written.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.fetch import cache_folder
from lorarlhf.rewards.role import EncodedAnswer, pooled_batches, state_width

KEY_BYTES = 16
SAMPLED = 4096
"""Numbers of each weight by which a base is known."""
LIMIT_BYTES = 4 << 30
"""Size of all files together; beyond it the oldest ones are deleted."""


def cached_states(
    backbone: Backbone,
    answers: Sequence[EncodedAnswer],
    pooling: str = "mean",
    progress: Callable[[int], object] = lambda done: None,
) -> np.ndarray:
    """`pooled_states` -> float32 (N, F): rows that were read before come from the disk.

    Args:
        progress: gets the number of answers of each batch, those from the disk at once.
    """
    folder = cache_folder() / "hidden_states"
    keys = [_key(answer) for answer in answers]
    states = np.empty((len(answers), state_width(backbone, pooling)), np.float32)
    space = _space(backbone, pooling)
    known = _read(folder, space, keys, states)
    if len(known) < len(keys):
        _make_room(folder)
    progress(len(known))
    left = [place for place in range(len(keys)) if place not in known]
    file: Path | None = folder / f"{space}-{secrets.token_hex(4)}.bin"
    for rows, some in pooled_batches(backbone, [answers[place] for place in left], pooling):
        places = [left[row] for row in rows]
        states[places] = some
        if file is not None:
            file = _append(file, [keys[place] for place in places], some)
        progress(len(rows))
    return states


def _key(answer: EncodedAnswer) -> bytes:
    content = np.array([answer.start, answer.end, *answer.ids], np.int64).tobytes()
    return hashlib.sha256(content).digest()[:KEY_BYTES]


def _space(backbone: Backbone, pooling: str) -> str:
    """Names the files whose rows were made in the same way."""
    how = [backbone.bits, backbone.compute_dtype, backbone.device.type, backbone.split]
    how += [backbone.forward.keeps_trunk, pooling]
    digest = hashlib.sha256(repr([str(part) for part in how]).encode())
    # A base into which an adapter was merged has the same embeddings, and so the same fingerprint.
    for name, weight in backbone.model.named_parameters():
        if "lora_" not in name:
            some = weight.detach().flatten()[:SAMPLED].cpu().contiguous()
            digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]


def _read(folder: Path, space: str, keys: list[bytes], states: np.ndarray) -> set[int]:
    """Fill in the rows of `states` (N, F) that are on the disk; returns their places."""
    places: dict[bytes, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    record = np.dtype([("key", f"V{KEY_BYTES}"), ("row", np.float32, states.shape[1:])])
    known: set[int] = set()
    for file in folder.glob(f"{space}-*.bin"):
        with contextlib.suppress(OSError, ValueError):  # another process has just deleted it
            count = file.stat().st_size // record.itemsize  # a kill can leave half a row
            if count == 0:
                continue
            for row in np.memmap(file, record, mode="r", shape=(count,)):
                found = places.get(row["key"].tobytes(), [])
                states[found] = row["row"]
                known.update(found)
            os.utime(file)  # it is in use
    return known


def _make_room(folder: Path) -> None:
    files = [(file.stat().st_mtime, file.stat().st_size, file) for file in folder.glob("*.bin")]
    total = sum(size for _, size, _ in files)
    for _, size, file in sorted(files):
        if total <= LIMIT_BYTES:
            return
        file.unlink(missing_ok=True)
        total -= size


def _append(file: Path, keys: list[bytes], rows: np.ndarray) -> Path | None:
    """Append rows (n, F), each behind its key; returns None if the disk does not take them."""
    content = b"".join(key + row.tobytes() for key, row in zip(keys, rows, strict=True))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "ab") as stream:
            stream.write(content)
    except OSError:  # after half a row no more may follow, and nothing depends on this file
        return None
    return file
