"""The answering model makes room for a job, and comes back after it."""

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from lorarlhf.project import device_queue
from lorarlhf.project.project import Project
from lorarlhf.project.settings import resolve
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui import engine_rest
from lorarlhf_ui.engine_client import BASE, FAILED, OFF, READY, RESTING, STARTING, Engine
from lorarlhf_ui.engine_rest import EngineRest, resting_words
from tests.pages import FAST, Bench, FakeEngine, until

pytest_plugins = ("tests.pages",)
PROMPT = [{"role": "user", "content": "Name three quiet hobbies."}]
LONG = 600


def ask(engine: Engine, tokens: int = 12) -> Any:
    return engine.answer(PROMPT, [BASE], temperature=1.0, max_new_tokens=tokens)


@pytest.fixture
def own(tiny_base: Path) -> Iterator[Engine]:
    """An engine of this test's own."""
    made = Engine(partial(resolve, "chat", sets=FAST, flags={"base": str(tiny_base)}))
    yield made
    made.close()


def test_an_engine_rests_and_wakes(own: Engine) -> None:
    first = own.inspect().wait(LONG)["pid"]
    process = own.process
    job = ask(own, tokens=4000)
    own.rest("A run needs the memory.")
    assert own.state == RESTING and not process.is_alive()
    for asked in (job, ask(own)):
        with pytest.raises(UserError, match=r"A run needs the memory\."):
            asked.wait(5)
    own.rest("Another run needs it.")
    assert own.message == "Another run needs it."
    own.wake()
    assert own.state in (STARTING, READY) and own.message == ""
    own.wake()  # nothing to do
    about = own.inspect().wait(LONG)
    assert own.state == READY and about["pid"] != first and about["copies"] == 1
    assert ask(own).wait(LONG)["texts"]


def test_an_engine_rests_while_it_loads(own: Engine) -> None:
    own.rest("Not now.")
    time.sleep(0.1)
    assert own.state == RESTING
    own.wake()
    assert own.inspect().wait(LONG)


def test_an_engine_may_begin_at_rest(tiny_base: Path) -> None:
    settings = partial(resolve, "chat", sets=FAST, flags={"base": str(tiny_base)})
    engine = Engine(settings, resting="A run needs the memory.")
    assert engine.state == RESTING and not hasattr(engine, "process")
    engine.close()
    off = Engine(None, resting="A run needs the memory.")
    assert off.state == OFF and off.message == ""  # it would stay there for good


def test_the_last_words_of_a_process_that_made_room_change_nothing() -> None:
    ready: list[Any] = []
    engine = Engine(None, on_ready=ready.append, on_failed=ready.append)
    connection = engine._connection = object()
    for state in (RESTING, OFF):
        engine.state = state
        engine._loaded(connection, "ready", {"base": "x"})
        engine._loaded(connection, "failed", "no memory")
        assert (engine.state, engine.about, engine.message, ready) == (state, {}, "", [])
    engine.state = STARTING
    engine._loaded(object(), "ready", {"base": "of an earlier process"})
    assert engine.state == STARTING and ready == []
    engine._loaded(connection, "ready", {"base": "x"})
    assert engine.state == READY and ready == [{"base": "x"}]


def test_a_base_that_could_not_be_loaded_is_loaded_again(tiny_base: Path, tmp_path: Path) -> None:
    settings = partial(resolve, "chat", sets=FAST, flags={"base": str(tmp_path / "base")})
    engine = Engine(settings, resting="Not now.")
    engine.load_again()  # it has not failed
    assert engine.state == RESTING
    engine.wake()
    until(lambda: engine.state == FAILED, 60)
    assert engine.load_failed and "base" in engine.message
    copytree(tiny_base, tmp_path / "base")
    engine.load_again()
    assert engine.inspect().wait(LONG) and engine.state == READY and not engine.load_failed
    engine.process.kill()  # that is no failed load
    until(lambda: engine.state == FAILED, 60)
    engine.load_again()
    assert engine.state == FAILED and not engine.load_failed
    engine.close()


class Sleeper:
    """What `EngineRest` needs of an engine."""

    def __init__(self, state: str) -> None:
        self.state, self.message, self.loads = state, "", 0

    def load_again(self) -> None:
        self.loads += 1

    def rest(self, message: str) -> None:
        if self.state in (STARTING, READY, RESTING):
            self.state, self.message = RESTING, message

    def wake(self) -> None:
        self.state, self.message = STARTING, ""


def test_it_rests_while_a_job_of_any_project_has_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORARLHF_CACHE", str(tmp_path))
    woken: list[int] = []
    engine: Any = Sleeper(READY)
    rest = EngineRest(engine, tmp_path / "mine", woken=lambda: woken.append(1))
    assert engine.state == READY and len(device_queue.models()) == 1 and resting_words() == ""
    with device_queue.held("1.json", tmp_path / "other", 1, "A training"):
        until(lambda: engine.state == RESTING, 60)
        assert "rests while a training runs" in engine.message
        assert "Pairs that wait can be rated" in engine.message
        until(lambda: not device_queue.models(), 60)  # now the job begins
    until(lambda: engine.state == STARTING, 60)
    until(lambda: len(device_queue.models()) == 1, 60)
    assert woken == [1]
    rest.close()
    assert device_queue.models() == []
    off: Any = Sleeper(OFF)
    EngineRest(off, tmp_path / "mine").close()
    assert off.state == OFF and device_queue.models() == []


def test_after_a_rest_a_failed_load_is_tried_again_from_time_to_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORARLHF_CACHE", str(tmp_path))
    monkeypatch.setattr(engine_rest, "LOOK_SECONDS", 1e6)  # only when the test looks
    engine: Any = Sleeper(FAILED)
    rest = EngineRest(engine, tmp_path / "mine")
    monkeypatch.setattr(engine_rest, "AGAIN_SECONDS", -1.0)
    rest.look()
    assert engine.loads == 0  # it has never loaded: its base may be a wrong one
    engine.state = RESTING
    rest.look()
    engine.state = FAILED
    rest.look()
    rest.look()
    assert engine.loads == 2
    monkeypatch.setattr(engine_rest, "AGAIN_SECONDS", 60.0)
    rest.look()
    assert engine.loads == 2
    rest.close()


def test_a_killed_job_does_not_keep_it_at_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORARLHF_CACHE", str(tmp_path))
    with device_queue.held("1.json", tmp_path / "other", 1, "A training") as ticket:
        content = json.loads(ticket.file.read_text())
        content["processes"][0]["mark"] = "before the reboot"
        ticket.file.write_text(json.dumps(content))
        assert resting_words() == "" and not ticket.file.exists()


def test_the_rate_page_says_that_it_rests_and_takes_votes(
    open_bench: Callable[..., Bench], project: Project
) -> None:
    engine = FakeEngine(RESTING)
    engine.message = "The answering model rests."
    bench = open_bench(engine)
    bench.store.add_item("A fish?", [("A cod.", "base"), ("An eel.", "base")])
    shown = bench.ratings.begin("ann")
    assert shown["rests"] == engine.message and shown["answers"]
    verdict = {"verdict": "ranked", "ranking": [[0], [1]]}
    reply = bench.ratings.vote("ann", shown["token"], verdict)
    assert reply["voted"] and reply["empty"] == reply["wait"] == "The answering model rests."
    assert bench.prefetch.problem == "" and not engine.prefetched
    compared = bench.comparisons.begin("ann")
    assert "empty" in compared
