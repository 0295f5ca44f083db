"""The key of an endpoint that others reach: read from a file, or made once and kept."""

import os
import secrets
import stat
import sys
from pathlib import Path

from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import move
from lorarlhf.runtime.terminal import log_to_stderr

SHORTEST = 16
FILE = "serve.key"
"""In the project's folder."""


def read_key(file: Path) -> str:
    """The key in a file: one line.

    Raises:
        UserError: the file can't be read, or holds no key.
    """
    try:
        key = file.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise UserError(
            f"The key in {file} can't be read ({reason}). Check the path after --key-file."
        ) from error
    if len(key) < SHORTEST or len(key.split()) != 1 or not key.isascii() or not key.isprintable():
        raise UserError(
            f"{file} holds no key: one line of {SHORTEST} or more letters, digits and signs, "
            "without blanks."
        )
    if sys.platform != "win32" and file.expanduser().stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        log_to_stderr(f"Others on this machine can read the key: chmod 600 {file}")
    return key


def own_key(folder: Path) -> tuple[str, bool]:
    """The key that is kept in a folder, which is made if there is none; and whether it is new.

    Raises:
        UserError: the file can't be written or read.
    """
    file = folder / FILE
    if file.exists():
        return read_key(file), False
    made = f"sk-lorarlhf-{secrets.token_urlsafe(32)}"
    part = folder / f".{FILE}.{secrets.token_hex(4)}"
    try:
        # Nobody else may read it, from its first byte on.
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(f"{made}\n")
        move(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(
            f"The key {file} can't be written ({error.strerror}). Name one with --key-file FILE."
        ) from error
    return made, True
