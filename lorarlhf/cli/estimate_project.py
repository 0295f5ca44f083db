"""`estimate --project`: memory and time of a stage on a project's own rows, before it starts.

What the training command would check is checked in the same way, so what is wrong is known, too.
"""

from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lorarlhf.cli.estimate_time import expected_time
from lorarlhf.cli.prepare import Prepared, prepare
from lorarlhf.cli.project_defaults import fill_in
from lorarlhf.cli.request import TrainRequest
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf.stages.table import STAGES

if TYPE_CHECKING:
    from lorarlhf.cli.preflight import MemoryEstimate

GB = 1e9


def run(args: Namespace) -> dict[str, Any]:
    """The command's result for a project.

    Returns:
        `needed`, `free` (bytes), `fits` and `advice`; `seconds` and `time`, the same in words;
        `settings`, all of the stage as they would be used. None and "" for what can't be known.

    Raises:
        UserError: what the training command would refuse to start with, but for the memory.
    """
    if args.stage is None:
        raise UserError("With --project, name the stage, too: --stage ppo.")
    project = Project(args.project)
    # A folder that is gone afterwards: nothing is reserved or written in the project.
    with TemporaryDirectory() as folder:
        request = TrainRequest(
            STAGES[args.stage],
            project=args.project,
            sets=tuple(args.set),
            out=str(Path(folder) / "run"),
            memory_check=False,
        )
        prepared = prepare(*fill_in(request))
        seconds, words = expected_time(prepared, project)
    result: dict[str, Any] = {"project": str(project.folder), "stage": args.stage}
    result |= _memory(prepared) | {"seconds": seconds, "time": words}
    return result | {"settings": prepared.settings.own}


def _memory(prepared: Prepared) -> dict[str, Any]:
    from lorarlhf.cli.preflight import free_for_us

    free, estimate = free_for_us(prepared.base.device), prepared.estimate
    if estimate is None:
        return {"needed": None, "free": free, "fits": None, "advice": ""}
    parts = estimate.parts
    advice = _advice(estimate, free)
    return {"needed": parts["total"], "parts": parts, "free": free} | {
        "fits": not advice,
        "advice": advice,
    }


def _advice(estimate: "MemoryEstimate", free: int) -> str:
    """Why it does not fit, and what would; "" if it fits."""
    try:
        estimate.check(free)
    except UserError as error:
        return str(error)
    return ""


def as_text(result: dict[str, Any]) -> str:
    """Memory and time in two lines, and what to do if it does not fit."""
    free = f"{result['free'] / GB:.1f} GB are free"
    lines = [f"Memory: it can't be estimated before it starts; {free}."]
    if result["needed"] is not None:
        lines = [f"Memory: about {result['needed'] / GB:.1f} GB at the peak; {free}."]
    lines += [result["advice"]] * bool(result["advice"])
    return "\n".join([*lines, f"Time: {result['time']}"])
