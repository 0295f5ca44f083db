"""The command `serve`: an OpenAI-compatible endpoint for a project or a run."""

import importlib
from argparse import ArgumentParser, Namespace

from lorarlhf.cli.result import Result
from lorarlhf.runtime.errors import UserError

PORT = 7870


def add_serve_options(sub: ArgumentParser) -> None:
    """The options of `serve`."""
    text = "a project's folder, whose newest policy answers by default; or a run's folder"
    sub.add_argument("target", metavar="PROJECT|RUN", help=text)
    text = "an address of this machine that others reach, or 0.0.0.0; they then need the key"
    sub.add_argument("--host", default="127.0.0.1", help=f"{text} (default: this machine alone)")
    text = f"0: any free one (default: {PORT})"
    sub.add_argument("--port", type=int, default=PORT, help=text)
    text = "a file with the key that requests need; with --host one is made if none is named"
    sub.add_argument("--key-file", metavar="FILE", help=text)
    text = "let the pages of this site use the endpoint from a browser; may be repeated"
    sub.add_argument("--cors", metavar="ORIGIN", action="append", default=[], help=text)
    text = "remember no answers, and take no thumbs"
    sub.add_argument("--no-feedback", action="store_true", help=text)
    text = "answers that are written at once, at most (default: 16)"
    sub.add_argument("--rows", type=int, default=16, metavar="N", help=text)
    text = "requests that may wait beyond these (default: 64)"
    sub.add_argument("--waiting", type=int, default=64, metavar="N", help=text)


def serve(args: Namespace) -> Result:
    """The endpoint, until Ctrl-C."""
    # Imported here and by name, since the other commands need none of its libraries.
    try:
        server = importlib.import_module("lorarlhf.serve.server")
    except ModuleNotFoundError as error:
        raise UserError(
            f"The endpoint needs {error.name}, which is not installed. `lorarlhf doctor` names the "
            "command that installs it."
        ) from error
    options = server.Options(
        target=args.target,
        host=args.host,
        port=args.port,
        key_file=args.key_file,
        origins=tuple(args.cors),
        feedback=not args.no_feedback,
        rows=args.rows,
        waiting=args.waiting,
        sets=tuple(args.set),
    )
    server.serve(options)
    return Result({"target": args.target})
