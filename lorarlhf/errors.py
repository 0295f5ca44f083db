"""The one error type that is shown to a person instead of a traceback."""


class UserError(Exception):
    """A mistake the user can mend: bad file, bad option, missing disk space, no network.

    The message is one paragraph that says what is wrong, where (file, line, field) and what to
    do. The command line prints it to standard error and exits with status 2.
    """
