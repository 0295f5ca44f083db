"""`python -m lorarlhf.cli`, as `accelerate launch` starts it."""

import sys

from lorarlhf.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
