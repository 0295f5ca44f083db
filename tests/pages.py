"""What the tests of the pages share: projects, an engine on the tiny base, and a fake engine.

A plugin: `pytest_plugins = ("tests.pages",)` in a test file provides the fixtures. The file imports
this module first, and pytest would warn about that: PYTEST_DONT_REWRITE.
"""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.preferences.records import Verdict
from lorarlhf.preferences.store import Store
from lorarlhf.project.project import Project, create
from lorarlhf_ui.chat import Conversations
from lorarlhf_ui.compare import Comparisons
from lorarlhf_ui.engine_client import READY, Engine, Job
from lorarlhf_ui.hidden_states import FILE, HiddenStates
from lorarlhf_ui.meter import Meter
from lorarlhf_ui.prefetch import Prefetch
from lorarlhf_ui.rate import Ratings
from tests.forked import start_engines_here
from tests.waiting import until

__all__ = ["until"]
FIRST, SECOND = Verdict("ranked", [[0], [1]]), Verdict("ranked", [[1], [0]])
FAST = ["bits=16", "compute_dtype=float32", "lora_rank=4", "adapter_layers=2"]
PROMPTS = [f"What is {number} and one more?" for number in range(8)]


start_engines_here()


def pair(store: Store, prompt: Any = "Why?", **more: Any) -> int:
    """An item of two answers."""
    return store.add_item(prompt, [(f"A {prompt}", "base"), (f"B {prompt}", "runs/1")], **more)


def write_prompts(project: Project, prompts: Sequence[Any]) -> None:
    rows = [json.dumps({"prompt": prompt}) for prompt in prompts]
    project.prompts.write_text("\n".join(rows) + "\n", "utf-8")


@dataclass
class Request:
    """A request for answers that the fake engine received."""

    prompt: Any
    models: list[str]
    options: dict[str, Any]
    job: Job

    def write(self, *texts: str) -> None:
        """Set the text of the answers so far."""
        self.job.update(texts=list(texts))

    def end(self, *texts: str, features: Any = None) -> None:
        """Complete the answers."""
        value = {"texts": list(texts), "ended": [True] * len(texts), "features": features}
        self.job.update(texts=list(texts), value=value, done=True)

    def fail(self, error: str) -> None:
        self.job.update(error=error, done=True)


class FakeEngine:
    """An engine whose answers the test writes.

    Attributes:
        live, prefetched: the requests that a rater waits for, and the others.
        write: returns the texts of prefetched answers; without it they never end.
    """

    def __init__(self, state: str = READY) -> None:
        self.state, self.message = state, ""
        self.about = {"space": "fake"} if state == READY else {}
        self.live: list[Request] = []
        self.prefetched: list[Request] = []
        self.stopped: list[Job] = []
        self.write: Callable[[Request], Sequence[str]] | None = None

    def answer(self, prompt: Any, models: Sequence[str], **options: Any) -> Job:
        request = Request(prompt, list(models), options, Job(len(models)))
        (self.live if options.get("urgent") else self.prefetched).append(request)
        if self.write and not options.get("urgent"):
            request.end(*self.write(request))
        return request.job

    def stop(self, job: Job) -> None:
        self.stopped.append(job)
        value = {"texts": job.texts, "ended": [False] * len(job.texts), "features": None}
        job.update(value=value, done=True)


@dataclass
class Bench:
    """The parts of `lorarlhf_ui.app.Pages`, each with the store that it has there."""

    project: Project
    store: Store
    states: HiddenStates
    meter: Meter
    prefetch: Prefetch
    engine: Any

    def __post_init__(self) -> None:
        self.ratings = Ratings(self.store, self.prefetch, self.meter)
        self.conversations = Conversations(self.store, self.prefetch, self.meter)
        self._comparisons: Comparisons | None = None

    @property
    def comparisons(self) -> Comparisons:
        """Their thread starts at the first use."""
        self._comparisons = self._comparisons or Comparisons(self.store, self.prefetch)
        return self._comparisons

    def close(self) -> None:
        self.prefetch.close()
        if self._comparisons:
            self._comparisons.close()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with eight prompts."""
    made = create(tmp_path / "project", base="tiny")
    write_prompts(made, PROMPTS)
    return made


@pytest.fixture
def open_bench(project: Project) -> Iterator[Callable[..., Bench]]:
    """`open_bench(engine, prefetching=True)`; without `prefetching` no items are made."""
    opened: list[Bench] = []

    def make(engine: Any = None, prefetching: bool = True) -> Bench:
        engine = FakeEngine() if engine is None else engine
        states = HiddenStates(project.folder / FILE)
        states.use(engine.about.get("space", ""))
        started = engine if prefetching else FakeEngine("off")
        prefetch = Prefetch(project, project.store(), started, states)
        if not prefetching:
            stop_thread(prefetch)
            prefetch.engine = engine
        meter = Meter(project.store(), states, learned=prefetch.learn)
        opened.append(Bench(project, project.store(), states, meter, prefetch, engine))
        return opened[-1]

    yield make
    for bench in opened:
        bench.close()


def stop_thread(prefetch: Prefetch) -> None:
    """End the thread that makes items."""
    prefetch.close()
    for thread in threading.enumerate():
        if getattr(getattr(thread, "_target", None), "__self__", None) is prefetch:
            thread.join()


@pytest.fixture(scope="session")
def engine(tiny_base: Path) -> Iterator[Engine]:
    """The real process with the tiny base."""
    from lorarlhf.project.settings import resolve

    engine = Engine(partial(resolve, "chat", sets=FAST, flags={"base": str(tiny_base)}))
    engine.inspect().wait(600)
    yield engine
    assert engine.inspect().wait(600)["copies"] == 1
    engine.close()


@pytest.fixture(scope="session")
def policies(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapter folders of two policies and a reward that differ."""
    import torch

    from lorarlhf import Backbone

    folder = tmp_path_factory.mktemp("adapters")
    backbone = Backbone.load(
        str(tiny_base), bits=16, compute_dtype="float32", lora_rank=4, adapter_layers=2
    )
    for number in range(2):
        for weight in backbone.parameters_of("policy"):
            torch.nn.init.normal_(weight, std=0.3)
        backbone.save("policy", folder / str(number))
    backbone.add_role("reward")
    torch.nn.init.normal_(backbone.heads["reward"].weight)
    backbone.save("reward", folder / "reward")
    return [folder / name for name in ("0", "1", "reward")]


def add_run(project: Project, name: str, adapter: Path | None = None, role: str = "policy") -> None:
    """A finished run with a role; without `adapter` the role is an empty folder."""
    folder = project.folder / "runs" / name
    (folder / "adapters").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": "done", "stage": name.split("-")[1]}))
    place = folder / "adapters" / role
    if adapter is None:
        place.mkdir()
        (place / "adapter_config.json").write_text("{}")
    else:
        place.symlink_to(adapter, target_is_directory=True)
