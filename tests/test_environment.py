"""What importing the package sets, and what it leaves to the user."""

import os
import subprocess
import sys

import pytest

SHOWN = "import os, lorarlhf; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "None")],
)
def test_waiting_threads_spin_little_unless_the_user_says_otherwise(
    given: dict[str, str], wanted: str
) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    others = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", SHOWN],
        env=others | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == wanted


def test_wandb_does_not_send_what_is_printed_unless_the_user_says_so() -> None:
    shown = "import os, lorarlhf; print(os.environ['WANDB_CONSOLE'])"
    others = {name: value for name, value in os.environ.items() if name != "WANDB_CONSOLE"}
    for given, wanted in ({}, "off"), ({"WANDB_CONSOLE": "auto"}, "auto"):
        command = [sys.executable, "-c", shown]
        done = subprocess.run(command, env=others | given, capture_output=True, text=True)
        assert done.stdout.strip() == wanted
