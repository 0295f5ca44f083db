"""The process with the backbone: answers stream, stop and take turns; one copy of the base."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorarlhf import Backbone
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.preferences.store import Store
from lorarlhf.project.settings import resolve
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.backfill import FeatureBackfill
from lorarlhf_ui.engine_client import BASE, FAILED, READY, Engine
from lorarlhf_ui.engine_worker import Worker, unpacked
from lorarlhf_ui.hidden_states import HiddenStates
from tests.forked import start_engines_here

PROMPT = [{"role": "user", "content": "Name three quiet hobbies."}]
LONG = 600  # seconds: a start takes many where other programs want the cores
FAST = ["bits=16", "compute_dtype=float32", "lora_rank=4"]


start_engines_here()


@pytest.fixture(scope="module")
def runs(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Folders of three policies and a reward that differ."""
    import torch

    folder = tmp_path_factory.mktemp("runs")
    backbone = Backbone.load(str(tiny_base), bits=16, compute_dtype="float32", lora_rank=4)
    backbone.add_role("reward")
    for number in range(3):
        for weight in backbone.parameters_of("policy"):
            torch.nn.init.normal_(weight, std=0.3)
        backbone.save("policy", folder / f"{number}")
    torch.nn.init.normal_(backbone.heads["reward"].weight)
    backbone.save("reward", folder / "reward")
    return [str(folder / name) for name in ("0", "1", "2", "reward")]


@pytest.fixture(scope="module")
def engine(tiny_base: Path) -> Iterator[Engine]:
    engine = Engine(partial(resolve, "chat", sets=FAST, flags={"base": str(tiny_base)}))
    yield engine
    engine.close()


def ask(engine: Engine, models: list[str], tokens: int = 12, **more: object):
    seeds = list(range(len(models)))
    return engine.answer(
        PROMPT, models, temperature=1.0, max_new_tokens=tokens, seeds=seeds, **more
    )


def test_answers_of_all_models_with_one_copy_of_the_base(engine: Engine, runs: list[str]) -> None:
    models = [BASE, runs[0], runs[0], runs[1]]
    first = ask(engine, models, features=True, urgent=True).wait(LONG)
    assert engine.state == READY and len(set(first["texts"])) == 4
    rows = [unpacked(row) for row in first["features"]]
    assert len(rows) == 4 and len(rows[0]) == 2 * 64 or rows[0].std() > 0
    again = ask(engine, models).wait(LONG)
    assert again["texts"] == first["texts"]
    for model, text in zip(models, first["texts"], strict=True):
        place = models.index(model) if model != runs[0] else None
        if place in (0, 3):  # alone as among others, by its own seed
            alone = engine.answer(
                PROMPT, [model], temperature=1.0, max_new_tokens=12, seeds=[place]
            ).wait(LONG)
            assert alone["texts"] == [text]
    assert engine.inspect().wait(LONG)["copies"] == 1


def test_a_third_policy_waits_for_a_slot_and_prefetched_answers_restart(
    engine: Engine, runs: list[str]
) -> None:
    prefetched = [ask(engine, [run], tokens=60) for run in runs[:3]]
    live = ask(engine, [runs[1], runs[2]], tokens=8, urgent=True)
    live.wait(LONG)
    assert not all(job.done for job in prefetched)
    alone = [ask(engine, [run], tokens=60).wait(LONG)["texts"] for run in runs[:3]]
    assert [job.wait(LONG)["texts"] for job in prefetched] == alone
    assert engine.inspect().wait(LONG)["copies"] == 1


def test_answers_stream_and_stop(engine: Engine) -> None:
    job = ask(engine, [BASE, BASE], tokens=4000, urgent=True)
    job.wait_for_more(["", ""], LONG)
    first = list(job.texts)
    assert any(first) and not job.done
    job.wait_for_more(first, LONG)
    engine.stop(job)
    value = job.wait(LONG)
    assert value["texts"][0].startswith(first[0]) and value["ended"] == [False, False]
    assert value["texts"] == job.texts


def test_scores_and_axes(engine: Engine, runs: list[str]) -> None:
    scores = engine.scores(Path(runs[3]), PROMPT, ["Chess.", "Drums and trumpets!"]).wait(LONG)
    assert len(scores) == 2 and scores[0] != scores[1]
    assert len(engine.features([PROMPT], ["Chess."]).wait(LONG)) == 1
    with pytest.raises(UserError, match="could not be loaded") as failure:
        engine.scores(Path("nowhere"), PROMPT, ["a"]).wait(LONG)
    assert "nowhere" not in str(failure.value)  # it may name a run, on a page that is blind
    with pytest.raises(UserError, match="max_prompt_tokens|longer than"):
        engine.answer(
            [{"role": "user", "content": "word " * 9000}],
            [BASE],
            temperature=1.0,
            max_new_tokens=4,
        ).wait(LONG)
    assert len(ask(engine, [BASE]).wait(LONG)["texts"]) == 1  # other jobs go on


