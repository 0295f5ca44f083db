"""The command line: one subcommand a stage. Nothing heavy is imported before a command runs."""

import argparse
import contextlib
import errno
import os
import re
import sys
import time

from lorarlhf.cli.parser import build_parser
from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import replace_nonfinite
from lorarlhf.stages.table import STAGES

CONNECTION = re.compile("gloo|NCCL|connection", re.IGNORECASE)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status (0, 2 for the user's mistakes, 1, 130)."""
    words = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without UTF-8 gets "?", not an error
            stream.reconfigure(errors="replace")
    try:
        status = _main(words)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of our output closed it
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _main(words: list[str]) -> int:
    try:
        parser = build_parser()
        args = parser.parse_args(words)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)
    except UserError as error:
        _wait_for_the_first(error)
        print(error, file=sys.stderr)
        return 2
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    args.argv = words
    debug = args.debug or os.environ.get("LORARLHF_DEBUG") == "1"
    if debug:
        _show_everything()
    try:
        return _run(args)
    except BrokenPipeError:
        raise
    except BaseException as error:
        if debug:
            import traceback

            traceback.print_exc()
        status, text = explain(error, args.command, debug)
        _wait_for_the_first(error)
        print(text, file=sys.stderr)
        return status


def _run(args: argparse.Namespace) -> int:
    from lorarlhf.cli.commands import COMMANDS

    if distributed.world_size() > 1 and args.command not in STAGES:
        raise UserError(
            f"{args.command} runs in one process: start it without accelerate launch or torchrun. "
            f"Several processes run {', '.join(STAGES)}."
        )
    if not args.json:
        result = COMMANDS[args.command](args)
        if result.text and distributed.is_main():
            print(result.text)
    else:
        import json

        # Whatever libraries or reward functions print goes to stderr: stdout holds one JSON object.
        with contextlib.redirect_stdout(sys.stderr):
            result = COMMANDS[args.command](args)
        if distributed.is_main():
            print(json.dumps(replace_nonfinite(result.data), default=str))
    return result.status


def _wait_for_the_first(error: BaseException) -> None:
    """Let one process report an error that ends several.

    When a process ends, its launcher ends the others within a tenth of a second. So the first
    process reports at once, and another one only if the first does not end. If the first knows
    only that a connection broke, it waits too, and the other one reports.
    """
    broken = isinstance(error, RuntimeError) and CONNECTION.search(str(error)) is not None
    if distributed.world_size() > 1 and (broken or not distributed.is_main()):
        time.sleep(5)


def explain(error: BaseException, command: str, debug: bool = False) -> tuple[int, str]:
    """The exit status of an exception, and one paragraph for the person at the terminal."""
    reason = " ".join(str(error).split())
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, ""  # the stopped command has logged what is kept
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in reason:
        place = getattr(error, "filename", None)
        where = f" while writing {place}" if place else ""
        return 2, (
            f"The disk is full{where}. Free some space, or name a folder on another disk (--out "
            "for the run, LORARLHF_CACHE for the base), then start again; training and demo "
            "continue with --resume."
        )
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        advice = "Close other programs, shorten the texts, or take a smaller base."
        if command in STAGES:
            smallest = STAGES[command].smallest_micro_batch
            advice = (
                f"Make a forward smaller with --set micro_batch_size={smallest}, the texts "
                "shorter, or take fewer adapter_layers."
            )
        return 1, f"{command} ran out of memory ({reason or 'no details'}). {advice}"
    again = "" if debug else " Run it again with --debug for the traceback."
    return 1, f"{command} failed: {type(error).__name__}: {reason.rstrip('.')}.{again}"


def _show_everything() -> None:
    """Undo what quiet.py silenced when the package was imported."""
    import logging
    import warnings

    os.environ["LORARLHF_DEBUG"] = "1"
    warnings.simplefilter("default")
    for logger in logging.root.manager.loggerDict.values():
        for entry in list(getattr(logger, "filters", [])):
            if type(entry).__module__ == "lorarlhf.runtime.quiet":
                logger.removeFilter(entry)  # type: ignore[union-attr]


if __name__ == "__main__":
    sys.exit(main())
