"""What differs on Windows, simulated elsewhere: open files, locks, processes, names, ports."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from lorarlhf.backbone import base_cache
from lorarlhf.cli.demo_options import DemoOptions, prepare_folder
from lorarlhf.preferences.store import Store
from lorarlhf.project import run_deletion
from lorarlhf.project.project import create
from lorarlhf.runtime import files, lock, process, sockets
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.run_folder import archive_earlier_run

HOLDS = """
import errno, os, sys, types
from pathlib import Path
from lorarlhf.runtime import lock

def locking(file, mode, size):
    try:
        os.lockf(file, os.F_TLOCK, size)
    except BlockingIOError as error:
        raise OSError(errno.EACCES, "Permission denied") from error

if sys.platform != "win32":
    lock.fcntl, lock.msvcrt = None, types.SimpleNamespace(locking=locking, LK_NBLCK=2)
with lock.hold(Path(sys.argv[1]), "Wait."):
    print("held", flush=True)
    sys.stdin.read()
"""


def locking(file: int, mode: int, size: int) -> None:
    """`msvcrt.locking` by what POSIX has; where this process may not write, it only looks."""
    for how in (os.F_TLOCK, os.F_TEST):
        try:
            os.lockf(file, how, size)
            return
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise OSError(errno.EACCES, "Permission denied") from error
            if error.errno != errno.EBADF:
                raise


@pytest.fixture
def windows_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The locks of Windows instead of POSIX's."""
    if sys.platform != "win32":
        monkeypatch.setattr(lock, "fcntl", None)
        monkeypatch.setattr(lock, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))


