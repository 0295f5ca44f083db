"""The options of the commands `runs` and `jobs`. It imports nothing heavy."""

from argparse import ArgumentParser


def add_runs_options(sub: ArgumentParser) -> None:
    """Add the project, and one change of a run."""
    sub.add_argument("project", metavar="PROJECT", help="the project's folder")
    one = sub.add_mutually_exclusive_group()
    text = 'call a run by a title of your own; "" takes it away'
    one.add_argument("--rename", nargs=2, metavar=("RUN", "TITLE"), help=text)
    text = "hide a run from all lists of models; no command starts from it by itself"
    one.add_argument("--drop", metavar="RUN", help=text)
    one.add_argument("--keep", metavar="RUN", help="bring a dropped run back")
    text = "remove a run's folder for good, unless something depends on it"
    one.add_argument("--delete", metavar="RUN", help=text)


def add_jobs_options(sub: ArgumentParser) -> None:
    """Add the project, and what to do with one of its jobs."""
    sub.add_argument("project", metavar="PROJECT", help="the project's folder")
    one = sub.add_mutually_exclusive_group()
    text = "end this job after the running step; again: at once"
    one.add_argument("--stop", type=int, metavar="ID", help=text)
    text = "let this job go on that was stopped, interrupted, or failed"
    one.add_argument("--resume", type=int, metavar="ID", help=text)
