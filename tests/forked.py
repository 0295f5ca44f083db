"""Processes for tests that start in half a second, from a server that has imported the libraries.

A process that imports torch, Transformers, PEFT and TRL itself takes some ten seconds to start.
"""

import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.ports import free_port

GRACE = 2  # seconds that the others have to end once one process has failed
PRELOADED = [
    "lorarlhf.cli.train",
    "lorarlhf.ppo.trainer",
    "lorarlhf.stages.reward_model",
    "peft",
    "trl.trainer.dpo_trainer",
    "trl.trainer.reward_trainer",
    "trl.trainer.sft_trainer",
    "transformers.models.llama.modeling_llama",
    "lorarlhf.cli.demo",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "tests.frozen",
]


def context() -> ForkServerContext:
    """Its `Process` starts from the server, which this call makes if there is none."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(PRELOADED)
    return made


def start_engines_here() -> None:
    """Let the pages' engines start from the server, too."""
    from lorarlhf_ui import engine_client

    context()
    engine_client.START_METHOD = "forkserver"


def run_group(
    function: Callable[..., Any], *args: Any, processes: int, folder: Path, seconds: float = 600
) -> Any:
    """Run a function in processes that belong together, as torchrun starts them on one machine.

    Args:
        function: its result is the exit status; a top-level function of a module.
        folder: where the processes work.

    Returns:
        `returncode` (the first that is not 0), `stdout` and `stderr` of all of them.
    """
    port = free_port()
    files = [folder / f"{name}-{port}.txt" for name in ("stdout", "stderr")]
    for file in files:
        file.touch()
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    started = []
    for rank in map(str, range(processes)):
        environment = shared | {"RANK": rank, "LOCAL_RANK": rank} if processes > 1 else {}
        process = context().Process(
            target=_member, args=(function, args, environment, folder, files), daemon=True
        )
        process.start()
        started.append(process)
    until = time.monotonic() + seconds
    while any(process.is_alive() for process in started):
        failed = any(process.exitcode for process in started)
        if failed or time.monotonic() > until:
            time.sleep(GRACE * failed)  # the others may be about to say what is wrong
            for process in started:
                process.kill()
        for process in started:
            process.join(0.05)
    codes = [process.exitcode for process in started]
    printed = [file.read_text() for file in files]
    for file in files:
        file.unlink()
    return SimpleNamespace(
        returncode=next((code for code in codes if code), 0), stdout=printed[0], stderr=printed[1]
    )


def run_script(script: Path, words: Sequence[str]) -> None:
    """As `python SCRIPT WORDS`, in this process."""
    sys.argv = [str(script), *words]
    runpy.run_path(str(script), run_name="__main__")


def _member(
    function: Callable[..., Any],
    args: Sequence[Any],
    environment: dict[str, str],
    folder: Path,
    files: Sequence[Path],
) -> None:
    import torch

    os.environ |= environment | {"CUDA_VISIBLE_DEVICES": ""}
    os.chdir(folder)
    for stream, file in zip((sys.stdout, sys.stderr), files, strict=True):
        stream.flush()
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
    torch.set_num_threads(1)
    raise SystemExit(function(*args))
