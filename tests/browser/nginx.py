"""Finds nginx for the test of the pages behind a proxy, or installs Debian's package.

`make test` runs this file before the tests, so that none of them is skipped:
`python -m tests.browser.nginx`.
"""

import os
import shutil
import sys

from tests.browser import chromium

# Debian puts it where only root's PATH leads.
PLACES = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))


def find() -> str | None:
    """The path of nginx, or None. Installs nothing."""
    return shutil.which("nginx", path=PLACES)


def main() -> int:
    """Install nginx if there is none."""
    if find() is not None:
        return 0
    problem = chromium.install_package("nginx")
    if find() is not None:
        return 0
    print(
        f"The test behind a proxy needs nginx, and there is none: {problem or 'it was installed'}. "
        "Install it (Debian and Ubuntu: sudo apt-get install nginx).",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