@pytest.fixture
def open_files_stay(monkeypatch: pytest.MonkeyPatch, windows_locks: None) -> None:
    """Nothing that this process has open, nor a folder with such a file, is moved or removed."""
    if sys.platform == "win32":
        return
    for module in (files, run_deletion):
        monkeypatch.setattr(module, "WINDOWS", True)
    monkeypatch.setattr(files, "MOVE_SECONDS", 0.0)
    monkeypatch.setattr(shutil, "_use_fd_functions", False)

    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def checked(path: Any, *more: Any, **named: Any) -> Any:
            whole = Path(os.path.realpath(path))
            for one in psutil.Process().open_files():
                if whole in (Path(one.path), *Path(one.path).parents):
                    raise PermissionError(errno.EACCES, "in use", str(path))
            return real(path, *more, **named)

        return checked

    for name in ("replace", "unlink", "remove", "rename"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


# ---- locks


def test_a_folder_is_locked_there_too(windows_locks: None, tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLDS, str(tmp_path / "run")]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert lock.is_held(tmp_path / "run") is True
        with pytest.raises(UserError, match=rf"in use by process {other.pid} since .*Wait"):
            lock.check_free(tmp_path / "run", "Wait.")
        other.communicate("")
    assert other.returncode == 0
    assert not (tmp_path / "run").exists()  # made for nothing


def test_the_end_of_a_process_frees_its_folder(windows_locks: None, tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLDS, str(tmp_path / "run")]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        other.kill()
    assert lock.is_held(tmp_path / "run") is False
    with lock.hold(tmp_path / "run", ""):
        told = json.loads((tmp_path / "run" / lock.LOCK).read_text(encoding="utf-8"))
        assert told["pid"] == os.getpid()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_lock_that_is_just_being_removed_is_in_use(
    windows_locks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(lock.os, "open", refused)
    with pytest.raises(UserError, match="is in use. Wait.") as refusal:
        lock.check_free(tmp_path, "Wait.")
        lock.hold(tmp_path, "Wait.").__enter__()
    assert refusal.value.__cause__ is None  # so that the start of a job tries again


# ---- open files


def test_what_a_reader_has_open_is_replaced_as_soon_as_it_is_closed(
    open_files_stay: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.json"
    files.write_json(file, {"status": "running"})
    reader = file.open("rb")
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            reader.close()

    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if not reader.closed:
            raise PermissionError(errno.EACCES, "in use")
        real(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    monkeypatch.setattr(files.time, "sleep", sleep)
    files.write_json(file, {"status": "done"})
    assert files.read_json(file) == {"status": "done"} and len(waited) == 3


def test_a_file_that_stays_open_is_an_error_and_elsewhere_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Any] = []

    def refused(*paths: Any) -> None:
        tries.append(paths)
        raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr(files.os, "replace", refused)
    monkeypatch.setattr(files, "MOVE_SECONDS", 0.0)
    for windows, wanted in ((True, files.MOVE_ATTEMPTS), (False, 1)):
        tries.clear()
        monkeypatch.setattr(files, "WINDOWS", windows)
        with pytest.raises(PermissionError):
            files.write_json(tmp_path / "run.json", {})
        assert len(tries) == wanted


def test_runs_are_archived_and_deleted_and_votes_copied(
    open_files_stay: None, tmp_path: Path
) -> None:
    project = create(tmp_path / "My Project")
    run = project.next_run("sft")
    files.write_json(run / "run.json", {"stage": "sft", "status": "done"})
    (run / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    with lock.hold(run, ""):
        kept = archive_earlier_run(run)
    assert kept is not None and (kept / "metrics.jsonl").is_file()
    store = project.store()
    try:
        assert run_deletion.delete_run(project, run.name, store) == run.name
        assert not run.exists()
        store.backup(tmp_path / "votes.sqlite")
    finally:
        store.close()
    Store(tmp_path / "votes.sqlite").close()
    shutil.rmtree(project.folder)  # no connection keeps the store open
    assert not project.folder.exists()


def test_a_run_in_which_a_process_works_is_not_deleted(
    open_files_stay: None, tmp_path: Path
) -> None:
    project = create(tmp_path / "mine")
    run = project.next_run("sft")
    files.write_json(run / "run.json", {"stage": "sft", "status": "done"})
    store = project.store()
    with (run / "metrics.jsonl").open("a", encoding="utf-8"), pytest.raises(UserError) as refusal:
        run_deletion.delete_run(project, run.name, store)
    store.close()
    assert "can't be moved (in use)" in str(refusal.value)
    assert (run / "run.json").is_file()


def test_an_earlier_demo_is_kept_while_its_folder_is_locked(
    open_files_stay: None, tmp_path: Path
) -> None:
    out = tmp_path / "demo"
    with lock.hold(out, ""):
        files.write_json(out / "run.json", {"stage": "demo", "status": "done"})
        prepare_folder(DemoOptions(out=str(out)), lambda text: None)
    assert (tmp_path / "demo-1" / "run.json").is_file()


def test_a_killed_download_is_removed(open_files_stay: None, tmp_path: Path) -> None:
    left = tmp_path / ".smollm2-135m-abc"
    (left / "download-1").mkdir(parents=True)
    (left / "download-1" / "half.whl").write_bytes(bytes(10))
    base_cache._remove_killed(tmp_path / "smollm2-135m")
    assert list(tmp_path.iterdir()) == []


# ---- names


@pytest.mark.parametrize("name", ["con", "NUL", "aux.old", "Com1", "lpt9.txt"])
def test_no_project_has_the_name_of_a_device(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "WINDOWS", True)
    with pytest.raises(UserError, match=f"{name} is the name of a device"):
        create(tmp_path / name / "mine")
    with (
        pytest.raises(UserError, match="Name another folder"),
        lock.hold(tmp_path / "runs" / name, ""),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["console", "nullable", "com10", "my aux"])
def test_names_that_only_look_like_one_are_fine(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "WINDOWS", True)
    files.check_name(tmp_path / name)


def test_elsewhere_every_name_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WINDOWS", False)
    files.check_name("con")


# ---- processes


@pytest.fixture
def windows_processes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """`process.py` as on Windows; what it asks of the system, in order."""
    asked: list[tuple[str, Any]] = []
    monkeypatch.setattr(process.sys, "platform", "win32")
    flags = {"CREATE_NEW_PROCESS_GROUP": 512, "BELOW_NORMAL_PRIORITY_CLASS": 16384}
    for name, value in (flags | {"CREATE_NO_WINDOW": 134217728}).items():
        monkeypatch.setattr(subprocess, name, value, raising=False)
    monkeypatch.setattr(signal, "CTRL_BREAK_EVENT", 1, raising=False)
    monkeypatch.setattr(process, "is_running", lambda one: True)
    monkeypatch.setattr(process.os, "kill", lambda pid, sign: asked.append(("break", (pid, sign))))

    def started(command: Any, **options: Any) -> Any:
        asked.append(("start", options))
        return SimpleNamespace(pid=os.getpid(), wait=lambda: 0)

    monkeypatch.setattr(process.subprocess, "Popen", started)
    return asked


def test_a_job_has_a_console_that_nobody_sees_and_no_session(
    windows_processes: list[tuple[str, Any]], tmp_path: Path
) -> None:
    with (tmp_path / "log").open("ab") as log:
        process.start_detached(["python"], log, tmp_path)
        process.start_group(["python"], log, tmp_path, {})
    (_, detached), (_, group) = windows_processes
    assert "start_new_session" not in detached and "start_new_session" not in group
    assert detached["creationflags"] == 512 | 16384 | 134217728
    assert group["creationflags"] == 512 | 16384  # in the console of the one that looks after it


def test_a_stop_is_ctrl_break_and_the_last_one_ends_all_processes(
    windows_processes: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []

    class Known:
        def __init__(self, pid: int) -> None:
            self.pid = pid

        def children(self, recursive: bool) -> list["Known"]:
            assert recursive
            return [Known(8), Known(9)]

        def kill(self) -> None:
            ended.append(self.pid)

    monkeypatch.setattr(process.psutil, "Process", Known)
    process.interrupt(process.ProcessId(7, "then"))
    assert windows_processes == [("break", (7, 1))] and ended == []
    process.kill_group(process.ProcessId(7, "then"))
    assert ended == [8, 9, 7]


def test_a_process_is_known_by_its_start_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.sys, "platform", "win32")
    here = process.identify(os.getpid())
    assert here is not None and here.mark == f"{psutil.Process().create_time():.3f}"
    assert process.is_running(here) and process.from_json(here.as_json()) == here


def test_what_a_started_command_prints_is_utf_8_whatever_the_console_has() -> None:
    command = process.python_command("lorarlhf.cli", "--version")
    place = command.index("-m")
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONIO", "PYTHONUTF8"))}
    done = subprocess.run(
        [*command[:place], "-c", "print('é ✓')"],
        env=plain | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode("utf-8").strip() == "é ✓"


def test_a_console_of_cp1252_shows_what_it_can() -> None:
    code = "from lorarlhf.cli import main, commands; from lorarlhf.cli.result import Result; "
    code += "commands.COMMANDS['doctor'] = lambda a: Result({}, 'é ✓'); main.main(['doctor'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        check=True,
    )
    assert done.stdout.strip() == b"\xe9 ?"


# ---- the port of the pages


def test_no_other_program_may_share_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """There SO_REUSEADDR means something else: two programs listen, and one of them is asked."""
    options: list[Any] = []

    class Socket:
        def __init__(self, family: int) -> None:
            pass

        def setsockopt(self, *words: Any) -> None:
            options.append(words)

        def bind(self, address: Any) -> None:
            pass

        def listen(self) -> None:
            pass

    monkeypatch.setattr(sockets.socket, "socket", Socket)
    monkeypatch.delattr(socket, "SO_EXCLUSIVEADDRUSE", raising=False)
    sockets._listen(socket.AF_INET, "127.0.0.1", 7860, "The pages")
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", -5, raising=False)
    sockets._listen(socket.AF_INET, "127.0.0.1", 7860, "The pages")
    assert options == [
        (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
        (socket.SOL_SOCKET, -5, 1),
    ]
