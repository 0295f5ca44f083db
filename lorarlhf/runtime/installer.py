"""pip or uv: which of them this environment has, and the commands that add to it.

`uv tool install` and `uv venv` make environments without pip; those of `pipx` and `venv` have it.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.terminal import as_typed


def has_pip() -> bool:
    """Whether this environment has pip."""
    return importlib.util.find_spec("pip") is not None


def find_uv() -> str | None:
    """The program uv, if it is on the path."""
    return shutil.which("uv")


def install_command(requirement: str, reinstall: bool = False) -> str:
    """What a person types to install or upgrade a library in this environment.

    Args:
        requirement: for example `trl>=1.16`.
        reinstall: lay the library's files anew, and leave what it needs as it is.
    """
    pip = [sys.executable, "-m", "pip", "install"]
    again = ["--force-reinstall", "--no-deps"]
    if not has_pip() and find_uv() is not None:
        pip = ["uv", "pip", "install", "--python", sys.executable]
        again = ["--reinstall", "--no-deps"]
    return as_typed([*pip, *(again if reinstall else ["--upgrade"]), requirement])


def fetch_command(requirement: str, folder: Path, fresh: bool = False) -> list[str]:
    """The command that brings a package without what it needs, and installs nothing here.

    pip leaves the wheel in the folder; uv, which can't, unpacks it there.

    Args:
        requirement: the package, pinned.
        fresh: take nothing that is kept from an earlier download.

    Raises:
        UserError: there is neither pip nor uv.
    """
    wheels = ["--no-deps", "--only-binary=:all:"]
    if has_pip():
        command = [sys.executable, "-m", "pip", "download", "--quiet", *wheels]
        command += ["--disable-pip-version-check", "--dest", str(folder)]
        return [*command, *["--no-cache-dir"] * fresh, requirement]
    if (uv := find_uv()) is not None:
        command = [uv, "pip", "install", "--quiet", *wheels]
        command += ["--python", sys.executable, "--target", str(folder)]
        return [*command, *["--no-cache"] * fresh, requirement]
    raise _neither(requirement)


def unpack_command(package: str, folder: Path) -> list[str]:
    """The command that unpacks wheels whose hashes are known into a folder, and nothing else.

    A file with the requirements and their hashes follows, as `-r FILE`.

    Args:
        package: for the message.

    Raises:
        UserError: there is neither pip nor uv.
    """
    exact = ["--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    exact += ["--target", str(folder)]
    if has_pip():
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
        return [*pip, "--no-compile", *exact]
    if (uv := find_uv()) is not None:
        return [uv, "pip", "install", "--python", sys.executable, *exact]
    raise _neither(package)


def _neither(requirement: str) -> UserError:
    return UserError(
        f"{requirement} can't be fetched, since this environment has no pip and uv is not on the "
        f"path. Run `{as_typed([sys.executable, '-m', 'ensurepip'])}`, then start again."
    )
