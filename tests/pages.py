"""What the tests of the rating pages share: projects, an engine on the tiny base, and a fake one.

A plugin: `pytest_plugins = ("tests.pages",)` in a test file gives its fixtures. By then the file
has imported it, which pytest would warn about: PYTEST_DONT_REWRITE.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.preferences.records import Verdict
from lorarlhf.preferences.store import Store
from lorarlhf.project.project import Project, create
from lorarlhf_ui.chat import Talking
from lorarlhf_ui.compare import Tasting
from lorarlhf_ui.engine_client import READY, Engine, Job
from lorarlhf_ui.hidden_states import FILE, HiddenStates
from lorarlhf_ui.meter import Meter
from lorarlhf_ui.prefetch import Prefetch
from lorarlhf_ui.rate import Collecting

FIRST, SECOND = Verdict("ranked", [[0], [1]]), Verdict("ranked", [[1], [0]])
FAST = ["bits=16", "compute_dtype=float32", "lora_rank=4", "adapter_layers=2"]
PROMPTS = [f"What is {number} and one more?" for number in range(8)]


def until(happened: Callable[[], Any], seconds: float = 600.0) -> Any:
    """Wait for something to be true, and give it; a model may be slow and the machine busy."""
    end = time.monotonic() + seconds
    while not (value := happened()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return value


def pair(store: Store, prompt: Any = "Why?", **more: Any) -> int:
    """An item of two answers."""
    return store.add_item(prompt, [(f"A {prompt}", "base"), (f"B {prompt}", "runs/1")], **more)


def write_prompts(space: Project, prompts: Sequence[Any]) -> None:
    rows = [json.dumps({"prompt": prompt}) for prompt in prompts]
    space.prompts.write_text("\n".join(rows) + "\n", "utf-8")


@dataclass
class Asked:
    """A question to the fake engine."""

    prompt: Any
    models: list[str]
    options: dict[str, Any]
    job: Job

    def tell(self, *texts: str) -> None:
        """More text."""
        self.job.tell(texts=list(texts))

    def end(self, *texts: str, features: Any = None) -> None:
        """The whole answers."""
        value = {"texts": list(texts), "ended": [True] * len(texts), "features": features}
        self.job.tell(texts=list(texts), value=value, done=True)

    def fail(self, error: str) -> None:
        self.job.tell(error=error, done=True)


class FakeEngine:
    """An engine whose answers the test tells, where only what is asked and when matters.

    Attributes:
        live, ahead: what was asked, of those that somebody waits for and of the others.
        write: gives the texts of what is made ahead, which otherwise waits for ever.
    """

    def __init__(self, state: str = READY) -> None:
        self.state, self.message = state, ""
        self.about = {"space": "fake"} if state == READY else {}
        self.live: list[Asked] = []
        self.ahead: list[Asked] = []
        self.stopped: list[Job] = []
        self.write: Callable[[Asked], Sequence[str]] | None = None

    def answer(self, prompt: Any, models: Sequence[str], **options: Any) -> Job:
        asked = Asked(prompt, list(models), options, Job(len(models)))
        (self.live if options.get("urgent") else self.ahead).append(asked)
        if self.write and not options.get("urgent"):
            asked.end(*self.write(asked))
        return asked.job

    def stop(self, job: Job) -> None:
        self.stopped.append(job)
        value = {"texts": job.texts, "ended": [False] * len(job.texts), "features": None}
        job.tell(value=value, done=True)


@dataclass
class Bench:
    """What `lorarlhf_ui.app.Pages` is made of, with stores of their own as there."""

    space: Project
    store: Store
    states: HiddenStates
    meter: Meter
    ahead: Prefetch
    engine: Any

    def __post_init__(self) -> None:
        self.collecting = Collecting(self.store, self.ahead, self.meter)
        self.talking = Talking(self.store, self.ahead, self.meter)
        self._tasting: Tasting | None = None

    @property
    def tasting(self) -> Tasting:
        """Begins the thread of the taste tests when first asked for."""
        self._tasting = self._tasting or Tasting(self.store, self.ahead)
        return self._tasting

    def close(self) -> None:
        self.ahead.close()
        if self._tasting:
            self._tasting.close()


@pytest.fixture
def space(tmp_path: Path) -> Project:
    """A project with eight prompts."""
    made = create(tmp_path / "project", base="tiny")
    write_prompts(made, PROMPTS)
    return made


@pytest.fixture
def open_bench(space: Project) -> Iterator[Callable[..., Bench]]:
    """`open_bench(engine, making=True)`; without `making` nothing is made ahead."""
    opened: list[Bench] = []

    def make(engine: Any = None, making: bool = True) -> Bench:
        engine = FakeEngine() if engine is None else engine
        states = HiddenStates(space.folder / FILE)
        states.use(engine.about.get("space", ""))
        ahead = Prefetch(space, space.store(), FakeEngine("off") if not making else engine, states)
        if not making:
            stop_thread(ahead)
            ahead.engine = engine
        meter = Meter(space.store(), states)
        opened.append(Bench(space, space.store(), states, meter, ahead, engine))
        return opened[-1]

    yield make
    for bench in opened:
        bench.close()


def stop_thread(ahead: Prefetch) -> None:
    """End the thread that makes answers ahead."""
    ahead.close()
    for thread in threading.enumerate():
        if getattr(getattr(thread, "_target", None), "__self__", None) is ahead:
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


def add_run(space: Project, name: str, adapter: Path | None = None, role: str = "policy") -> None:
    """A finished run with a role; an empty folder of it where no adapter is named."""
    folder = space.folder / "runs" / name
    (folder / "adapters").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": "done", "stage": name.split("-")[1]}))
    place = folder / "adapters" / role
    if adapter is None:
        place.mkdir()
        (place / "adapter_config.json").write_text("{}")
    else:
        place.symlink_to(adapter, target_is_directory=True)
