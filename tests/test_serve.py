"""`lorarlhf serve` as OpenAI's own client sees it: answers, streams, models, limits, thumbs."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from lorarlhf import Backbone
from lorarlhf.cli.main import main
from lorarlhf.preferences.exports import training_rows
from lorarlhf.preferences.records import Verdict
from lorarlhf.preferences.store import Store
from lorarlhf.rewards.best_of import best_of
from tests.served import HI, SETTINGS, Served, numbers, real_server, server

pytest_plugins = ("tests.served",)
TOKENS = 24
RUNS = ("0003-dpo", "0001-sft", "base")


@pytest.fixture(scope="module")
def served(served_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    with real_server(served_project, tmp_path_factory.mktemp("log"), *sets) as made:
        yield made


@pytest.fixture(scope="module")
def client(served: Served) -> OpenAI:
    return served.client()


@pytest.fixture(scope="module")
def local(tiny_base: Path) -> Backbone:
    return Backbone.load(str(tiny_base), bits=16, compute_dtype="float32", lora_rank=4)


def ask(client: OpenAI, model: str = "base", **more: Any) -> Any:
    wanted = {"messages": HI, "max_tokens": TOKENS} | more
    return client.chat.completions.create(model=model, **wanted)


def text_of(answer: Any) -> str:
    return answer.choices[0].message.content


# ---- models


def test_models_are_listed_and_found_by_name_and_title(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [*RUNS, "best-of-4"]
    assert client.models.retrieve("The first one").id == "0001-sft"
    assert client.models.retrieve("runs/0001-sft").id == "0001-sft"
    assert client.models.retrieve("best-of-4").id == "0003-dpo:best-of-4"
    with pytest.raises(openai.NotFoundError, match="no model gpt-4 here. There are: 0003-dpo"):
        ask(client, "gpt-4")


def test_the_terminal_says_what_to_paste(served: Served) -> None:
    said = served.said()
    assert f"base URL http://127.0.0.1:{served.port}/v1 | API key any" in said
    assert "models 0003-dpo, 0001-sft, base, best-of-4" in said
    assert "Loading" in said and "Traceback" not in said


# ---- answers


def test_greedy_answers_are_those_of_chat(
    client: OpenAI, served_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in RUNS:
        run = ["--role", "base"] if model == "base" else []
        words = [
            "chat",
            str(served_project / "runs" / (model if model != "base" else RUNS[0])),
            *run,
        ]
        words += ["--prompt", HI[0]["content"], "--temperature", "0", "--json"]
        words += ["--max-new-tokens", str(TOKENS)]
        assert main(words) == 0
        wanted = json.loads(capsys.readouterr().out)["answer"]
        assert text_of(ask(client, model, temperature=0)) == wanted
    assert ask(client, "").model == RUNS[0]


def test_a_seed_gives_the_same_answer_alone_and_among_others(client: OpenAI) -> None:
    alone = {(m, s): text_of(ask(client, m, seed=s, temperature=1)) for m in RUNS for s in (1, 2)}
    assert len(set(alone.values())) == 6

    def one(wanted: tuple[str, int]) -> str:
        return text_of(ask(client, wanted[0], seed=wanted[1], temperature=1))

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(one, [*alone, *alone])) == [*alone.values(), *alone.values()]
    several = ask(client, "base", seed=1, temperature=1, n=3)
    texts = [choice.message.content for choice in several.choices]
    assert texts[0] == alone["base", 1] and len(set(texts)) == 3
    assert [choice.index for choice in several.choices] == [0, 1, 2]


def test_streams_are_the_same_texts(client: OpenAI) -> None:
    how = {"seed": 5, "temperature": 1, "n": 2}
    whole = ask(client, RUNS[0], **how)
    texts, finish, last = ["", ""], [None, None], None
    events = 0
    for chunk in ask(client, RUNS[0], stream=True, stream_options={"include_usage": True}, **how):
        events += 1
        last = chunk
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finish[choice.index] = choice.finish_reason or finish[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert finish == [choice.finish_reason for choice in whole.choices]
    assert last.usage == whole.usage and last.choices == [] and events > 10


def test_lengths_stops_and_counts(client: OpenAI, local: Backbone) -> None:
    answer = ask(client, "base", temperature=0, max_tokens=5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5
    assert answer.usage.prompt_tokens == len(local.encode(HI))
    assert answer.usage.total_tokens == 5 + answer.usage.prompt_tokens
    whole = text_of(ask(client, "base", temperature=0))
    stop = whole[6:9]
    at = whole.index(stop)
    for asked in (stop, ["never\x00there", stop]):
        cut = ask(client, "base", temperature=0, stop=asked)
        assert text_of(cut) == whole[:at].strip() and cut.choices[0].finish_reason == "stop"
        assert cut.usage.completion_tokens < TOKENS
        chunks = ask(client, "base", temperature=0, stop=asked, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert streamed == whole[:at].strip()


def test_a_small_nucleus_is_greedy(client: OpenAI) -> None:
    greedy = text_of(ask(client, "base", temperature=0))
    assert text_of(ask(client, "base", temperature=1.5, top_p=1e-6, seed=3)) == greedy
    assert text_of(ask(client, "base", temperature=1.5, seed=3)) != greedy


def test_the_best_of_four_is_what_the_reward_role_picks(
    client: OpenAI, served_project: Path, local: Backbone
) -> None:
    local.load_role("policy", served_project / "runs/0003-dpo/adapters/policy")
    local.load_role("reward", served_project / "runs/0002-reward/adapters/reward")
    how: dict[str, Any] = {"temperature": 1.0, "seed": 11}
    (wanted,) = best_of(local, [HI], 4, role="policy", max_new_tokens=TOKENS, **how)
    found = ask(client, "best-of-4", **how)
    assert text_of(found) == wanted.answer.text and found.model == "0003-dpo:best-of-4"
    assert found.model_extra["lorarlhf"]["scores"] == pytest.approx([max(wanted.scores)], abs=1e-3)
    chunks = list(ask(client, "0003-dpo:best-of-4", stream=True, **how))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == wanted.answer.text
    (other,) = best_of(local, [HI], 3, role="base", max_new_tokens=TOKENS, **how)
    assert text_of(ask(client, "base:best-of-3", **how)) == other.answer.text
    with pytest.raises(openai.BadRequestError, match="candidates are the same"):
        ask(client, "best-of-4", temperature=0)
    with pytest.raises(openai.BadRequestError, match="needs 40 answers at once"):
        ask(client, "best-of-4", n=10)


# ---- limits


def test_what_is_too_long_is_refused_with_the_numbers(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="reads up to 512 tokens") as failure:
        ask(client, max_tokens=500)
    assert failure.value.code == "context_length_exceeded"
    assert {512, 500} < set(numbers(failure.value.message))
    with pytest.raises(openai.BadRequestError, match="leaves no room"):
        ask(client, messages=[{"role": "user", "content": "word " * 600}], stream=True)


def test_errors_have_the_shape_that_clients_read(client: OpenAI) -> None:
    tools = [{"type": "function", "function": {"name": "x"}}]
    with pytest.raises(openai.BadRequestError, match="call no tools") as failure:
        ask(client, tools=tools, tool_choice="required")
    assert (failure.value.param, failure.value.type) == ("tool_choice", "invalid_request_error")
    assert text_of(ask(client, tools=tools))  # an offer, which need not be taken up
    with pytest.raises(openai.NotFoundError, match="does not exist here"):
        client.embeddings.create(model="base", input="x")


def test_a_client_that_goes_away_makes_room_for_others(
    served_project: Path, tmp_path: Path
) -> None:
    """One row and one place to wait: of three that come now two are refused, and one waits."""
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    with server(served_project, tmp_path, "--rows", "1", "--waiting", "1", *sets) as one:
        client = one.client()
        first = ask(client, max_tokens=400, temperature=1, seed=1, stream=True)  # does not end
        next(iter(first))

        def other(seed: int) -> Any:
            try:
                return ask(client, max_tokens=400, temperature=1, seed=seed)
            except openai.RateLimitError as error:
                first.close()
                return error

        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(other, (2, 3, 5)))
        errors = [one for one in found if isinstance(one, openai.RateLimitError)]
        assert len(errors) == 2
        assert errors[0].code == "queue_full" and errors[0].response.headers["retry-after"]
        (answer,) = (one for one in found if one not in errors)
        assert answer.choices[0].finish_reason in ("stop", "length")
        assert text_of(ask(client, max_tokens=2, temperature=0))


# ---- feedback


def rate(client: OpenAI, **body: Any) -> dict[str, Any]:
    found: Any = client.post("/feedback", body=body, cast_to=object)
    return found


def test_thumbs_land_in_the_store(client: OpenAI, served_project: Path) -> None:
    store = Store(served_project / "preferences.sqlite")
    before = store.count()
    answer = ask(client, RUNS[0], seed=21, n=2)
    assert rate(client, id=answer.id, rating="up")["outcome"] == "new"
    assert rate(client, id=answer.id, rating="up")["outcome"] == "same"
    changed = rate(client, id=answer.id, index=1, rating="down", rater="ann", note="too long")
    assert store.count() == before + 2
    one, two = store.votes()[-2:]
    assert (one.prompt, one.completions, one.sources) == (HI, [text_of(answer)], ["runs/0003-dpo"])
    assert (one.rater, one.verdict) == ("me", Verdict("both_good"))
    assert one.sampling == [{"temperature": 0.7, "seed": 21}]
    assert two.id == changed["vote"] and two.rater == "ann"
    assert two.verdict == Verdict("both_bad", note="too long")
    assert rate(client, id=answer.id, rating="down")["outcome"] == "changed"
    assert rate(client, id=answer.id, rating="none")["outcome"] == "taken back"
    assert store.count() == before + 1


def test_a_choice_between_two_answers_trains_all_stages(
    client: OpenAI, served_project: Path
) -> None:
    store = Store(served_project / "preferences.sqlite")
    one, two = (ask(client, model, seed=31, temperature=1) for model in RUNS[:2])
    assert rate(client, chosen=two.id, rejected=one.id)["outcome"] == "new"
    vote = store.votes()[-1]
    (row,) = training_rows("trl", [vote]).rows
    assert row["chosen"][0]["content"] == text_of(two)
    assert row["rejected"][0]["content"] == text_of(one)
    several = ask(client, "base", seed=32, temperature=1, n=2)
    named = {"id": several.id, "index": 1}
    assert rate(client, chosen=named, rejected=several.id)["outcome"] == "new"
    chunks = list(ask(client, "base", stream=True, seed=33))
    assert rate(client, id=chunks[0].id, rating="up")["outcome"] == "new"


def test_feedback_that_can_not_be_stored(client: OpenAI) -> None:
    answer = ask(client, seed=41)
    for body, error, said in (
        ({"id": "chatcmpl-0", "rating": "up"}, openai.NotFoundError, "no answer chatcmpl-0"),
        ({"id": answer.id, "index": 1, "rating": "up"}, openai.NotFoundError, "index 1"),
        ({"id": answer.id, "rating": "great"}, openai.BadRequestError, "up, down or none"),
        ({"id": answer.id, "rating": "up", "rater": " x"}, openai.BadRequestError, "a name"),
        ({"id": answer.id, "rating": "up", "stars": 5}, openai.BadRequestError, "no field stars"),
        ({"chosen": answer.id}, openai.BadRequestError, "rejected names a completion"),
        ({"chosen": answer.id, "rejected": answer.id}, openai.BadRequestError, "are the same"),
    ):
        with pytest.raises(error, match=said):
            rate(client, **body)
