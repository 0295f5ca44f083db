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
from lorarlhf.cli.round_plan import stage_of
from lorarlhf.project import device_queue
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError

if TYPE_CHECKING:
    from lorarlhf.cli.preflight import MemoryEstimate

GB = 1e9
ANSWERING = (
    "The model that answers on the pages still has memory. It gives that back before a job starts, "
    "so the job may fit."
)


def run(args: Namespace) -> dict[str, Any]:
    """The command's result for a project.

    Returns:
        `needed`, `free` (bytes), `fits` and `advice`; `seconds` and `time`, the same in words;
        `settings`, all of the stage as they would be used. None and "" for what can't be known:
        while a job has the device (`busy`), what is free says nothing of later.

    Raises:
        UserError: what the training command would refuse to start with, but for the memory.
    """
    if args.stage is None:
        raise UserError("With --project, name the stage, too: --stage ppo.")
    stage, own = stage_of(args.stage)
    project, busy = Project(args.project), bool(device_queue.queue())
    # A folder that is gone afterwards: nothing is reserved or written in the project.
    with TemporaryDirectory() as folder:
        request = TrainRequest(
            stage,
            project=args.project,
            sets=(*own, *args.set),
            out=str(Path(folder) / "run"),
            memory_check=False,
        )
        prepared = prepare(*fill_in(request))
        seconds, words = expected_time(prepared, project, busy)
    result: dict[str, Any] = {"project": str(project.folder), "stage": stage.name}
    result |= {"busy": busy} | _memory(prepared, busy) | {"seconds": seconds, "time": words}
    return result | {"settings": prepared.settings.own}


def _memory(prepared: Prepared, busy: bool) -> dict[str, Any]:
    from lorarlhf.cli.preflight import free_for_us

    free = None if busy else free_for_us(prepared.base.device)
    found: dict[str, Any] = {"needed": None, "free": free, "fits": None, "advice": ""}
    if (estimate := prepared.estimate) is None:
        return found
    found |= {"needed": estimate.parts["total"], "parts": estimate.parts}
    if free is None:
        return found
    advice = _advice(estimate, free)
    if advice and device_queue.models():
        return found | {"advice": f"{advice} {ANSWERING}"}
    return found | {"fits": not advice, "advice": advice}


def _advice(estimate: "MemoryEstimate", free: int) -> str:
    """Why it does not fit, and what would; "" if it fits."""
    try:
        estimate.check(free)
    except UserError as error:
        return str(error)
    return ""


def as_text(result: dict[str, Any]) -> str:
    """Memory and time in two lines, and what to do if it does not fit."""
    free = "how much will be free is not known while a training has the device"
    if result["free"] is not None:
        free = f"{result['free'] / GB:.1f} GB are free"
    lines = [f"Memory: it can't be estimated before it starts; {free}."]
    if result["needed"] is not None:
        lines = [f"Memory: about {result['needed'] / GB:.1f} GB at the peak; {free}."]
    lines += [result["advice"]] * bool(result["advice"])
    return "\n".join([*lines, f"Time: {result['time']}"])
