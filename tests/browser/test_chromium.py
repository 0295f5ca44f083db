"""A browser is found or installed, in a fixed order, and messages say what failed.

The browsers, pythons and apt-gets here are small scripts on a PATH of the test's own.
"""

import os
from pathlib import Path

import pytest

from tests.browser import chromium

WORKS = 'echo "<html><head></head><body></body></html>"'
FAILS = "echo 'error while loading shared libraries: libnss3.so'; exit 127"


def script(path: Path, lines: str) -> str:
    """Write a shell script that can be executed; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return str(path)


class Machine:
    """A machine made of scripts: its own PATH, a cache of playwright, and a log of the calls.

    Attributes:
        bin: the only folder on the PATH.
        own: the path of playwright's browser, which may not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.bin, self.own = folder / "bin", folder / "cache" / "chrome"
        self.log = folder / "log"
        self.bin.mkdir()
        self.python("exit 1")

    def add(self, name: str, lines: str) -> str:
        return script(self.bin / name, f'echo "{name} $*" >> {self.log}\n{lines}')

    def python(self, install: str) -> str:
        """A Python that prints the path of playwright's browser, and runs `install` otherwise."""
        lines = f'case "$1" in -c) echo {self.own};; *) {install};; esac'
        return self.add("python", lines)

    def download(self, lines: str) -> str:
        """A shell command that installs playwright's browser."""
        self.own.parent.mkdir(exist_ok=True)
        return self._make(self.own, lines)

    def package(self, lines: str) -> str:
        """A shell command that installs `chromium` on the PATH, as the package does."""
        return self._make(self.bin / "chromium", lines)

    def _make(self, path: Path, lines: str) -> str:
        ready = script(self.log.parent / f"ready-{path.name}", lines)
        return f"/bin/cp -p {ready} {path}"

    def calls(self) -> list[str]:
        """The calls that install something, in order."""
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        return [line for line in lines if not line.startswith(ASKED)]


INSTALL = "-m playwright install --no-shell chromium"
# Log lines of calls that install nothing: starts of browsers, and both lines of ASK_PLAYWRIGHT.
ASKED = ("chrom", "google", "python -c", "with ")
APT = "apt-get install -y --no-install-recommends chromium"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """An empty machine, used by root."""
    made = Machine(tmp_path)
    monkeypatch.setenv("PATH", str(made.bin))
    monkeypatch.delenv(chromium.VARIABLE, raising=False)
    monkeypatch.setattr(chromium, "PYTHON", str(made.bin / "python"))
    monkeypatch.setattr(chromium, "MEMORY", tmp_path / "memory")
    monkeypatch.setattr(chromium.sys, "prefix", str(tmp_path))  # an environment, as with make
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return made


def test_a_browser_on_the_path_is_taken_and_nothing_installed(machine: Machine) -> None:
    path = machine.add("chromium-browser", WORKS)
    assert chromium.find() == chromium.provide() == path
    assert machine.calls() == []


def test_a_browser_that_does_not_start_is_passed_over(machine: Machine) -> None:
    machine.add("chromium", FAILS)
    machine.add("chromium-browser", "echo no page")
    assert chromium.find() is None
    path = machine.add("google-chrome", WORKS)
    assert chromium.find() == path


def test_a_browser_that_hangs_is_given_up(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chromium, "START_SECONDS", 0.5)
    # Its child keeps the output open, as the helper processes of a browser do.
    path = machine.add("chromium", "/bin/sleep 60 & wait")
    assert chromium.why_not(path) == "does not start (not done after 0.5 seconds)"


def test_the_browser_is_started_without_a_window_and_in_a_folder_of_its_own(
    machine: Machine,
) -> None:
    machine.add("chromium", WORKS)
    chromium.find()
    (call,) = machine.log.read_text().splitlines()
    assert call.startswith(f"chromium {' '.join(chromium.FLAGS)} --user-data-dir=")
    assert call.endswith(" --dump-dom about:blank")


def test_playwrights_own_is_found_after_those_on_the_path(machine: Machine) -> None:
    machine.own.parent.mkdir()
    own = script(machine.own, WORKS)
    assert chromium.find() == own
    chromium.MEMORY.unlink()
    path = machine.add("chrome", WORKS)
    assert chromium.find() == path


def test_what_was_found_is_remembered_until_it_is_gone(machine: Machine) -> None:
    first, second = machine.add("chromium", WORKS), machine.add("chrome", WORKS)
    assert chromium.find() == first
    machine.log.unlink()
    assert chromium.find() == first
    assert not machine.log.exists()  # not started again
    Path(first).unlink()
    assert chromium.find() == second
    chromium.MEMORY.write_bytes(b"\xff\xfe")
    assert chromium.find() == second


