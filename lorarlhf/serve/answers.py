"""A chat completion as a response: JSON at once, or events while the text is written."""

import json
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from lorarlhf.preferences.thumbs import NamedAnswer
from lorarlhf.serve.engine import Engine, Job
from lorarlhf.serve.errors import ApiError
from lorarlhf.serve.models import Model
from lorarlhf.serve.request import ChatRequest

KEEP_ALIVE = 10.0
"""Seconds without a token after which a stream says that it is still there."""
STILL_THERE = b": the model is busy\n\n"
END = b"data: [DONE]\n\n"
Body = dict[str, Any]


@dataclass(frozen=True)
class Completion:
    """One request that the model works on.

    Attributes:
        id: `chatcmpl-...`, by which a thumb names its answers; see `answer_name`.
        model: who answers; seed: from which the answers are drawn.
        created: when it was asked for, in seconds.
    """

    id: str
    asked: ChatRequest
    model: Model
    seed: int
    created: int


def answer_name(completion: str, choice: int) -> str:
    """The name of one of the answers of a completion."""
    return f"{completion}#{choice}"


class ChatAnswer:
    """An ASGI response that follows a job; if the client goes away, the job is stopped.

    Args:
        keep: remembers the answers; called in a thread.
    """

    def __init__(
        self,
        completion: Completion,
        job: Job,
        engine: Engine,
        keep: Callable[[Sequence[NamedAnswer]], None],
    ) -> None:
        self._about, self._job, self._engine, self._keep = completion, job, engine, keep
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._stream if self._about.asked.stream else self._whole
        try:
            async with anyio.create_task_group() as group:

                async def watch() -> None:
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    group.cancel_scope.cancel()

                group.start_soon(watch)
                try:
                    await answer(send)
                except ApiError as error:
                    await self._fail(error, scope, receive, send)
                group.cancel_scope.cancel()
        finally:
            self._engine.stop(self._job)  # nothing to do once it is done

    async def _fail(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._started:
            await JSONResponse(error.body(), error.status, error.headers())(scope, receive, send)
            return
        await _send(send, _event(error.body()))
        await _send(send, b"", last=True)

    # ---- at once

    async def _whole(self, send: Send) -> None:
        while True:
            event = await self._job.next()
            if event is not None and event[0] == "done":
                break
        result: Body = event[1]
        await self._remember(result)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": finish,
            }
            for index, (text, finish) in enumerate(
                zip(result["texts"], result["finish"], strict=True)
            )
        ]
        body = self._common("chat.completion") | {"choices": choices, "usage": _usage(result)}
        await JSONResponse(body | self._extra(result))({"type": "http"}, _no_receive, send)

    # ---- as a stream

    async def _stream(self, send: Send) -> None:
        asked = self._about.asked
        while True:
            event = await self._job.next(KEEP_ALIVE)
            if event is None:
                await self._start(send)
                await _send(send, STILL_THERE)
                continue
            kind, value = event
            if kind == "pieces":
                await self._start(send)
                await self._send_pieces(send, value)
            elif kind == "done":
                break
        await self._remember(value)
        await self._start(send)
        if self._about.model.best_of > 1:  # it is known only now which one was picked
            await self._send_pieces(send, value["texts"])
        for index, finish in enumerate(value["finish"]):
            chunk = self._chunk([{"index": index, "delta": {}, "finish_reason": finish}])
            await _send(send, _event(chunk | self._extra(value)))
        if asked.usage:
            await _send(send, _event(self._chunk([]) | {"usage": _usage(value)}))
        await _send(send, END)
        await _send(send, b"", last=True)

    async def _start(self, send: Send) -> None:
        """The head of the response and the first event of each answer, once."""
        if self._started:
            return
        self._started = True
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        headers.append((b"x-accel-buffering", b"no"))  # a proxy would hold the events back
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for index in range(self._about.asked.n):
            delta = {"role": "assistant", "content": ""}
            choice = {"index": index, "delta": delta, "finish_reason": None}
            await _send(send, _event(self._chunk([choice])))

    async def _send_pieces(self, send: Send, pieces: Sequence[str]) -> None:
        for index, piece in enumerate(pieces):
            if piece:
                choice = {"index": index, "delta": {"content": piece}, "finish_reason": None}
                await _send(send, _event(self._chunk([choice])))

    def _chunk(self, choices: list[Body]) -> Body:
        chunk = self._common("chat.completion.chunk") | {"choices": choices}
        return chunk | ({"usage": None} if self._about.asked.usage else {})

    # ---- both

    def _common(self, kind: str) -> Body:
        about = self._about
        named = {"id": about.id, "object": kind, "created": about.created}
        return named | {"model": about.model.name}

    def _extra(self, result: Body) -> Body:
        """What OpenAI's API has no field for: the seed that repeats the answers, and the scores."""
        scores = {} if result["scores"] is None else {"scores": result["scores"]}
        return {"lorarlhf": {"seed": self._about.seed} | scores}

    async def _remember(self, result: Body) -> None:
        """Remember the answers before the client knows them: a thumb may follow at once."""
        about = self._about
        sampling: Body = {"temperature": about.asked.temperature, "seed": about.seed}
        sampling |= {"top_p": about.asked.top_p} if about.asked.top_p < 1 else {}
        sampling |= {"best_of": about.model.best_of} if about.model.best_of > 1 else {}
        answers = [
            NamedAnswer(
                answer_name(about.id, index),
                about.asked.messages,
                text,
                about.model.source,
                sampling,
            )
            for index, text in enumerate(result["texts"])
        ]
        try:
            await anyio.to_thread.run_sync(self._keep, answers)
        except (OSError, sqlite3.DatabaseError) as error:  # the answer is complete all the same
            print(f"An answer is not remembered for thumbs: {error}", file=sys.stderr)


def _usage(result: Body) -> Body:
    prompt, completion = result["prompt_tokens"], result["completion_tokens"]
    tokens = {"prompt_tokens": prompt, "completion_tokens": completion}
    return tokens | {"total_tokens": prompt + completion}


def _event(content: Body) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"


async def _send(send: Send, body: bytes, last: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": not last})


async def _no_receive() -> Any:
    raise RuntimeError("a response of JSON reads nothing")


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())
