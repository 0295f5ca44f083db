"""What a request may ask for, what is refused in words, and the text of answers piece by piece."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from lorarlhf.serve.app import Endpoint, application
from lorarlhf.serve.errors import ApiError
from lorarlhf.serve.guard import Access
from lorarlhf.serve.request import TEMPERATURE, read_request
from lorarlhf.serve.text import AnswerText
from lorarlhf.serve.work import longest_answer

HI = [{"role": "user", "content": "Hi"}]


def test_a_plain_request() -> None:
    asked = read_request({"messages": HI})
    assert (asked.model, asked.n, asked.temperature, asked.top_p) == ("", 1, TEMPERATURE, 1.0)
    assert (asked.seed, asked.max_tokens, asked.stops, asked.stream) == (None, None, (), False)


def test_what_programs_always_send_is_taken() -> None:
    asked = read_request(
        {
            "model": "base",
            "messages": [
                {"role": "developer", "content": "Be kind."},
                {"role": "user", "content": [{"type": "text", "text": "a"}] * 2, "name": "x"},
            ],
            **{"presence_penalty": 0, "frequency_penalty": 0.0, "top_p": 1, "n": 2.0, "stop": []},
            **{
                "tools": [{"type": "function"}],
                "tool_choice": "auto",
                "logit_bias": {},
                "logprobs": False,
                "top_k": 0,
            },
            **{"response_format": {"type": "text"}, "user": "me", "metadata": {"a": "b"}},
            **{"seed": None, "stream": True, "stream_options": {"include_usage": True}},
            **{"max_tokens": 5, "max_completion_tokens": 7},
        }
    )
    assert asked.messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "a\na"},
    ]
    assert asked.n == 2 and asked.stream and asked.usage and asked.max_tokens == 7


@pytest.mark.parametrize(
    ("more", "param", "said"),
    [
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": "Hi"}, "messages", "a list"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "no tools"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role", "is system"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is a text"),
        ({"tool_choice": "required"}, "tool_choice", "none can be required"),
        (
            {"tools": [{"type": "function"}], "tool_choice": {"type": "function"}},
            "tool_choice",
            "no",
        ),
        ({"logprobs": True}, "logprobs", "not sent"),
        ({"top_logprobs": 3}, "top_logprobs", "not sent"),
        ({"presence_penalty": 0.5}, "presence_penalty", "sampled from the model as it is"),
        ({"top_k": 40}, "top_k", "sampled from the model as it is"),
        ({"response_format": {"type": "json_object"}}, "response_format", "type text"),
        ({"temprature": 1}, "temprature", "Did you mean temperature"),
        ({"temperature": 2.5}, "temperature", "0 to 2"),
        ({"temperature": True}, "temperature", "a number"),
        ({"temperature": float("nan")}, "temperature", "a number"),
        ({"temperature": 10**400}, "temperature", "0 to 2"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"n": 0}, "n", "whole number from 1"),
        ({"n": 99}, "n", "whole number from 1"),
        ({"max_tokens": 0}, "max_tokens", "whole number from 1"),
        ({"seed": "7"}, "seed", "whole number"),
        ({"stop": ["a", ""]}, "stop", "none empty"),
        ({"stop": ["a"] * 17}, "stop", "up to 16"),
        ({"stop": "a" * 501}, "stop", "none longer than 500 characters"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"x": 1}}, "stream_options", "include_usage"),
        ({"model": 7}, "model", "a text"),
    ],
)
def test_refusals_say_what_and_why(more: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(ApiError, match=said) as failure:
        read_request({"messages": HI, **more})
    assert (failure.value.status, failure.value.param) == (400, param)
    assert failure.value.body()["error"]["type"] == "invalid_request_error"


class NoModels:
    """A server without models."""

    def find(self, name: str) -> Any:
        raise ApiError(404, f"There is no model {name} here.", "model")


def endpoint() -> Endpoint:
    nothing: Any = None
    models: Any = NoModels()
    return Endpoint(nothing, models)


@pytest.mark.parametrize("body", [rb'{"model": "a\ud800b"', b'{"model": "a\xed\xa0\x80b"'])
def test_half_a_character_breaks_no_reply(body: bytes) -> None:
    client = TestClient(application(endpoint(), Access()), base_url="http://127.0.0.1")
    messages = b', "messages": [{"role": "user", "content": "Hi"}]}'
    answer = client.post("/v1/chat/completions", content=body + messages)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "There is no model ab here."


def test_a_client_that_goes_away_while_it_sends_is_no_error_of_the_server() -> None:
    async def gone() -> Any:
        return {"type": "http.disconnect"}

    request = Request({"type": "http", "method": "POST", "headers": []}, gone)
    with pytest.raises(ApiError, match="before the body was complete"):
        asyncio.run(endpoint().chat(request))


def test_images_are_refused_by_their_place() -> None:
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {}}]
    with pytest.raises(ApiError, match="of the type image_url") as failure:
        read_request({"messages": [{"role": "user", "content": parts}]})
    assert failure.value.param == "messages[0].content[1]"


def test_the_room_for_an_answer() -> None:
    assert longest_answer(None, 10, {"max_tokens": None}) == 1024
    assert longest_answer(500, 100, {"max_tokens": None}) == 400
    assert longest_answer(500, 100, {"max_tokens": 400}) == 400
    with pytest.raises(ApiError, match="up to 500 tokens. The messages have 100, and 401"):
        longest_answer(500, 100, {"max_tokens": 401})
    with pytest.raises(ApiError, match="leaves no room"):
        longest_answer(500, 500, {"max_tokens": None})


# ---- texts


def decode(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


def pieces(text: str, stops: Sequence[str]) -> tuple[list[str], AnswerText]:
    """What is sent of a text that is written byte by byte."""
    answer, found, ids = AnswerText(decode, stops), [], text.encode()
    for count in range(1, len(ids) + 1):
        found.append(answer.more(ids[:count]))
        if answer.stopped:
            ids = ids[:count]
            break
    return [*found, answer.end(ids)], answer


@pytest.mark.parametrize(
    ("text", "stops", "wanted"),
    [
        ("\n Two words. \n", (), "Two words."),
        ("grün und 🙂 da", (), "grün und 🙂 da"),
        ("one STOP two", ("STOP",), "one"),
        ("one STO two", ("STOP",), "one STO two"),
        ("one STO", ("STOP",), "one STO"),
        ("a\n\nUser: b", ("\nUser:", "\n\n"), "a"),
        ("abcabd", ("abd",), "abc"),
        ("STOP", ("STOP",), ""),
        ("", (), ""),
    ],
)
def test_pieces_are_the_text_and_hold_back_stops(
    text: str, stops: tuple[str, ...], wanted: str
) -> None:
    found, answer = pieces(text, stops)
    assert "".join(found) == answer.text == wanted
    assert answer.stopped == (wanted != text.strip())
