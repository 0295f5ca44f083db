"""A copy of the store's file alone, without the log beside it, has every vote."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from lorarlhf.preferences.records import Verdict
from lorarlhf.preferences.store import Store
from lorarlhf.project.project import create
from lorarlhf_ui.app import open_pages

FIRST = Verdict("ranked", [[0], [1]])
ENDS = 24
WRITER = """
import os, sys
from lorarlhf.preferences.records import Verdict
from lorarlhf.preferences.store import Store

path, acknowledged = sys.argv[1:]
store, others = Store(path), [Store(path) for _ in range(3)]
log = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    item = store.add_item("Why?", [("Because.", "base"), ("No idea.", "policy")])
    shown = store.present(item, "ann")
    for other in others:
        other.count()
    store.judge(shown.token, Verdict("ranked", [[0], [1]]))
    os.write(log, f"{shown.token}\\n".encode())  # only now does anybody count on it
"""


def vote(store: Store, number: int) -> str:
    item = store.add_item(f"{number}?", [("Because.", "base"), ("No idea.", "policy")])
    shown = store.present(item, "ann")
    store.judge(shown.token, FIRST)
    return shown.token


def tokens_in_a_copy(path: Path, copies: Path) -> set[str]:
    """The tokens of all votes in a copy of the file alone."""
    copy = copies / f"copy-{len(list(copies.iterdir()))}.sqlite"
    shutil.copyfile(path, copy)
    with closing(sqlite3.connect(copy)) as db:
        rows = db.execute(
            "SELECT p.token FROM judgement j JOIN presentation p ON p.id = j.presentation_id"
        )
        return {row[0] for row in rows}


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    folder = tmp_path / "copies"
    folder.mkdir()
    return folder


def test_after_each_vote_while_others_have_it_open(tmp_path: Path, copies: Path) -> None:
    path, cast = tmp_path / "preferences.sqlite", set[str]()
    store, other = Store(path), Store(path)
    for number in range(20):
        cast.add(vote(store, number))
        assert other.count() == number + 1
        assert tokens_in_a_copy(path, copies) == cast


def test_after_24_clean_stops_of_the_pages(tmp_path: Path, copies: Path) -> None:
    project, cast = create(tmp_path / "project"), set[str]()
    for number in range(ENDS):
        pages = open_pages(project, None)
        cast |= {vote(pages.store, 3 * number + n) for n in range(3)}
        pages.meter.store.count()  # as the pages' other connections do
        pages.close()
        assert tokens_in_a_copy(pages.store.path, copies) == cast


@pytest.mark.slow
def test_after_24_kills(tmp_path: Path, copies: Path) -> None:
    path, log, chance = tmp_path / "preferences.sqlite", tmp_path / "log", random.Random(0)
    Store(path).close()
    promised = 0
    for _ in range(ENDS):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(log)])
        enough = promised + 5  # votes before each kill, however slow the machine is
        while not log.exists() or log.read_text().count("\n") < enough:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.1))
        os.kill(writer.pid, signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        tokens = log.read_text().split("\n")[:-1]
        assert set(tokens) - tokens_in_a_copy(path, copies) == set()
        promised = len(tokens)
    assert promised >= 5 * ENDS
