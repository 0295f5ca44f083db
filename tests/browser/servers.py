"""Starts `lorarlhf ui` for the browser tests, each in a process group of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.ports import free_port

COMMAND = (sys.executable, "-m", "lorarlhf.cli", "ui")
# Gradio takes some seconds to import, and many more when every core is busy.
START_SECONDS = 300
END_SECONDS = 10
LOG_SHOWN = 6000


class Server:
    """A running `lorarlhf ui` in a process group of its own.

    Attributes:
        url: its address, without a slash at the end.
        process: the command's process.
        log: the file with its output.
    """

    def __init__(self, command: Sequence[str], port: int, log: Path, env: dict[str, str]) -> None:
        self.command, self.log = list(command), log
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", **env}
        self.url = f"http://127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        """Start the command and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        self._gone = False
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def _wait(self) -> None:
        until = time.monotonic() + START_SECONDS
        while not self.answers():
            if self.process.poll() is not None:
                self._fail(f"ended with status {self.process.returncode} before it answered")
            if time.monotonic() > until:
                self._fail(f"did not answer at {self.url} within {START_SECONDS} seconds")
            time.sleep(0.05)

    def _fail(self, what: str) -> None:
        words = " ".join(self.command)
        pytest.fail(f"`{words}` {what}. It said:\n{self.said()}", pytrace=False)

    def answers(self) -> bool:
        """Whether the process runs and answers by HTTP, with any status."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            opener.open(self.url, timeout=10).close()
        except urllib.error.HTTPError:
            pass
        except OSError:
            return False
        return self.process.poll() is None

    def said(self) -> str:
        """The end of its output."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-LOG_SHOWN:]

    def kill(self) -> None:
        """Send SIGKILL to the whole group, as in a power cut."""
        self._signal(signal.SIGKILL)
        self.process.wait()
        self._gone = True

    def end(self) -> None:
        """Send SIGTERM; what is left of the group afterwards is killed."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        self.kill()

    def restart(self) -> None:
        """Start it again on the same port, after `kill()` or while it runs."""
        self.end()
        self.start()

    def _signal(self, number: int) -> None:
        """Signal the whole group, unless it is gone: its number may then belong to another."""
        if not self._gone:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


class Servers:
    """Starts servers and remembers them. The fixture `serve` is one."""

    def __init__(self, make_folder: Callable[[], Path]) -> None:
        self.make_folder = make_folder
        self.started: list[Server] = []

    def __call__(
        self,
        folder: str | Path,
        *words: str,
        env: dict[str, str] | None = None,
        command: Sequence[str] = COMMAND,
    ) -> Server:
        """Start `lorarlhf ui FOLDER --no-browser --port N` with more words, and wait for it.

        Args:
            folder: the project.
            *words: more of the command line, as "--no-model".
            env: environment variables on top of the test's own.
            command: what stands before the folder.
        """
        port = free_port()
        line = [*command, str(folder), "--no-browser", "--port", str(port), *words]
        server = Server(line, port, self.make_folder() / "log.txt", env or {})
        self.started.append(server)
        return server
