"""Entries of the cache of bases: each is made whole and then renamed, or it is not there.

What a killed process left is removed by the next one; a running one holds its folder.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import move
from lorarlhf.runtime.lock import hold

MARKER = "lorarlhf_base.json"
REFUSED = 3
"""How the converter ends where its last line is a message for people."""
_BAR = re.compile(r"^(?P<title>[^%\r\n]*?):?\s*(?P<percent>\d+)%\|")
"""A bar of the converter, which transformers writes."""
SHARES = (("Dequantizing", 0.0, 1.0), ("de-quantizing", 0.0, 0.8), ("Loading", 0.8, 0.9))
"""Parts of a conversion: a word of the bar's title, and where the part begins and ends."""


def cache_folder() -> Path:
    """`$LORARLHF_CACHE`, else `lorarlhf` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if "LORARLHF_CACHE" in os.environ:
        return Path(os.environ["LORARLHF_CACHE"]).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "lorarlhf"


def is_complete(folder: Path) -> bool:
    """Whether every file has the size that was recorded when the folder was made."""
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))["sizes"]
        return all((folder / file).stat().st_size == size for file, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def make_entry(target: Path, needed: int, build: Callable[[Path], Path]) -> None:
    """Make an entry of the cache that is missing or damaged.

    Args:
        needed: bytes that have to be free for it.
        build: gets a scratch folder, and returns the finished folder in it.

    Raises:
        UserError: the cache can't be written or has no room; also what `build` raises.
    """
    shutil.rmtree(target, ignore_errors=True)  # a half-written or damaged entry
    _remove_killed(target)
    _check_disk_space(target.parent, needed)
    with (
        tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch,
        hold(Path(scratch), ""),
    ):
        made = build(Path(scratch))
        sizes = {path.name: path.stat().st_size for path in made.iterdir()}
        (made / MARKER).write_text(json.dumps({"sizes": sizes}), encoding="utf-8")
        try:
            move(made, target)
        except OSError:
            if not is_complete(target):  # otherwise another process has made it meanwhile
                raise


def _remove_killed(target: Path) -> None:
    """Remove what killed processes left of this entry; a running one holds its folder."""
    for scratch in target.parent.glob(f".{target.name}-*/"):
        with contextlib.suppress(UserError), hold(scratch, ""):
            shutil.rmtree(scratch, ignore_errors=True)
        with contextlib.suppress(OSError):  # Windows keeps a folder with an open file: the lock
            scratch.rmdir()


def _check_disk_space(folder: Path, needed: int) -> None:
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
    if free < needed:
        raise UserError(
            f"The base needs {needed / 1e6:.0f} MB free in {folder}, and only "
            f"{free / 1e6:.0f} MB are. Free some space, or set LORARLHF_CACHE to another disk."
        )


# ---- conversion


def convert(gguf: Path, folder: Path, advance: Callable[[float], None] | None = None) -> Path:
    """Convert GGUF to safetensors in a subprocess, whose memory does not count as the run's.

    Args:
        advance: told how much of it is done, from 0 to 1.

    Raises:
        UserError: it failed, with the last line that it said.
    """
    command = [sys.executable, "-m", "lorarlhf.backbone.convert", str(gguf), str(folder)]
    if advance is None:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        status, said = done.returncode, done.stderr
    else:
        status, said = _watched(command, advance)
    if status < 0:
        raise UserError(
            f"The conversion of {gguf} was ended by the system (signal {-status}), most likely for "
            f"want of memory. Close other programs, or name the model's safetensors as --base."
        )
    if status == REFUSED:
        raise UserError(said.strip().splitlines()[-1])
    if status != 0:
        last = (said.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"The base could not be converted ({last}). Run `lorarlhf doctor`, which checks the "
            "installed versions and names the command that fixes them."
        )
    return folder


def _watched(command: list[str], advance: Callable[[float], None]) -> tuple[int, str]:
    """Run the converter and read its bars; a Ctrl-C ends it, too."""
    said: list[str] = []
    child = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        bufsize=1,
    )
    assert child.stderr is not None
    try:
        for line in child.stderr:  # as text, in which the carriage return of a bar ends a line
            if bar := _BAR.match(line):
                title, percent = bar["title"], int(bar["percent"]) / 100
                for word, start, end in SHARES:
                    if word in title:
                        advance(start + percent * (end - start))
            elif line.strip():
                said = [*said[-20:], line]
        return child.wait(), "".join(said)
    except BaseException:
        child.kill()
        child.wait()
        raise
