"""The options of the command `round`. It imports nothing heavy."""

from argparse import ArgumentParser


def add_round_options(sub: ArgumentParser) -> None:
    """Add the project, what to do with a finished round, and what a new one is made with."""
    sub.add_argument("project", metavar="PROJECT", help="the project's folder")
    one = sub.add_mutually_exclusive_group()
    text = "keep the newest round, or round N: later rounds start from its policy"
    one.add_argument("--keep", metavar="N", nargs="?", type=int, const=0, help=text)
    text = "drop it: later rounds do not start from it, and its votes are free for the next one"
    one.add_argument("--drop", metavar="N", nargs="?", type=int, const=0, help=text)
    one.add_argument(
        "--list", action="store_true", help="all rounds, and the card of the newest one"
    )
    text = "start even with too few new votes, or before the last round is kept or dropped"
    sub.add_argument("--anyway", action="store_true", help=text)
    text = "continue a stopped round; the command does that without this option, too"
    sub.add_argument("--resume", action="store_true", help=text)
    text = "settings of the stages (default: round.yaml in the project, if there is one)"
    sub.add_argument("--config", metavar="FILE.yaml", help=text)
    text = "one setting of the method, or STAGE.KEY=VALUE as in reward.epochs=0; may be repeated"
    sub.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help=text)
    text = "a Python function that judges the answers; may be repeated"
    sub.add_argument(
        "--judge-function", metavar="FILE.py:NAME", action="append", default=[], help=text
    )
    text = "another local model that judges the answers"
    sub.add_argument("--judge-model", metavar="BASE", help=text)
    text = "start even if the memory seems too small"
    sub.add_argument("--no-memory-check", action="store_true", help=text)
    add_queue_option(sub)


def add_queue_option(sub: ArgumentParser) -> None:
    """Add the option that makes a job of the command."""
    text = "start it as a job: it waits for its turn on the device, and outlives this terminal"
    sub.add_argument("--queue", action="store_true", help=text)