def test_one_named_by_hand_comes_first(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.add("chromium", WORKS)
    chromium.find()
    mine = script(machine.log.parent / "mine", WORKS)
    monkeypatch.setenv(chromium.VARIABLE, mine)
    assert chromium.find() == chromium.provide() == mine


def test_one_named_by_hand_that_does_not_start_is_not_replaced(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.add("chromium", WORKS)
    monkeypatch.setenv(chromium.VARIABLE, "/none/chrome")
    assert chromium.find() is None
    with pytest.raises(chromium.NoChromium) as error:
        chromium.provide()
    said = "LORARLHF_CHROMIUM names /none/chrome, which does not start (No such file or directory)"
    assert said in str(error.value)
    assert machine.calls() == []


# ---- installing


def test_the_download_comes_before_the_package(
    machine: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    machine.python(machine.download(WORKS))
    machine.add("apt-get", "exit 1")
    assert chromium.provide() == str(machine.own)
    assert machine.calls() == [f"python {INSTALL}"]
    out, err = capfd.readouterr()
    assert out == "" and "downloading playwright's" in err


def test_the_package_comes_where_the_download_fails(
    machine: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    machine.python("echo 'Error: getaddrinfo ENOTFOUND'; echo at line 3; exit 1")
    machine.add("apt-get", machine.package(WORKS))
    assert chromium.provide() == str(machine.bin / "chromium")
    assert machine.calls() == [f"python {INSTALL}", APT]
    err = capfd.readouterr().err
    assert "`python -m playwright install chromium` failed (Error: getaddrinfo ENOTFOUND).\n" in err
    assert f"Installing Debian's package: {APT}\n" in err


def test_the_package_comes_where_the_downloaded_one_does_not_start(machine: Machine) -> None:
    machine.python(machine.download(FAILS))
    machine.add("apt-get", machine.package(WORKS))
    assert chromium.provide() == str(machine.bin / "chromium")


def test_package_lists_are_fetched_where_there_are_none(machine: Machine) -> None:
    lists = machine.log.parent / "lists"
    install = f"[ -e {lists} ] || {{ echo 'E: Unable to locate package'; exit 100; }}"
    lines = f'case "$1" in update) : > {lists};; *) {install}; {machine.package(WORKS)};; esac'
    machine.add("apt-get", lines)
    assert chromium.provide() == str(machine.bin / "chromium")
    assert machine.calls()[1:] == [APT, "apt-get update", APT]


def test_sudo_is_used_only_where_it_asks_for_no_password(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    machine.add("apt-get", machine.package(WORKS))
    with pytest.raises(chromium.NoChromium, match="not root, and no sudo without a password"):
        chromium.provide()
    machine.add("sudo", "echo a password is required; exit 1")
    with pytest.raises(chromium.NoChromium, match="not root, and no sudo without a password"):
        chromium.provide()
    machine.add("true", "exit 0")
    machine.add("sudo", 'shift; exec "$@"')
    machine.log.unlink()
    assert chromium.provide() == str(machine.bin / "chromium")
    assert machine.calls()[1:] == ["sudo -n true", "true ", f"sudo -n {APT}", APT]


def test_when_nothing_works_one_paragraph_says_what_to_do(
    machine: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    machine.add("chrome", FAILS)
    machine.python("echo 'Error: no network'; exit 1")
    machine.add("apt-get", "echo 'E: Unable to locate package chromium'; exit 100")
    assert chromium.main() == 1
    assert capfd.readouterr().err.splitlines()[-1] == (
        "The browser tests need a Chromium that starts, and there is none: "
        f"{machine.bin}/chrome does not start (error while loading shared libraries: libnss3.so); "
        "`python -m playwright install chromium` failed (Error: no network); "
        f"`{APT}` failed (E: Unable to locate package chromium). Install Chromium (Debian and "
        "Ubuntu: sudo apt-get install chromium), or name a Chromium or Chrome that you have: "
        "LORARLHF_CHROMIUM=/path/to/chrome make test."
    )


def test_an_installation_without_a_working_browser_is_reported(machine: Machine) -> None:
    machine.python(machine.download(FAILS))
    machine.add("apt-get", "exit 0")
    with pytest.raises(chromium.NoChromium) as error:
        chromium.provide()
    text = str(error.value)
    assert f"{machine.own} does not start (error while loading shared libraries" in text
    assert "the download was installed and brought none that starts; Debian's package was" in text
    assert text.count("is on the PATH") == 1


def test_a_download_that_hangs_is_given_up(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chromium, "DOWNLOAD_SECONDS", 0.5)
    machine.python("/bin/sleep 60 & wait")
    with pytest.raises(chromium.NoChromium) as error:
        chromium.provide()
    text = str(error.value)
    assert "no chromium, chromium-browser, google-chrome or chrome is on the PATH" in text
    assert "failed (not done after 0.5 seconds)" in text
    assert "Debian's package was not tried (there is no apt-get)" in text


def test_the_second_call_is_silent(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    path = machine.add("chromium", WORKS)
    assert (chromium.main(), capfd.readouterr().err) == (0, f"The browser tests run in {path}.\n")
    assert (chromium.main(), capfd.readouterr().err) == (0, "")
