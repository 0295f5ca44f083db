"""How a server lives: Ctrl-C, kills, trainings that need the device, votes that stay."""

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from openai import OpenAI

from lorarlhf.preferences.store import Store
from lorarlhf.project import device_queue
from lorarlhf.runtime.process import identify
from tests.served import HI, SETTINGS, Served, ended, make_project, server
from tests.waiting import until

pytest_plugins = ("tests.served",)
SETS = tuple(word for setting in SETTINGS for word in ("--set", setting))
ENDLESS = {"messages": HI, "max_tokens": 3000, "temperature": 1, "seed": 1}


@pytest.fixture(scope="module")
def served_project(
    make_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A project whose base has room for answers that take long."""
    base = make_base(max_position_embeddings=4096)
    return make_project(base, tmp_path_factory.mktemp("long") / "mine")


@pytest.fixture
def own(tiny_base: Path, tmp_path: Path) -> Path:
    """A project of this test's own."""
    return make_project(tiny_base, tmp_path / "mine")


def ask(client: OpenAI, **more: Any) -> Any:
    wanted = {"model": "base", "messages": HI, "max_tokens": 4, "temperature": 0} | more
    return client.chat.completions.create(**wanted)


def health(served: Served) -> tuple[int, dict[str, Any]]:
    url = f"http://127.0.0.1:{served.port}/health"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def long_stream(client: OpenAI) -> Any:
    """A stream of many tokens that has begun: as many choices as rows, so that it takes long."""
    stream = client.chat.completions.create(model="base", stream=True, n=16, **ENDLESS)
    next(stream)
    return stream


def rest_of(stream: Any) -> int:
    """Read a stream to its end; the number of its finished choices."""
    return sum(c.finish_reason is not None for chunk in stream for c in chunk.choices)


def test_ctrl_c_lets_answers_end_and_then_closes(served_project: Path, tmp_path: Path) -> None:
    with server(served_project, tmp_path, *SETS) as served:
        client = served.client()
        model = served.model_process()
        short = ask(client, stream=True, max_tokens=40)
        next(short)
        os.kill(served.pid, signal.SIGINT)
        assert rest_of(short) == 1
        ended(served.pid)
        until(lambda: not model.is_running() or model.status() == psutil.STATUS_ZOMBIE)
        assert "The endpoint is closed." in served.said() and "Traceback" not in served.said()


def test_a_second_ctrl_c_ends_answers_with_an_error(served_project: Path, tmp_path: Path) -> None:
    with server(served_project, tmp_path, *SETS) as served:
        stream = long_stream(served.client())
        os.kill(served.pid, signal.SIGINT)
        until(lambda: "Closing" in served.said())
        os.kill(served.pid, signal.SIGINT)
        with pytest.raises(openai.APIError, match="server is closing"):
            rest_of(stream)
        ended(served.pid)


def test_a_model_that_dies_is_started_again(served_project: Path, tmp_path: Path) -> None:
    with server(served_project, tmp_path, *SETS) as served:
        client = served.client()
        wanted = ask(client).choices[0].message.content
        stream = long_stream(client)
        served.model_process().kill()
        with pytest.raises(openai.APIError, match="model's process has ended"):
            rest_of(stream)
        with pytest.raises(openai.InternalServerError) as failure:
            ask(client)
        assert failure.value.status_code == 503
        served.wait(times=2)
        assert ask(client).choices[0].message.content == wanted


def test_a_training_gets_the_device_and_gives_it_back(served_project: Path, tmp_path: Path) -> None:
    with server(served_project, tmp_path, *SETS) as served:
        client = served.client()
        assert health(served)[0] == 200 and len(device_queue.models()) == 1
        model, stream = served.model_process(), long_stream(client)
        model.suspend()  # so that no answer ends within its five seconds
        ticket = device_queue.take(served_project, 7, "dpo", identify(os.getpid()))
        try:
            until(lambda: health(served)[1]["status"] == "resting")
            with pytest.raises(openai.InternalServerError, match="a training has the device"):
                ask(client)
            with pytest.raises(openai.APIError, match="a training has the device"):
                rest_of(stream)
            until(lambda: not device_queue.models())
            assert not model.is_running() or model.status() == psutil.STATUS_ZOMBIE
        finally:
            ticket.file.unlink()
        served.wait(times=2)
        assert ask(client).choices[0].message.content and len(device_queue.models()) == 1


def test_a_server_that_starts_during_a_training_waits_for_its_end(
    served_project: Path, tmp_path: Path
) -> None:
    import threading

    ticket = device_queue.take(served_project, 8, "ppo", identify(os.getpid()))
    threading.Timer(8, ticket.file.unlink).start()
    started = time.monotonic()
    with server(served_project, tmp_path, *SETS) as served:
        assert time.monotonic() - started > 5
        assert "while a training has the device" in served.said()
        assert ask(served.client()).choices[0].message.content


def test_thumbs_and_answers_outlive_a_kill(own: Path, tmp_path: Path) -> None:
    with server(own, tmp_path, *SETS) as served:
        client = served.client()
        answers = [ask(client, seed=seed, temperature=1) for seed in (1, 2)]
        client.post("/feedback", body={"id": answers[0].id, "rating": "up"}, cast_to=object)
        os.kill(served.pid, signal.SIGKILL)
        ended(served.pid)
    with server(own, tmp_path, *SETS) as served:
        client = served.client()
        said: Any = [
            client.post("/feedback", body={"id": one.id, "rating": "up"}, cast_to=object)
            for one in answers
        ]
    assert [one["outcome"] for one in said] == ["same", "new"]
    votes = Store(own / "preferences.sqlite").votes()
    assert [vote.completions for vote in votes] == [
        [one.choices[0].message.content] for one in answers
    ]


def test_a_key_in_a_file_and_no_feedback(served_project: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-quiet-harbour-0123456789\n")
    key.chmod(0o600)
    run = served_project / "runs" / "0001-sft"
    with server(run, tmp_path, "--key-file", str(key), "--no-feedback", *SETS) as served:
        with pytest.raises(openai.AuthenticationError, match="needs its key"):
            ask(served.client())
        client = served.client(key.read_text().strip())
        answer = ask(client, model="")
        assert answer.model == "0001-sft"  # the run that was named
        with pytest.raises(openai.NotFoundError, match="takes no feedback"):
            client.post("/feedback", body={"id": answer.id, "rating": "up"}, cast_to=object)
        assert "API key the key" in served.said()


def test_a_run_without_a_project(served_project: Path, tmp_path: Path, tiny_base: Path) -> None:
    import shutil

    run = tmp_path / "alone"
    shutil.copytree(served_project / "runs" / "0003-dpo", run)
    shutil.copytree(
        served_project / "runs" / "0002-reward" / "adapters", run / "adapters", dirs_exist_ok=True
    )
    with server(run, tmp_path, *SETS) as served:
        client = served.client()
        assert [model.id for model in client.models.list()] == ["alone", "base", "best-of-4"]
        assert ask(client, model="best-of-4", temperature=1).model == "alone:best-of-4"
    assert sorted(path.name for path in run.iterdir()) == ["adapters", "run.json"]


def test_a_base_that_can_not_be_loaded_ends_the_server(
    served_project: Path, tmp_path: Path
) -> None:
    said = pytest.raises(AssertionError, match="bits is 4, 8 or 16|one of|not 5|found 5")
    with said, server(served_project, tmp_path, "--set", "bits=5"):
        pass
