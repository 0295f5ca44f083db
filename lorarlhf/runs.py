"""A run's folder: `run.json`, `metrics.jsonl`, and what the run says about itself.

`run.json` is written when a run starts and again when it ends, so a killed run is seen as one.
"""

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lorarlhf import processes
from lorarlhf.errors import UserError

LIBRARIES = ("lorarlhf", "torch", "transformers", "trl", "peft", "bitsandbytes")


class Run:
    """The folder of one training run. Of several processes the first writes it.

    Args:
        folder: made where it does not exist.
        stage: sft, reward, ppo, dpo, orpo or demo.
        settings: everything that the run was told, as plain values.

    Raises:
        UserError: the folder can't be written.
    """

    def __init__(self, folder: str | Path, stage: str, settings: dict[str, Any]) -> None:
        self.folder, self.stage = Path(folder), stage
        self.started = time.time()
        self.about: dict[str, Any] = {
            "stage": stage,
            "status": "running",
            "config": settings,
            "seed": settings.get("seed", 0),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(self.started)),
            "versions": library_versions(),
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write()
        except OSError as error:
            raise UserError(
                f"The output folder {self.folder} can't be written ({error.strerror}). Name "
                "another one with --out."
            ) from error

    def base(self, backbone: Any) -> None:
        """Note which base was loaded, from where and how."""
        self.about |= {
            "base": backbone.base,
            "base_path": backbone.base_path,
            "bits": backbone.bits,
            "adapter_layers": backbone.adapter_layers,
            "device": str(backbone.device),
            "compute_dtype": str(backbone.compute_dtype).removeprefix("torch."),
        }
        self._write()

    def log(self, row: dict[str, Any], stage: str | None = None) -> None:
        """Append one object to `metrics.jsonl`."""
        if not processes.first():
            return
        line = json.dumps(finite({"stage": stage or self.stage, **row}), default=float)
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def finish(self, status: str, summary: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write the end of the run; returns the summary with time and peak memory added."""
        whole = dict(summary or {})
        whole.setdefault("stage", self.stage)
        whole["seconds_total"] = round(time.time() - self.started, 1)
        peaks = {"peak_rss_mb": peak_rss_mb()} | peak_card_mb()
        whole |= peaks
        ended = {"status": status, "seconds": whole["seconds_total"], **peaks}
        self.about |= ended | {"summary": summary or {}}
        self._write()
        return whole

    def _write(self) -> None:
        if processes.first():
            write_json(self.folder / "run.json", self.about)


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a file of another name and rename it, so that a reader never sees half."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(finite(content), indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(scratch, path)


def finite(data: Any) -> Any:
    """The same with null for numbers that JSON does not know."""
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return None
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    return [finite(value) for value in data] if isinstance(data, (list, tuple)) else data


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is none or it is broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def library_versions() -> dict[str, str]:
    """The versions of the libraries that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def peak_rss_mb() -> float:
    """The most memory this process has held so far, in MB (10^6 bytes)."""
    if sys.platform == "win32":
        import psutil

        return round(psutil.Process().memory_info().peak_wset / 1e6, 1)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6, 1)


def peak_card_mb() -> dict[str, float]:
    """`peak_card_mb`, the most memory of a CUDA card held so far, in MB; empty without one."""
    torch = sys.modules.get("torch")  # who has not imported it has nothing on a card
    if torch is None or not torch.cuda.is_initialized():
        return {}
    cards = range(torch.cuda.device_count())
    return {"peak_card_mb": round(sum(map(torch.cuda.max_memory_reserved, cards)) / 1e6, 1)}


def adapter_folder(run: str | Path, role: str) -> Path:
    """Where a role's adapter lies: RUN/adapters/ROLE, or the folder itself where it is one.

    Raises:
        UserError: neither is there; says which roles the run has.
    """
    folder = Path(run)
    if (folder / "adapter_config.json").is_file():
        return folder
    wanted = folder / "adapters" / role
    if (wanted / "adapter_config.json").is_file():
        return wanted
    present = sorted(p.parent.name for p in folder.glob("adapters/*/adapter_config.json"))
    has = f"it has {', '.join(present)}" if present else "it holds no adapters"
    raise UserError(
        f"{folder} has no {role} adapter ({has}). Name a finished run that trained one, or an "
        "adapter's own folder."
    )


def own_command() -> str:
    """How to call this program: `make demo` runs one that is not on the path."""
    program = Path(sys.argv[0])
    if shutil.which("lorarlhf") or program.name != "lorarlhf":
        return "lorarlhf"
    return str(program)


def command_words() -> list[str]:
    """The words that start this program as it was started: alone, or in several processes."""
    if processes.count() == 1:
        return [own_command()]
    started = f"accelerate launch --multi_gpu --num_processes {processes.count()}"
    return [*started.split(), "-m", "lorarlhf.cli"]


Say = Callable[[str], None]


def say_to_stderr(text: str) -> None:
    """One line for the person at the terminal; standard output stays free for results."""
    if processes.first():
        print(text, file=sys.stderr, flush=True)
