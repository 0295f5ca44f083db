"""A run's record in its folder: `run.json` and `metrics.jsonl`.

`run.json` is written when a run starts and again when it ends, so a killed run can be recognised.
"""

import json
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, replace_nonfinite, write_json
from lorarlhf.runtime.machine import peak_card_mb, peak_rss_mb

TIME = "%Y-%m-%dT%H:%M:%S"
"""How a record says when a run started, in this machine's time."""
LIBRARIES = ("lorarlhf", "torch", "transformers", "trl", "peft", "bitsandbytes")


class Run:
    """The folder of one training run. Only the main process writes to it.

    Args:
        folder: created if it does not exist.
        stage: the name of the stage, or `demo`.
        settings: all settings of the run, as plain values.
        minutes: the longest time that its trainers may train; None: until they are done.
        earlier: when it began and how long it has run, if it goes on after a stop; see
            `earlier_sessions`.
        rows: by kind, what `fingerprint` says of its rows and prompts.

    Raises:
        UserError: the folder can't be written.
    """

    def __init__(
        self,
        folder: str | Path,
        stage: str,
        settings: dict[str, Any],
        minutes: float | None = None,
        earlier: dict[str, Any] | None = None,
        rows: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.folder, self.stage, self.minutes = Path(folder), stage, minutes
        self.started = time.time()
        self.about: dict[str, Any] = {
            "stage": stage,
            "status": "running",
            "config": settings,
            "seed": settings.get("seed", 0),
            "started": time.strftime(TIME, time.localtime(self.started)),
            "versions": library_versions(),
            **(rows or {}),
        }
        if earlier:
            self.about |= {"resumed": self.about["started"]} | earlier
        if minutes is not None:
            self.about["minutes"] = minutes
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write()
        except OSError as error:
            raise UserError(
                f"The output folder {self.folder} can't be written ({error.strerror}). Name "
                "another one with --out."
            ) from error

    def base(self, backbone: Any) -> None:
        """Record which base was loaded, from where and how."""
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
        if not distributed.is_main():
            return
        line = json.dumps(replace_nonfinite({"stage": stage or self.stage, **row}), default=float)
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def finish(self, status: str, summary: dict[str, Any] | None = None) -> dict[str, Any]:
        """Record the end of the run; returns the summary with time and peak memory added."""
        full = dict(summary or {})
        full.setdefault("stage", self.stage)
        seconds = time.time() - self.started + self.about.get("earlier_seconds", 0.0)
        full["seconds_total"] = round(seconds, 1)
        peaks = {"peak_rss_mb": peak_rss_mb()} | peak_card_mb()
        full |= peaks
        ended = {"status": status, "seconds": full["seconds_total"], **peaks}
        self.about |= ended | {"summary": summary or {}}
        self._write()
        return full

    def _write(self) -> None:
        if distributed.is_main():
            write_json(self.folder / "run.json", self.about)


def earlier_sessions(folder: Path) -> dict[str, Any]:
    """When an unfinished run began, `started`, and how long it has run, `earlier_seconds`.

    Time between a stop and `--resume` does not count. Of a session that was killed, the time until
    its last row counts. Empty if the folder has no run.
    """
    about = read_json(folder / "run.json")
    try:
        started, seconds = about["started"], about.get("seconds")
        if seconds is None:
            began = time.mktime(time.strptime(about.get("resumed", started), TIME))
            logged = (folder / "metrics.jsonl").stat().st_mtime
            seconds = about.get("earlier_seconds", 0.0) + max(0.0, logged - began)
        return {"started": started, "earlier_seconds": round(float(seconds), 1)}
    except OSError:  # killed before its first row
        return {"started": started, "earlier_seconds": about.get("earlier_seconds", 0.0)}
    except (KeyError, TypeError, ValueError, OverflowError):
        return {}


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that affect a run's numbers."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def adapter_folder(run: str | Path, role: str) -> Path:
    """The folder of a role's adapter: RUN/adapters/ROLE, or `run` itself if it is an adapter.

    Raises:
        UserError: neither exists; the message names the roles that the run has.
    """
    folder = Path(run)
    if (folder / "adapter_config.json").is_file():
        return folder
    wanted = folder / "adapters" / role
    if (wanted / "adapter_config.json").is_file():
        return wanted
    present = sorted(p.parent.name for p in folder.glob("adapters/*/adapter_config.json"))
    has = f"it has {', '.join(present)}" if present else "it has no adapters"
    raise UserError(
        f"{folder} has no {role} adapter ({has}). Name a finished run that trained one, or an "
        "adapter's own folder."
    )
