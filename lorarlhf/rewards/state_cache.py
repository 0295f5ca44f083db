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
from lorarlhf.backbone.base_cache import cache_folder
from lorarlhf.rewards.role import EncodedAnswer, pooled_batches, state_width
from lorarlhf.runtime import distributed

FORMAT = 1
"""Goes up when states are computed in another way, so that old rows are not used any more."""
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
    places: dict[bytes, list[int]] = {}  # the same answer may stand in several pairs
    for place, answer in enumerate(answers):
        places.setdefault(_key(answer), []).append(place)
    states = np.empty((len(answers), state_width(backbone, pooling)), np.float32)
    prefix = _file_prefix(backbone, pooling)
    known = _read(folder, prefix, places, states)
    progress(sum(len(places[key]) for key in known))
    new = [key for key in places if key not in known]
    writes = distributed.is_main() and bool(new)
    if writes:
        _make_room(folder)
    file = folder / f"{prefix}-{secrets.token_hex(4)}.bin"
    unread = [answers[places[key][0]] for key in new]
    for rows, some in pooled_batches(backbone, unread, pooling):
        keys = [new[row] for row in rows]
        for key, row in zip(keys, some, strict=True):
            states[places[key]] = row
        writes = writes and _append(file, keys, some)
        progress(sum(len(places[key]) for key in keys))
    return states


def _key(answer: EncodedAnswer) -> bytes:
    content = np.array([answer.start, answer.end, *answer.ids], np.int64).tobytes()
    return hashlib.sha256(content).digest()[:KEY_BYTES]


def _file_prefix(backbone: Backbone, pooling: str) -> str:
    """How the names of files begin whose rows were made in the same way from the same base."""
    how = [FORMAT, torch.__version__, backbone.bits, backbone.compute_dtype, backbone.device.type]
    how += [backbone.split, backbone.forward.keeps_trunk, pooling]
    digest = hashlib.sha256(repr([str(part) for part in how]).encode())
    # A base into which an adapter was merged has the same embeddings, and so the same fingerprint.
    for name, weight in backbone.model.named_parameters():
        if "lora_" not in name:
            some = weight.detach().flatten()[:SAMPLED].cpu().contiguous()
            digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]


def _read(
    folder: Path, prefix: str, places: dict[bytes, list[int]], states: np.ndarray
) -> set[bytes]:
    """Fill in the rows of `states` (N, F) that are on the disk; returns their keys."""
    record = np.dtype([("key", f"V{KEY_BYTES}"), ("row", np.float32, states.shape[1:])])
    known: set[bytes] = set()
    for file in folder.glob(f"{prefix}-*.bin"):
        with contextlib.suppress(OSError, ValueError):  # another process has just deleted it
            count = file.stat().st_size // record.itemsize  # a kill can leave half a row
            if count == 0:
                continue
            for row in np.memmap(file, record, mode="r", shape=(count,)):
                key = row["key"].tobytes()
                if key in places:
                    states[places[key]] = row["row"]
                    known.add(key)
            os.utime(file)  # it is in use
    return known


def _make_room(folder: Path) -> None:
    """Delete the oldest files beyond `LIMIT_BYTES`; what can't be deleted stays."""
    files = []
    for file in folder.glob("*.bin"):
        with contextlib.suppress(OSError):
            files.append((file.stat().st_mtime, file.stat().st_size, file))
    total = sum(size for _, size, _ in files)
    for _, size, file in sorted(files):
        if total <= LIMIT_BYTES:
            return
        with contextlib.suppress(OSError):
            file.unlink()
            total -= size


def _append(file: Path, keys: list[bytes], rows: np.ndarray) -> bool:
    """Append rows (n, F), each behind its key; false if the disk does not take them."""
    content = b"".join(key + row.tobytes() for key, row in zip(keys, rows, strict=True))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "ab") as stream:
            stream.write(content)
    except OSError:  # after half a row no more may follow, and nothing depends on this file
        return False
    return True
