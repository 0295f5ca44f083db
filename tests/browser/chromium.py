"""Finds a Chromium for the browser tests, or installs one.

`make test` runs this file before the tests, so that none of them is skipped. It tries in this
order: the browser that LORARLHF_CHROMIUM names, the one found last time, one on the PATH,
playwright's own, playwright's download, and Debian's package. Only the last two install anything,
and they print a line first.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

# Headless, without a sandbox (root in a container has none), and without requests of its own.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
VARIABLE = "LORARLHF_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Holds the path found last time. It is in the environment, and is removed with it.
MEMORY = Path(sys.prefix) / ".chromium"
PYTHON = sys.executable

START_SECONDS = 60
DOWNLOAD_SECONDS = 600
APT_SECONDS = 600
TIMED_OUT = 124

ASK_PLAYWRIGHT = (
    "from playwright.sync_api import sync_playwright\n"
    "with sync_playwright() as playwright: print(playwright.chromium.executable_path)"
)


class NoChromium(Exception):
    """There is no browser and none could be installed; the message says what to do."""


def find() -> str | None:
    """The path of a Chromium that starts, or None. Installs nothing."""
    return _look([])


def provide() -> str:
    """The path of a Chromium, installed if necessary.

    Raises:
        NoChromium: nothing works.
    """
    tried: list[str] = []
    path = _look(tried)
    for name, install in (("the download", _download), ("Debian's package", install_package)):
        if path or os.environ.get(VARIABLE):
            break
        problem = install()
        path = None if problem else _look(tried)
        if path is None:
            tried.append(problem or f"{name} was installed and brought none that starts")
    if path is None:
        raise NoChromium(_what_to_do(tried))
    return path


def _what_to_do(tried: list[str]) -> str:
    """One paragraph with what was tried and what the person can do."""
    reasons = "; ".join(dict.fromkeys(tried))  # the same thing may have been found twice
    return (
        f"The browser tests need a Chromium that starts, and there is none: {reasons}. Install "
        "Chromium (Debian and Ubuntu: sudo apt-get install chromium), or name a Chromium or Chrome "
        f"that you have: {VARIABLE}=/path/to/chrome make test."
    )


# ---- finding


def _look(tried: list[str]) -> str | None:
    """The first browser that starts; `tried` gets the reason for each that does not."""
    named = os.environ.get(VARIABLE)
    if named:  # a person wants this one and no other
        problem = why_not(named)
        if problem:
            tried.append(f"{VARIABLE} names {named}, which {problem}")
        return None if problem else named
    return _remembered() or _on_path(tried) or _playwrights_own(tried)


def _on_path(tried: list[str]) -> str | None:
    """A browser with one of the usual names."""
    there = [path for name in NAMES if (path := shutil.which(name))]
    if not there:
        tried.append(f"no {', '.join(NAMES[:-1])} or {NAMES[-1]} is on the PATH")
    return next((path for path in there if _works(path, tried)), None)


def _playwrights_own(tried: list[str]) -> str | None:
    """The browser in playwright's cache.

    Another process asks for its path: playwright cannot be started twice in one thread, and a test
    may have started it.
    """
    status, output = _run([PYTHON, "-c", ASK_PLAYWRIGHT], START_SECONDS)
    path = output.splitlines()[-1] if status == 0 and output else ""
    return path if os.path.isfile(path) and _works(path, tried) else None


def _works(path: str, tried: list[str]) -> bool:
    """Whether the browser starts. If so, its path is kept; if not, `tried` gets the reason."""
    problem = why_not(path)
    if problem:
        tried.append(f"{path} {problem}")
        return False
    if sys.prefix != sys.base_prefix:  # not into the system's Python
        MEMORY.write_text(path, encoding="utf-8")
    return True


def _remembered() -> str | None:
    """The browser found last time, if its file is still there. It is not started again."""
    try:
        path = MEMORY.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return path if os.path.isfile(path) and os.access(path, os.X_OK) else None


def why_not(path: str) -> str:
    """Why this browser cannot show an empty page; an empty text if it can."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        page = [f"--user-data-dir={profile}", "--dump-dom", "about:blank"]
        status, output = _run([path, *FLAGS, *page], START_SECONDS)
    if status == 0:
        return "" if "<html" in output else "shows no page"
    return f"does not start ({_reason(status, output, START_SECONDS)})"


