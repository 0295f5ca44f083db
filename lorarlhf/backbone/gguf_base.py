"""A base from a GGUF file: converted once into the cache, under the hash of its content."""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorarlhf.backbone.base_cache import cache_folder, convert, is_complete, make_entry
from lorarlhf.backbone.gguf_file import MAGIC, GGUFFile, check_family, read_gguf
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_json
from lorarlhf.runtime.terminal import progress_bar

KNOWN = "gguf.json"
"""In the cache of bases: the hash of each file that was read, while its size and time stay."""
BLOCK = 1 << 22
NO_TEMPLATE = (
    "{} has no chat template, which conversations need. Name a Jinja file with --set "
    "chat_template=FILE (new and demo: --chat-template FILE), or with the line chat_template: FILE "
    "of a project's project.yaml. The model's own page has it in chat_template.jinja or in "
    "tokenizer_config.json."
)


def is_gguf(base: str) -> bool:
    """Whether a base is named by a GGUF file: by its ending, or, as Ollama's, by its beginning."""
    if base.lower().endswith(".gguf"):
        return True
    try:
        with Path(base).expanduser().open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):
        return False


def gguf_folder(path: Path, log: Callable[[str], None]) -> Path:
    """The folder of a base that a GGUF file holds; it is converted if the cache has none.

    Raises:
        UserError: the file is no whole model, its family can't be read, the disk has no room, or
            the conversion failed.
    """
    known = converted_before(path)
    if known is not None:
        return known
    file = read_gguf(path)
    check_family(file)
    target = _entry(_digest(path))
    if not is_complete(target):
        log(
            f"Converting {path.name} to safetensors: once, {2 * file.weights / 1e9:.1f} GB in "
            f"{target.parent} ..."
        )
        make_entry(target, file.needed_bytes, lambda scratch: _converted(file, scratch))
        log(file.cost())
        if not file.template:
            log(NO_TEMPLATE.format(path.name))
    return target


def converted_before(path: Path) -> Path | None:
    """The folder of a file that was converted before, if neither has changed."""
    entry = read_json(_index()).get(str(path.resolve()))
    if not isinstance(entry, dict) or _stamp(path) != {n: entry.get(n) for n in ("size", "time")}:
        return None
    target = _entry(str(entry.get("sha256")))
    return target if is_complete(target) else None


def describe(path: Path) -> list[str]:
    """What a person should know before a file is converted, a sentence each.

    Raises:
        UserError: the file is no whole model, or its family can't be read.
    """
    file = read_gguf(path)
    check_family(file)
    told = [f"It is converted when it is first used, to {2 * file.weights / 1e9:.1f} GB."]
    return [*told, file.cost(), *([] if file.template else [NO_TEMPLATE.format(path.name)])]


def gguf_config(path: Path) -> dict[str, Any]:
    """The configuration of a base that a GGUF file holds, without its conversion.

    Raises:
        UserError: the file is no whole model, or its family can't be read.
    """
    check_family(read_gguf(path))
    from lorarlhf.backbone.convert import read_config

    return read_config(path).to_dict()


def _converted(file: GGUFFile, scratch: Path) -> Path:
    with progress_bar(f"Converting {file.path.name}", 100) as move:
        done = 0

        def advance(share: float) -> None:
            nonlocal done
            if (now := int(100 * share)) > done:
                move(now - done)
                done = now

        made = convert(file.path.absolute(), scratch / "base", advance)
        advance(1.0)
    return made


def _index() -> Path:
    return cache_folder() / "bases" / KNOWN


def _entry(digest: str) -> Path:
    return cache_folder() / "bases" / f"gguf-{digest[:20]}"


def _stamp(path: Path) -> dict[str, int]:
    about = path.stat()
    return {"size": about.st_size, "time": about.st_mtime_ns}


def _digest(path: Path) -> str:
    """The SHA-256 of a file, remembered for the next time."""
    stamp, digest = _stamp(path), hashlib.sha256()
    with path.open("rb") as file, progress_bar(f"Reading {path.name}", stamp["size"]) as move:
        while block := file.read(BLOCK):
            digest.update(block)
            move(len(block))
    index = _index()
    known = read_json(index) | {str(path.resolve()): stamp | {"sha256": digest.hexdigest()}}
    with contextlib.suppress(OSError, UserError):  # a cache that can't be written is told later
        index.parent.mkdir(parents=True, exist_ok=True)
        write_json(index, known)
    return digest.hexdigest()
