"""Style axes: directions of hidden states along which people's preferences often differ.

`recipes/data/style_axes.jsonl` holds pairs of sentences that differ in one style (cheerful or
gloomy, casual or formal, prose or a list ...). The direction of an axis is the mean difference of
the features of the two sides on the frozen base. The fit of the reward head uses the axes as a
prior, and the votes decide which of them matter (`lorarlhf.rewards.fit`).
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.base_cache import cache_folder
from lorarlhf.backbone.storage import fingerprint
from lorarlhf.data.readers import bundled, read_rows
from lorarlhf.rewards.features import answer_features
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import move
from lorarlhf.runtime.terminal import log_to_stderr

# Plain text also works on a base without a chat template. On the small base its directions were as
# good as with a full chat prompt, with a third of the tokens.
NEUTRAL_PROMPT = "Answer:"
BATCH_SIZE = 64
FIELDS = ("axis", "positive", "negative")


def style_axes(
    backbone: Backbone,
    path: str | Path | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> tuple[list[str], np.ndarray]:
    """The axes' names and their directions, float32 (K, F), in the units of `answer_features`.

    They are computed once for each base and bank of sentences (5 to 10 s on 2 cores for the small
    base) and then read from the cache folder.

    Args:
        path: a JSONL file with `axis`, `positive`, `negative`; by default the bundled bank.
        log: called with a line of text before the slow part.

    Raises:
        UserError: the file is missing or one of its rows is wrong.
    """
    file = Path(path) if path is not None else bundled("style_axes.jsonl")
    rows = read_axes(file)
    inputs = json.dumps([NEUTRAL_PROMPT, rows, backbone.forward.keeps_trunk])
    bank = hashlib.sha256(inputs.encode()).hexdigest()[:16]
    # The features are the states at the layer where the adapters begin, so the split is part of it.
    cached = cache_folder() / "axes" / f"{fingerprint(backbone)}-{backbone.split}.safetensors"
    names = list(dict.fromkeys(axis for axis, _, _ in rows))
    directions = _read_cache(cached, bank, len(names))
    if directions is None:
        log(f"Reading {2 * len(rows)} example sentences for {len(names)} style axes (once) ...")
        directions = _directions(backbone, rows, names)
        _write_cache(cached, bank, directions)
    return names, directions


def read_axes(path: str | Path) -> list[tuple[str, str, str]]:
    """The rows of a bank as (axis, positive, negative). Raises UserError that names a bad line."""
    rows = []
    for line, row in read_rows(path):
        for field in FIELDS:
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise UserError(
                    f'{path}, line {line}: the field "{field}" is missing or not a text. A row of '
                    "style axes has the texts axis, positive and negative."
                )
        rows.append((row["axis"], row["positive"], row["negative"]))
    return rows


def _directions(
    backbone: Backbone, rows: list[tuple[str, str, str]], names: list[str]
) -> np.ndarray:
    sentences = [side for _, positive, negative in rows for side in (positive, negative)]
    prompts = [NEUTRAL_PROMPT] * len(sentences)
    features = answer_features(backbone, prompts, sentences, BATCH_SIZE)
    differences = features[0::2] - features[1::2]
    of_axis = np.array([names.index(axis) for axis, _, _ in rows])
    means = [differences[of_axis == place].mean(axis=0) for place in range(len(names))]
    return np.stack(means).astype(np.float32)


def _read_cache(path: Path, bank: str, count: int) -> np.ndarray | None:
    """None if the entry is missing, damaged or made from another bank of sentences."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            if (file.metadata() or {}).get("bank") != bank:
                return None
            directions = file.get_tensor("directions")
        return directions if len(directions) == count else None
    except (OSError, SafetensorError):
        return None


def _write_cache(path: Path, bank: str, directions: np.ndarray) -> None:
    """Write an entry by rename, so that it is complete; an unwritable cache is said, no more."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"directions": directions}, str(scratch), metadata={"bank": bank})
        move(scratch, path)
    except (OSError, SafetensorError) as error:  # the latter for a folder that can't be written
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        log_to_stderr(
            f"The style axes can't be kept in the cache folder {path.parent} ({error}), so the "
            "next run computes them again. Set LORARLHF_CACHE to a folder that can be written."
        )