def test_the_shares_of_words_add_up_to_the_score(engine: Engine, runs: list[str]) -> None:
    answers = ["Chess, reading and long walks.", "Drums!", ""]
    scores = engine.scores(Path(runs[3]), PROMPT, answers).wait(LONG)
    found = engine.shares(Path(runs[3]), PROMPT, answers).wait(LONG)
    for answer, score, shares in zip(answers, scores, found, strict=True):
        assert shares.exact and shares.score == pytest.approx(score, abs=1e-5)
        assert sum(share for _, share in shares.words) == pytest.approx(score, abs=1e-5)
        assert "".join(word for word, _ in shares.words) == answer or not answer


def test_an_estimate_that_would_take_minutes_is_refused() -> None:
    head = SimpleNamespace(pooling="last")
    backbone: Any = SimpleNamespace(heads={"reward": head}, device=torch.device("cpu"))
    pipe: Any = None
    worker = Worker(backbone, pipe, {"plain": False, "max_prompt_tokens": 100})
    worker.reward = "runs/1"
    asked = {"run": "runs/1", "prompt": PROMPT, "answers": ["short", "long " * 200]}
    with pytest.raises(UserError, match="would take minutes"):
        worker._shares_of(asked)


class Pipe:
    """A pipe that keeps what is sent, with messages that have arrived."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.arrived: list[Any] = []

    def send(self, *message: Any) -> None:
        self.sent.append(message)

    def messages(self, idle: Any) -> list[Any]:
        return self.arrived


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Pipe]:
    """A worker that has a live answer and small jobs to do, and its connection."""
    pipe: Any = Pipe()
    backbone: Any = SimpleNamespace()
    worker: Any = Worker(backbone, pipe, {"plain": False, "max_prompt_tokens": 100})
    for kind in ("_features_of", "_scores_of", "_direction_of"):
        monkeypatch.setattr(worker, kind, lambda value, kind=kind: kind)
    monkeypatch.setattr(worker, "_advance", lambda job, queue: None)
    worker.live.append(SimpleNamespace(number=9))
    worker.small.extend([(1, "features", {}), (2, "scores", {}), (3, "direction", {})])
    return worker, pipe


def test_small_jobs_do_not_wait_behind_one_that_waits_for_live_answers(
    waiting: tuple[Any, Pipe],
) -> None:
    worker, pipe = waiting
    for _ in range(3):
        worker.step()
    assert pipe.sent == [(2, "done", "_scores_of"), (3, "done", "_direction_of")]
    worker.live.clear()
    worker.step()
    assert pipe.sent[2:] == [(1, "done", "_features_of")] and not worker.small


def test_a_small_job_that_nobody_waits_for_is_not_done(waiting: tuple[Any, Pipe]) -> None:
    worker, pipe = waiting
    pipe.arrived.append((0, "stop", 2))
    worker.receive()
    worker.step()
    assert [(number, kind) for number, kind, _ in pipe.sent] == [(2, "failed"), (3, "done")]


def test_the_best_of_several_answers(engine: Engine, runs: list[str]) -> None:
    models, reward = [BASE, runs[0]], Path(runs[3])
    sampling: Any = {"temperature": 1.0, "max_new_tokens": 12, "seeds": list(range(5))}
    best = engine.answer(PROMPT, models, counts=[4, 1], reward=reward, **sampling).wait(LONG)
    all_five = engine.answer(PROMPT, [BASE] * 4 + [runs[0]], **sampling).wait(LONG)["texts"]
    scores = engine.scores(reward, PROMPT, all_five).wait(LONG)
    place = scores.index(max(scores[:4]))
    assert best["texts"] == [all_five[place], all_five[4]]
    assert best["scores"] == pytest.approx([scores[place], scores[4]], abs=1e-4)
    assert best["bounds"] == pytest.approx([math.log(4) - 3 / 4, 0.0])
    failed = engine.answer(
        PROMPT, [BASE], counts=[2], reward=Path("nowhere"), **sampling | {"seeds": [0, 1]}
    )
    with pytest.raises(UserError, match="could not be loaded"):
        failed.wait(LONG)
    stopped = ask(engine, [BASE], tokens=4000, urgent=True)
    engine.stop(stopped)
    assert "scores" not in stopped.wait(LONG)


def test_a_missing_base_is_an_error(tmp_path: Path) -> None:
    engine = Engine(partial(resolve, "chat", flags={"base": str(tmp_path / "none")}))
    with pytest.raises(UserError, match="none"):
        ask(engine, [BASE]).wait(LONG)
    assert engine.state == FAILED
    engine.close()


def test_the_reason_is_told_though_the_process_has_ended_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Engine._loaded

    def later(self: Engine, *said: Any) -> None:
        time.sleep(1)
        loaded(self, *said)

    monkeypatch.setattr(Engine, "_loaded", later)
    engine = Engine(partial(resolve, "chat", flags={"base": str(tmp_path / "none")}))
    engine.process.join(LONG)
    with pytest.raises(UserError, match="none"):
        ask(engine, [BASE]).wait(LONG)
    engine.close()


def test_states_of_votes_that_came_without_them(engine: Engine, tmp_path: Path) -> None:
    store, states = Store(tmp_path / "votes.sqlite"), HiddenStates(tmp_path / "states.sqlite")
    engine.inspect().wait(LONG)
    states.use(engine.about["space"])
    answers = (("Drawing, for one.", "base"), ("Drums!", "base"))
    verdict = Verdict("ranked", [[0], [1]])
    long = (("word " * 9000, "base"), ("Drums!", "base"))
    add_votes(store, [ImportedVote(PROMPT, long, verdict), ImportedVote(PROMPT, answers, verdict)])
    there: SimpleQueue[int] = SimpleQueue()
    late = FeatureBackfill(engine, states)
    for vote in [*store.votes(), *store.votes()]:
        late.fetch(vote, lambda number=vote.id: there.put(number))
    for _ in range(2):  # both times; the one that is too long is left out
        assert there.get(timeout=LONG) == store.votes()[1].id
    rows = states.get(PROMPT, store.votes()[1].completions)
    failure = engine.features([PROMPT] * 2, [text for text, _ in answers]).wait(LONG)
    assert rows is not None and [list(row) for row in rows] == [list(unpacked(t)) for t in failure]
    assert there.empty()


def test_without_a_model_every_answer_says_so() -> None:
    engine = Engine(None)
    with pytest.raises(UserError, match="without a model"):
        ask(engine, [BASE]).wait(1)


def test_a_killed_process_is_an_error_and_leaves_nothing_behind(tiny_base: Path) -> None:
    engine = Engine(partial(resolve, "chat", sets=FAST, flags={"base": str(tiny_base)}))
    pid = engine.inspect().wait(LONG)["pid"]
    job = ask(engine, [BASE], tokens=4000)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(UserError, match="Votes are kept"):
        job.wait(LONG)
    assert engine.state == FAILED
    with pytest.raises(UserError, match="has ended"):
        ask(engine, [BASE]).wait(5)


def test_an_unknown_setting_is_named(tiny_base: Path) -> None:
    failure: list[str] = []
    flags = {"base": str(tiny_base)}
    engine = Engine(partial(resolve, "ui", sets=["bots=4"], flags=flags), on_failed=failure.append)
    with pytest.raises(UserError, match="bots"):
        ask(engine, [BASE]).wait(LONG)
    assert engine.state == FAILED and failure == [engine.message]
    engine.close()


PAGES = """
import sys, time
from functools import partial
from lorarlhf.project.settings import resolve
from lorarlhf_ui.engine_client import Engine

if __name__ == "__main__":
    settings = partial(resolve, "chat", sets=sys.argv[2:], flags={"base": sys.argv[1]})
    print(Engine(settings).inspect().wait(600)["pid"], flush=True)
    time.sleep(600)
"""


def test_the_process_ends_with_the_pages(tiny_base: Path, tmp_path: Path) -> None:
    program = tmp_path / "pages.py"
    program.write_text(PAGES)
    command = [sys.executable, str(program), str(tiny_base), *FAST]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as pages:
        assert pages.stdout is not None
        number = int(pages.stdout.readline())
        os.kill(number, 0)  # it is there
        pages.kill()
    for _ in range(300):
        if not is_running(number):
            return
        time.sleep(0.1)
    raise AssertionError("the model's process outlived the pages")


def is_running(number: int) -> bool:
    """Whether a process lives; one that nobody has waited for yet does not."""
    stat = Path(f"/proc/{number}/stat")
    try:
        os.kill(number, 0)
        return not stat.is_file() or stat.read_text().rpartition(") ")[2][0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
