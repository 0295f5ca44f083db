"""The options of the commands `votes`, `runs` and `jobs`. It imports nothing heavy."""

from argparse import ArgumentParser

from lorarlhf.cli.push_options import DATASET, add_dataset_options

# What preferences/exports.py writes; a test compares it.
EXPORT_FORMS = (
    *("own", "trl", "trl-plain", "kto", "hh", "sharegpt", "arena", "argilla", "demonstrations"),
)


def add_votes_options(sub: ArgumentParser) -> None:
    """Add the project, the files that go in and out, and what is exported."""
    sub.add_argument("project", metavar="PROJECT", help="the project's folder")
    one = sub.add_mutually_exclusive_group()
    text = "add the votes of a file, or of all files in a folder, each once: an export of ours, "
    text += "TRL, KTO, HH, Argilla, Open WebUI's feedback, chats of SillyTavern, ..."
    one.add_argument("--import", dest="import_file", metavar="FILE", help=text)
    text = f"write the votes for others: own (everything), {', '.join(EXPORT_FORMS[1:])}; or "
    text += f"{DATASET}, a folder with TRL's rows and a card"
    one.add_argument("--export", metavar="FORM", choices=(*EXPORT_FORMS, DATASET), help=text)
    one.add_argument(
        "--backup", metavar="FILE.sqlite", help="copy the store, even while it is in use"
    )
    sub.add_argument(
        "--answers", metavar="FILE", help="for LLMFAO: the file of the pairs that were judged"
    )
    text = "--import leaves out rows that it can't read, and names them"
    sub.add_argument("--skip-bad", action="store_true", help=text)
    text = "where --export writes: a new file, for a data set a new folder"
    sub.add_argument("--out", metavar="FILE.jsonl", help=text)
    text = "what --export writes (default: train)"
    sub.add_argument("--purpose", choices=("train", "compare", "all"), help=text)
    sub.add_argument("--rater", metavar="NAME", help="--export this rater's votes only")
    add_dataset_options(sub)


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
