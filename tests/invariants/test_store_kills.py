"""Four writers are killed 24 times between them: no vote that was acknowledged is missing."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorarlhf.preferences.store import Store

WRITERS, KILLS, VOTES = 4, 24, 5000
WRITER = """
import os, sys
from lorarlhf.preferences.records import Verdict
from lorarlhf.preferences.store import Store

path, name, acknowledged = sys.argv[1:]
store = Store(path)
log = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
item = store.add_item("Why?", [("Because.", "base"), ("No idea.", "policy")])
while True:
    shown = store.present(item, name)
    number = store.judge(shown.token, Verdict("ranked", [[shown.shown[0]], [shown.shown[1]]]))
    os.write(log, f"{number} {shown.token}\\n".encode())  # only now does anybody count on it
"""


@pytest.mark.slow
def test_no_acknowledged_vote_is_lost_over_24_kills(tmp_path: Path) -> None:
    path, chance = tmp_path / "preferences.sqlite", random.Random(0)
    logs = [tmp_path / f"acknowledged-{number}" for number in range(WRITERS)]

    def start(number: int) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", WRITER, str(path), f"rater {number}", str(logs[number])]
        return subprocess.Popen(words)

    def acknowledged() -> list[str]:
        whole = [log.read_text() for log in logs if log.exists()]
        # A kill may tear the log's last line; what it says was acknowledged to nobody.
        return [line for text in whole for line in text[: text.rfind("\n") + 1].splitlines()]

    writers = [start(number) for number in range(WRITERS)]
    killed = 0
    deadline = time.monotonic() + 600
    try:
        while killed < KILLS or len(acknowledged()) < VOTES:
            time.sleep(chance.uniform(0.1, 0.5))
            assert time.monotonic() < deadline, f"{killed} kills, {len(acknowledged())} votes"
            if killed < KILLS:
                number = chance.randrange(WRITERS)
                os.kill(writers[number].pid, signal.SIGKILL)
                assert writers[number].wait() == -signal.SIGKILL  # it had not died by itself
                writers[number] = start(number)
                killed += 1
            assert all(writer.poll() is None for writer in writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()

    store = Store(path)
    assert store._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    rows = store._db.execute(
        "SELECT j.id || ' ' || p.token FROM judgement j "
        "JOIN presentation p ON p.id = j.presentation_id"
    )
    there = {row[0] for row in rows}
    promised = acknowledged()
    assert len(promised) >= VOTES
    missing = set(promised) - there
    assert missing == set()
    assert len(there) - len(promised) <= KILLS + WRITERS  # kept, and killed before they were told
    assert store.count() == len(there)
