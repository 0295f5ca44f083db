"""A server process for the tests of `lorarlhf serve`, and a small project that it serves.

A plugin: a test file names it in `pytest_plugins`. PYTEST_DONT_REWRITE
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI

from lorarlhf.project.project import create
from lorarlhf.project.run_labels import write_title
from tests.forked import context
from tests.ports import free_port
from tests.waiting import until

SETTINGS = ["bits=16", "compute_dtype=float32", "lora_rank=4"]
HI = [{"role": "user", "content": "Name three quiet hobbies."}]
LONG = 600.0


class Served:
    """A running server.

    Attributes:
        port: where it listens.
        log: the file with what its terminal shows.
    """

    def __init__(self, pid: int, port: int, log: Path) -> None:
        self.pid, self.port, self.log = pid, port, log

    def client(self, key: str = "none", **more: Any) -> OpenAI:
        """A client of it, which tries nothing twice."""
        url = f"http://127.0.0.1:{self.port}/v1"
        return OpenAI(base_url=url, api_key=key, max_retries=0, timeout=LONG, **more)

    def said(self) -> str:
        """What its terminal shows so far."""
        return self.log.read_text()

    def wait(self, times: int = 1) -> None:
        """Wait until it has said so many times that it answers."""
        until(lambda: self.said().count("base URL") >= times or not psutil.pid_exists(self.pid))
        assert self.said().count("base URL") >= times, self.said()

    def model_process(self) -> psutil.Process:
        """The process with the model: of the server's children the one that has torch's memory."""
        children = psutil.Process(self.pid).children(recursive=True)
        return max(children, key=lambda child: child.memory_info().rss)


@pytest.fixture(scope="session")
def served_project(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two policies, of which the older one has a title, and a reward role."""
    return make_project(tiny_base, tmp_path_factory.mktemp("serve") / "mine")


def make_project(base: Path, folder: Path) -> Path:
    """Write it, with random weights."""
    import torch

    from lorarlhf import Backbone

    made = create(folder, base=str(base), bits=16)
    backbone = Backbone.load(str(base), bits=16, compute_dtype="float32", lora_rank=4)
    backbone.add_role("reward")
    torch.manual_seed(0)
    for name, role in (("0001-sft", "policy"), ("0002-reward", "reward"), ("0003-dpo", "policy")):
        for weight in backbone.parameters_of(role):
            torch.nn.init.normal_(weight, std=0.3)
        run = folder / "runs" / name
        backbone.save(role, run / "adapters" / role)
        record = {"stage": name.split("-")[1], "status": "done", "bits": 16, "base": str(base)}
        record |= {"config": {"compute_dtype": "float32"}, "base_path": str(base)}
        (run / "run.json").write_text(json.dumps(record))
    write_title(folder / "runs" / "0001-sft", "The first one")
    return made.folder


@contextmanager
def server(target: Path, folder: Path, *words: str) -> Iterator[Served]:
    """`lorarlhf serve TARGET`, from a process that has the libraries in memory, once it answers."""
    port = free_port()
    log = folder / f"serve-{port}.txt"
    log.touch()
    argv = ["serve", str(target), "--port", str(port), *words]
    process: BaseProcess = context().Process(target=_run, args=(argv, log))
    process.start()
    assert process.pid is not None
    made = Served(process.pid, port, log)
    try:
        made.wait()
        yield made
    finally:
        if process.is_alive():
            process.kill()
        process.join()


def _run(argv: list[str], log: Path) -> None:
    import torch

    from lorarlhf.cli.main import main
    from lorarlhf.serve import engine

    engine.START_METHOD = "forkserver"
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), stream.fileno())
    raise SystemExit(main(argv))


@contextmanager
def real_server(target: Path, folder: Path, *words: str) -> Iterator[Served]:
    """The same as a person starts it: a command, whose model's process is spawned."""
    port = free_port()
    log = folder / f"real-{port}.txt"
    command = [sys.executable, "-m", "lorarlhf.cli", "serve", str(target), "--port", str(port)]
    with log.open("wb") as stream:
        process = subprocess.Popen([*command, *words], stdout=stream, stderr=stream)
    made = Served(process.pid, port, log)
    try:
        made.wait()
        yield made
    finally:
        process.kill()
        process.wait()


def ended(pid: int, seconds: float = 60.0) -> None:
    """Wait until a process has ended."""
    end = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "it did not end"
        time.sleep(0.05)


def numbers(text: str) -> list[int]:
    """The whole numbers in a text."""
    return [int(found) for found in re.findall(r"\d+", text)]
