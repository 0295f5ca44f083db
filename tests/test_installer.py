"""pip or uv: what is typed and run in environments that have the one or the other."""

import shlex
import sys
from pathlib import Path

import pytest

from lorarlhf.runtime import installer, terminal
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.terminal import as_typed


@pytest.fixture
def only_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an environment of `uv tool install`."""
    monkeypatch.setattr(installer, "has_pip", lambda: False)
    monkeypatch.setattr(installer, "find_uv", lambda: "/opt/uv")


def test_this_environment_has_pip() -> None:
    assert installer.has_pip()
    words = shlex.split(installer.install_command("trl>=1.16"))
    assert words == [sys.executable, "-m", "pip", "install", "--upgrade", "trl>=1.16"]


def test_without_pip_uv_installs_into_this_environment(only_uv: None) -> None:
    words = shlex.split(installer.install_command("trl>=1.16", reinstall=True))
    assert words[:5] == ["uv", "pip", "install", "--python", sys.executable]
    assert words[5:] == ["--reinstall", "--no-deps", "trl>=1.16"]


def test_without_pip_uv_fetches(only_uv: None, tmp_path: Path) -> None:
    command = installer.fetch_command("tiny==1.0", tmp_path, fresh=True)
    assert command[:3] == ["/opt/uv", "pip", "install"] and command[-1] == "tiny==1.0"
    assert command[command.index("--target") + 1] == str(tmp_path)
    assert {"--no-deps", "--only-binary=:all:", "--no-cache"} <= set(command)


def test_without_pip_uv_unpacks_what_has_the_hash(only_uv: None, tmp_path: Path) -> None:
    command = installer.unpack_command("tiny==1.0", tmp_path)
    assert command[:3] == ["/opt/uv", "pip", "install"]
    assert command[command.index("--target") + 1] == str(tmp_path)
    assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(command)


def test_with_neither_the_message_says_how_to_get_pip(
    only_uv: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(installer, "find_uv", lambda: None)
    with pytest.raises(UserError, match="no pip and uv is not on the path.*-m ensurepip"):
        installer.fetch_command("tiny==1.0", tmp_path)
    with pytest.raises(UserError, match="tiny==1.0 can't be fetched"):
        installer.unpack_command("tiny==1.0", tmp_path)


@pytest.mark.parametrize(
    ("system", "typed"),
    [
        ("linux", "'/home/me/my env/python' -m pip install 'trl>=1'"),
        ("win32", '"/home/me/my env/python" -m pip install "trl>=1"'),
    ],
)
def test_words_with_spaces_and_signs_are_quoted_as_the_system_wants_it(
    system: str, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.sys, "platform", system)
    words = ["/home/me/my env/python", "-m", "pip", "install", "trl>=1"]
    assert as_typed(words) == typed
