"""An export is written apart and gets its name when all of it is there and has been checked."""

import contextlib
import glob
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import move
from lorarlhf.runtime.lock import LOCK, hold

REFUSED = "-refused"


@contextlib.contextmanager
def staged(to: Path) -> Iterator[Path]:
    """A new folder beside `to`, which is renamed to it at the end and removed after any error.

    What a killed export has left there is removed first.

    Raises:
        UserError: `to` holds something already, or can't be written.
    """
    check_target(to)
    for left in to.parent.glob(f".{glob.escape(to.name)}.*.part"):
        with contextlib.suppress(UserError), hold(left, ""):
            shutil.rmtree(left, ignore_errors=True)
    folder = to.with_name(f".{to.name}.{secrets.token_hex(4)}.part")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"--to {to} can't be written ({error.strerror}). Name another folder."
        ) from error
    try:
        with hold(folder, ""):
            yield folder
        (folder / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            to.rmdir()  # an empty one may be there
        move(folder, to)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_target(to: Path) -> None:
    """Refuse a target that holds something.

    Raises:
        UserError: it does.
    """
    if to.is_file() or (to.is_dir() and any(to.iterdir())):
        raise UserError(f"--to {to} holds something already. Name a new folder.")


def keep_refused(folder: Path, to: Path) -> Path:
    """Give what the gate refused a name beside the target; returns its place."""
    names = (
        to.with_name(f"{to.name}{REFUSED}{end}")
        for end in ("", *map("-{}".format, range(2, 10**6)))
    )
    place = next(name for name in names if not name.exists())
    (folder / LOCK).unlink(missing_ok=True)
    move(folder, place)
    return place
