"""The one error type that is shown to a person instead of a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A problem that the user can fix: a bad file or option, no disk space, no network.

    The message is one paragraph that says what is wrong, where (file, line, field) and what to
    do. The command line prints it to standard error and exits with status 2.
    """


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """End a script with the message of a `UserError` raised inside, and status 2."""
    try:
        yield
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