# ---- installing


def _download() -> str:
    """Run playwright's download. Returns what went wrong, or an empty text."""
    _say(
        "No Chromium that starts was found; downloading playwright's into its cache, outside this "
        f"folder (a few hundred MB, {DOWNLOAD_SECONDS // 60} minutes at most)."
    )
    # Without the second, smaller browser that playwright would load too.
    words = ["-m", "playwright", "install", "--no-shell", "chromium"]
    status, output = _run([PYTHON, *words], DOWNLOAD_SECONDS)
    if status == 0:
        return ""
    reason = _reason(status, output, DOWNLOAD_SECONDS)
    return _report(f"`python -m playwright install chromium` failed ({reason})")


def install_package(name: str = "chromium") -> str:
    """Install Debian's package, as root or by sudo. Returns what went wrong, or an empty text."""
    if not shutil.which("apt-get"):
        return _report("Debian's package was not tried (there is no apt-get)")
    rights = _rights()
    if rights is None:
        return _report("Debian's package was not tried (not root, and no sudo without a password)")
    command = [*rights, "apt-get", "install", "-y", "--no-install-recommends", name]
    _say(f"Installing Debian's package: {' '.join(command)}")
    status, output = _run(command, APT_SECONDS)
    if status not in (0, TIMED_OUT):
        # New containers have no package lists, and old lists name files that no longer exist.
        _say("That failed; once more with fresh package lists (apt-get update).")
        _run([*rights, "apt-get", "update"], APT_SECONDS)
        status, output = _run(command, APT_SECONDS)
    if status == 0:
        return ""
    return _report(f"`{' '.join(command)}` failed ({_reason(status, output, APT_SECONDS)})")


def _rights() -> list[str] | None:
    """The words before a command that needs root; None if there is no way to become root."""
    if os.geteuid() == 0:
        return []
    may = shutil.which("sudo") and _run(["sudo", "-n", "true"], START_SECONDS)[0] == 0
    return ["sudo", "-n"] if may else None


# ---- commands


def _run(command: list[str], seconds: float) -> tuple[int, str]:
    """Exit status and output of a command; 124 after a timeout, 127 if it does not exist.

    The output goes through a file: a pipe would stay open as long as any child process lives.
    """
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            return 127, f"{error.strerror}"
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = TIMED_OUT
        finally:  # Ctrl-C too: it does not reach a session of its own
            if process.returncode is None:
                _end(process)
        output.seek(0)
        return status, output.read().decode("utf-8", "replace").strip()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a command and its children; SIGTERM first, so that apt-get can finish its files."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        # Root's processes, started by sudo, can't be signalled: waiting is all there is.
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(10)
            return


def _reason(status: int, output: str, seconds: float) -> str:
    """Why a command failed, in one line: its first error message, or its last line of output."""
    if status == TIMED_OUT:
        return f"not done after {seconds:g} seconds"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E: ", "Error: "))]
    line = (errors or lines[-1:] or [f"exit status {status}"])[0]
    return line if len(line) <= 200 else line[:197] + "..."


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _report(problem: str) -> str:
    """Print the problem of a step at once, since the next step may take minutes; returns it."""
    _say(f"{problem[0].upper()}{problem[1:]}.")
    return problem


def main() -> int:
    """Provide a browser; print its path if it is not the one of last time."""
    before = _remembered()
    try:
        path = provide()
    except NoChromium as error:
        _say(str(error))
        return 1
    if path != before:
        _say(f"The browser tests run in {path}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
