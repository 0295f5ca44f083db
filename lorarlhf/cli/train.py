"""The training commands: from a request to a finished run folder.

Everything that can be checked without the base is checked before it is loaded. Earlier results in
the run's folder are kept.
"""

import contextlib
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lorarlhf.cli.prepare import Prepared, load, prepare
from lorarlhf.cli.project_defaults import fill_in, remove_reserved
from lorarlhf.cli.request import TrainRequest
from lorarlhf.evaluation.report import write_report
from lorarlhf.project.settings_sources import SettingValue
from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_json
from lorarlhf.runtime.lock import hold
from lorarlhf.runtime.run import Run, earlier_sessions
from lorarlhf.runtime.run_folder import (
    IN_USE,
    archive_earlier_run,
    check_same_rows,
    drop_later_rows,
    log_changed_settings,
    restore_earlier_run,
)
from lorarlhf.runtime.terminal import as_typed, launch_command, log_to_stderr

Row = dict[str, Any]


def train(args: Namespace) -> Row:
    """Run the training stage of a command; returns the summary.

    Raises:
        UserError: something is wrong with the files, settings or runs.
        KeyboardInterrupt: after noting in `run.json` that the run was stopped.
    """
    distributed.initialize()
    request, project = distributed.broadcast_from_main(lambda: fill_in(TrainRequest.of(args)))
    try:
        done = _train(request, project)
    finally:
        if distributed.is_main():
            remove_reserved(request)
    distributed.shut_down()
    return done


def _train(request: TrainRequest, project: list[SettingValue]) -> Row:
    started = time.time()
    prepared = prepare(request, project)
    with _held(request.folder):
        backbone = load(prepared)
        # Only now: after a mistake in the request an earlier run in the folder stays as it is.
        run, kept = _open_run(prepared)
        run.started = started
        run.base(backbone)
        if prepared.estimate is not None:
            run.about["expected_mb"] = round(prepared.estimate.parts["total"] / 1e6, 1)
        with _recorded(run, request, kept):
            summary = request.stage.train(backbone, run, prepared.inputs)
        finished = run.finish("done", summary | {"out": str(run.folder)})
        _write_results(run, finished)
    return finished


def _held(folder: Path) -> AbstractContextManager[None]:
    """Keep other commands out of the run's folder; of several processes the first one does."""
    if not distributed.is_main():
        return contextlib.nullcontext()
    return hold(folder, IN_USE)


def _open_run(prepared: Prepared) -> tuple[Run, Path | None]:
    """The run, and the folder in which an earlier run of its folder is kept."""
    kept, earlier = None, dict[str, Any]()
    request, config = prepared.request, prepared.record()
    folder, stage = request.folder, request.stage.name
    try:
        if distributed.is_main():
            if request.resume:
                check_same_rows(folder, prepared.fingerprints)
                earlier = earlier_sessions(folder)
                log_changed_settings(folder, config)
                drop_later_rows(folder, stage)
            else:
                kept = archive_earlier_run(folder)
        distributed.barrier()
    except OSError as error:
        raise UserError(
            f"The output folder {folder} can't be written ({error.strerror}). Name another one "
            "with --out."
        ) from error
    run = Run(folder, stage, config, request.minutes, earlier, prepared.fingerprints)
    return run, kept


@contextlib.contextmanager
def _recorded(run: Run, request: TrainRequest, kept: Path | None) -> Iterator[None]:
    """Note in `run.json` how the run ended, even if it failed.

    Args:
        kept: an earlier run, which comes back if this one fails before it has any result.
    """
    try:
        yield
    except KeyboardInterrupt:
        _close_bars()
        run.finish("stopped")
        _say_how_to_resume(run, request)
        raise
    except BaseException:
        _close_bars()
        with contextlib.suppress(OSError):  # a full disk must not hide the first error
            run.finish("failed")
            if kept is not None:
                restore_earlier_run(run.folder, kept)
        raise


def _say_how_to_resume(run: Run, request: TrainRequest) -> None:
    command = as_typed([*launch_command(), *(a for a in request.argv if a != "--resume")])
    if not any((run.folder / "checkpoints").glob("checkpoint-*")):
        log_to_stderr("Stopped before anything was saved; the same command starts again.")
    elif distributed.node_count() > 1:
        log_to_stderr("Stopped. To resume, give the same command with --resume on every machine.")
    else:
        log_to_stderr(f"Stopped. To resume where it ended:\n  {command} --resume")


def _close_bars() -> None:
    """End the line of an interrupted progress bar, so the next message starts on a new line."""
    from tqdm import tqdm

    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def _write_results(run: Run, summary: Row) -> None:
    if not distributed.is_main():
        return
    write_json(run.folder / "summary.json", summary)
    try:
        report = write_report(run.folder)
        log_to_stderr(f"Report: {report}")
    except UserError as error:  # the training is done and saved; only its page is missing
        log_to_stderr(str(error))
