"""The process with the model: it reads requests from a pipe and sends back what happens to them.

It is a process of its own, so that its memory is free at once when a training needs it, and so that
the endpoint can say so. See `runtime.worker_pipe` for the messages.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from lorarlhf.project.settings import Settings
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.process import lower_priority
from lorarlhf.runtime.worker_pipe import WorkerPipe, end_if_broken, ran_out_of_memory
from lorarlhf.serve.errors import ApiError, refused

if TYPE_CHECKING:
    from lorarlhf.backbone.base import Backbone
    from lorarlhf.serve.scheduler import Scheduler

NO_MEMORY = "There is not enough memory for this. Ask for shorter answers, or for fewer at once."
UNEXPECTED = "An unexpected error occurred. The terminal of `lorarlhf serve` shows it."


def main(connection: Connection, settings: Callable[[], Settings], rows: int) -> None:
    """Load the base, report it, and work until the endpoint's end of the pipe closes.

    Args:
        settings: of the base; called here, because it imports torch.
        rows: how many answers are written at once, at most.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the endpoint, and that ends this
    lower_priority()
    pipe = WorkerPipe(connection)
    send = sender(pipe)
    try:
        from lorarlhf.project.load import load_backbone
        from lorarlhf.serve.scheduler import Scheduler

        resolved = settings()
        backbone = load_backbone(resolved)
    except Exception as error:
        send(0, "failed", error)
        return
    scheduler = Scheduler(backbone, send, rows)
    # Roles are switched every few tokens, so no adapter is merged; but a CPU keeps the base's
    # weights dequantised.
    with backbone.dequantised():
        send(0, "ready", _about(backbone))
        while True:
            receive(pipe, scheduler, resolved.own)
            try:
                scheduler.step()
            except Exception as error:
                scheduler.abandon(error)


def _about(backbone: "Backbone") -> dict[str, Any]:
    return {
        "base": backbone.base,
        "device": str(backbone.device),
        "context": backbone.encoder.context,
        "pid": os.getpid(),
    }


def receive(pipe: WorkerPipe, scheduler: "Scheduler", own: dict[str, Any]) -> None:
    """Queue the requests that arrived; waits for one if there is nothing to do.

    Args:
        own: the settings `plain` and `max_prompt_tokens`.
    """
    from lorarlhf.serve.work import Work

    for number, kind, value in pipe.messages(lambda: scheduler.idle):
        if kind == "stop":
            scheduler.stop(number)
            continue
        messages = value["messages"]
        plain = "\n".join(message["content"] for message in messages)
        wanted = value | {"prompt": plain if own["plain"] else messages}
        try:
            work = Work(scheduler.backbone, number, wanted, own["max_prompt_tokens"])
        except UserError as error:
            scheduler.send(number, "failed", refused(str(error), "messages"))
        except Exception as error:
            scheduler.send(number, "failed", error)
        else:
            scheduler.add(work)


def sender(pipe: WorkerPipe) -> Callable[[int, str, Any], None]:
    """A function that sends messages, errors as what a client may read of them.

    It ends this process where an error has broken the device: the endpoint starts another one.
    """

    def send(number: int, kind: str, value: Any) -> None:
        if isinstance(value, Exception):
            end_if_broken(value)
            value = _for_clients(value)
        pipe.send(number, kind, value)

    return send


def _for_clients(error: Exception) -> dict[str, Any]:
    """An error as the arguments of an `ApiError`; the terminal shows what nobody expected."""
    if isinstance(error, ApiError):
        return vars(error)
    if isinstance(error, UserError):
        message = str(error)
    elif ran_out_of_memory(error):
        message = NO_MEMORY
    else:
        traceback.print_exception(error, file=sys.stderr)
        message = UNEXPECTED
    return vars(ApiError(503, message))
