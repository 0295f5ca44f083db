"""The order in which answers are sampled: batches, turns of models, adapters, requests that end."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf import Backbone
from lorarlhf.backbone.generation import generate
from lorarlhf.runtime.errors import UserError
from lorarlhf.serve import scheduler as module
from lorarlhf.serve.scheduler import BASE, SLOTS, Scheduler
from lorarlhf.serve.work import Work
from tests.served import HI

Sent = list[tuple[int, str, Any]]


@pytest.fixture(scope="module")
def runs(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Folders of six policies that differ, one more than there are places."""
    folder = tmp_path_factory.mktemp("runs")
    backbone = loaded(tiny_base)
    for number in range(len(SLOTS) + 2):
        for weight in backbone.parameters_of("policy"):
            torch.nn.init.normal_(weight, std=0.3)
        backbone.save("policy", folder / f"{number}")
    return [str(folder / f"{number}") for number in range(len(SLOTS) + 2)]


def loaded(base: Path) -> Backbone:
    return Backbone.load(str(base), bits=16, compute_dtype="float32", lora_rank=4)


class Bench:
    """A scheduler, and what it has sent."""

    def __init__(self, base: Path, rows: int = 16) -> None:
        self.backbone, self.sent, self.count = loaded(base), Sent(), 0
        self.scheduler = Scheduler(self.backbone, lambda *said: self.sent.append(said), rows)

    def add(self, model: str = BASE, tokens: int = 12, n: int = 1, **more: Any) -> int:
        self.count += 1
        wanted = {"prompt": HI, "model": model, "reward": "", "n": n, "best_of": 1, "stops": ()}
        wanted |= {"seed": 1, "temperature": 1.0, "top_p": 1.0, "max_tokens": tokens} | more
        self.scheduler.add(Work(self.backbone, self.count, wanted, 500))
        return self.count

    def run(self, steps: int = 10_000) -> None:
        for _ in range(steps):
            if self.scheduler.idle:
                return
            self.scheduler.step()
        assert steps < 10_000, "it goes on for ever"

    def numbers(self, kind: str) -> list[int]:
        return [number for number, what, _ in self.sent if what == kind]

    def texts(self, number: int) -> list[str]:
        (result,) = (value for n, what, value in self.sent if (n, what) == (number, "done"))
        return result["texts"]


def alone(backbone: Backbone, model: str, tokens: int = 12) -> str:
    """What a model answers by itself."""
    if model != BASE:
        backbone.load_role("policy", model)
    role = BASE if model == BASE else "policy"
    (answer,) = generate(
        backbone, [HI], role=role, max_new_tokens=tokens, temperature=1.0, seed=1, batch_size=1
    )
    return answer.text


def test_more_models_than_places_answer_as_each_alone(tiny_base: Path, runs: list[str]) -> None:
    bench = Bench(tiny_base)
    models = [BASE, *runs, runs[0], BASE]
    numbers = [bench.add(model) for model in models]
    bench.run()
    gc.collect()  # the base that wrote the runs
    assert bench.backbone.footprint.copies() == 1
    other = loaded(tiny_base)
    wanted = {model: alone(other, model) for model in models}
    assert [bench.texts(number) for number in numbers] == [[wanted[model]] for model in models]
    assert len(set(wanted.values())) == len(wanted)
    assert bench.numbers("begun") == numbers  # in their order
    loaded_now = set(bench.scheduler._slots)
    assert loaded_now == set(SLOTS)


def test_two_models_take_turns(tiny_base: Path, runs: list[str]) -> None:
    bench = Bench(tiny_base)
    first, second = bench.add(runs[0], tokens=60), bench.add(runs[1], tokens=60)
    bench.run(8)
    pieces = bench.numbers("pieces")
    assert abs(pieces.count(first) - pieces.count(second)) <= 2 * module.TOKENS_PER_TURN
    assert min(pieces.count(first), pieces.count(second)) >= 8


def test_requests_join_a_running_batch(tiny_base: Path) -> None:
    bench = Bench(tiny_base)
    bench.add(tokens=60)
    bench.run(4)
    bench.add(tokens=60)
    bench.run(1)
    ((batch,),) = bench.scheduler._batches.values()
    assert len(batch.answers) == 2
    bench.run()
    assert bench.texts(1) == bench.texts(2) and bench.scheduler.running == {}


def test_requests_wait_for_rows_in_their_order(tiny_base: Path, runs: list[str]) -> None:
    bench = Bench(tiny_base, rows=4)
    bench.add(n=3, tokens=30)
    bench.add(n=2)  # does not fit, and the next one does not pass it
    bench.add(runs[0])
    bench.run(2)
    assert bench.numbers("begun") == [1]
    bench.run()
    assert bench.numbers("begun") == [1, 2, 3] and len(bench.numbers("done")) == 3
    too_many = bench.add(n=6, tokens=2)  # alone it may be more than all rows
    bench.run()
    assert len(bench.texts(too_many)) == 6


def test_a_stopped_request_frees_its_rows_at_once(tiny_base: Path) -> None:
    bench = Bench(tiny_base, rows=2)
    bench.add(n=2, tokens=400)
    waiting, last = bench.add(n=2, tokens=400), bench.add(tokens=5)
    bench.run(3)
    bench.scheduler.stop(1)
    bench.scheduler.stop(waiting)
    bench.run(2)
    assert bench.numbers("begun") == [1, last] and 1 not in bench.numbers("done")
    bench.run()
    assert bench.numbers("done") == [last] and bench.scheduler.idle


def test_a_request_can_be_stopped_where_no_memory_is_left(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tiny_base)
    stopped, other = bench.add(tokens=60), bench.add(tokens=60)
    bench.run(2)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(module.OpenBatch, "_gather", full)
    bench.scheduler.stop(stopped)
    bench.run()
    assert bench.numbers("failed") == [other] and bench.scheduler.idle


def test_an_adapter_that_can_not_be_loaded_fails_alone(tiny_base: Path, tmp_path: Path) -> None:
    bench = Bench(tiny_base)
    good, bad = bench.add(), bench.add(str(tmp_path / "none"))
    bench.run()
    (error,) = (value for number, what, value in bench.sent if what == "failed")
    assert bench.numbers("failed") == [bad] and bench.numbers("done") == [good]
    assert isinstance(error, UserError)


def test_memory_that_runs_out_ends_only_its_batch(
    tiny_base: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tiny_base)
    lost, other = bench.add(n=3, tokens=40), bench.add(runs[0])
    bench.run(2)
    step = module.OpenBatch.step

    def full(batch: Any) -> None:
        if len(batch.answers) == 3:
            raise torch.OutOfMemoryError("no memory")
        step(batch)

    monkeypatch.setattr(module.OpenBatch, "step", full)
    bench.run()
    assert bench.numbers("failed") == [lost] and bench.numbers("done") == [other]
    (error,) = (value for _, what, value in bench.sent if what == "failed")
    assert error.status == 503 and "memory" in error.message
    monkeypatch.undo()
    again = bench.add()
    bench.run()
    assert bench.texts(again) == [alone(bench.backbone, BASE)]


def test_memory_that_runs_out_while_a_request_joins_spares_other_models(
    tiny_base: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tiny_base)
    other = bench.add(runs[0], tokens=30)
    first = bench.add(tokens=60)
    bench.run(3)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(module.OpenBatch, "_gather", full)
    second = bench.add(tokens=60)
    bench.run()
    assert bench.numbers("failed") == [second, first] and bench.numbers("done") == [other]
    assert bench.scheduler.idle and bench.scheduler.running == {}
