"""Options of what leaves the project: a data set of votes, an upload. It imports nothing heavy."""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from lorarlhf.runtime.errors import UserError

if TYPE_CHECKING:
    from lorarlhf.export.hub import Target

DATASET = "dataset"
"""What `votes --export` takes beside the forms of a single file."""


def add_dataset_options(sub: ArgumentParser) -> None:
    """Add what a data set keeps of the raters, and where it is uploaded to."""
    text = "--export dataset keeps the raters' notes, in a column"
    sub.add_argument("--with-notes", action="store_true", help=text)
    text = "--export dataset keeps the raters' names, in a column and in the card"
    sub.add_argument("--with-raters", action="store_true", help=text)
    add_push_options(sub)


def add_push_options(sub: ArgumentParser) -> None:
    """Add the repository to upload to, and whether everybody may see it."""
    text = "upload the folder to this repository of the Hugging Face hub, which is private"
    sub.add_argument("--push", metavar="REPO", help=text)
    text = "everybody may see what --push uploads"
    sub.add_argument("--public", action="store_true", help=text)


def push_target(args: Namespace, kind: str) -> "Target | None":
    """Where --push uploads to, checked; None without it. Call it before any long work.

    Args:
        kind: `model` or `dataset`.

    Raises:
        UserError: --public stands alone, or the upload will not be possible.
    """
    if args.push is None:
        if args.public:
            raise UserError("--public belongs to --push REPO.")
        return None
    from lorarlhf.export.hub import check_login

    return check_login(args.push, kind, args.public)
