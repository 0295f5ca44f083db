"""One process at a time in a folder; the system releases the lock when the process ends."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import check_name, read_json

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:  # elsewhere
    msvcrt = None  # type: ignore[assignment]

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of disks (some in a network) that have no locks; folders there are not protected."""
LOCK = ".in-use.json"
"""The locked file. It names the process and since when, for messages."""
FAR = 1 << 30
"""The byte that is locked on Windows, where others can't read what is locked: beyond the text."""


@contextlib.contextmanager
def hold(folder: Path, advice: str) -> Iterator[None]:
    """Keep other processes out of a folder inside the context; it is made if it does not exist.

    Args:
        advice: what to do if another process holds it.

    Raises:
        UserError: another process holds it (the message names the process and since when), or the
            folder can't be written.
    """
    check_name(folder)
    made = not folder.exists()
    file = _acquire(folder, advice)
    try:
        yield
    finally:
        if file is not None:
            _release(file, folder / LOCK)
        if made:
            with contextlib.suppress(OSError):  # something was written into it
                folder.rmdir()


def check_free(folder: Path, advice: str) -> None:
    """Check that no process holds a folder. Creates nothing; raises what `hold` raises."""
    if (folder / LOCK).exists():
        with hold(folder, advice):
            pass


def is_held(folder: Path) -> bool | None:
    """Whether a process holds a folder; None where the system or the disk can't tell.

    It changes nothing in the folder.
    """
    if fcntl is None and msvcrt is None:
        return None
    try:
        file = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        _lock(file, shared=True)  # released as the file is closed
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(file)
    return False


def _acquire(folder: Path, advice: str) -> int | None:
    """The locked file; None where the disk or the system has no locks."""
    if fcntl is None and msvcrt is None:
        return None
    path, file = folder / LOCK, None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while file is None:
            file = _locked(path)
        now = time.strftime("%H:%M on %Y-%m-%d")
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, f'{{"pid": {os.getpid()}, "since": "{now}"}}\n'.encode())
        return file
    except BlockingIOError:
        raise UserError(f"{folder} is in use{_by(path)}. {advice}") from None
    except OSError as error:
        if file is not None:
            os.close(file)
        elif fcntl is None and isinstance(error, PermissionError) and os.access(folder, os.W_OK):
            # Windows: the process that had the file is just removing it.
            raise UserError(f"{folder} is in use. {advice}") from None
        if error.errno in WITHOUT_LOCKS:
            path.unlink(missing_ok=True)
            return None
        raise UserError(f"The folder {folder} can't be written ({error.strerror}).") from error


def _locked(path: Path) -> int | None:
    """The file, open and locked; None if another process has just removed it.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it can't be opened, or not locked.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(file)
        if path.exists() and os.stat(path).st_ino == os.fstat(file).st_ino:
            return file
    except OSError:
        os.close(file)
        raise
    os.close(file)
    return None


def _lock(file: int, shared: bool = False) -> None:
    """Lock an open file, without waiting; closing it releases the lock.

    Args:
        shared: only to see whether another process has locked it.

    Raises:
        BlockingIOError: another process has.
        OSError: the disk has no locks.
    """
    if fcntl is not None:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return
    os.lseek(file, FAR, os.SEEK_SET)
    try:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EDEADLK):
            raise BlockingIOError(error.errno, error.strerror) from error
        raise


def _release(file: int, path: Path) -> None:
    """Remove a locked file and let it go."""
    if fcntl is not None:  # removed first: nobody else can lock it in between
        path.unlink(missing_ok=True)
        os.close(file)
        return
    os.close(file)
    with contextlib.suppress(OSError):  # Windows removes no open file; it is the next one's then
        path.unlink()


def _by(path: Path) -> str:
    about = read_json(path)
    return f" by process {about['pid']} since {about['since']}" if about else ""
