"""The endpoint as an ASGI application: its paths, and what each of them does."""

import json
import secrets
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError
from lorarlhf.serve.answers import ChatAnswer, Completion, now
from lorarlhf.serve.engine import FAILED, READY, Engine
from lorarlhf.serve.errors import ApiError, refused
from lorarlhf.serve.feedback import give_feedback
from lorarlhf.serve.guard import MOST_BYTES, Access, Guard
from lorarlhf.serve.models import Model, Models
from lorarlhf.serve.remembered import Remembered
from lorarlhf.serve.request import ChatRequest, read_request

NO_FEEDBACK = (
    "This server takes no feedback: it was started with --no-feedback, or serves a run that is in "
    "no project and so has no store of votes."
)


class Endpoint:
    """What the paths share.

    Attributes:
        remembered, store: where answers are remembered and thumbs are stored; None if this server
            takes no feedback.
    """

    def __init__(
        self,
        engine: Engine,
        models: Models,
        remembered: Remembered | None = None,
        store: Store | None = None,
    ) -> None:
        self.engine, self.models = engine, models
        self.remembered, self.store = remembered, store

    async def chat(self, request: Request) -> ChatAnswer:
        """POST /v1/chat/completions."""
        asked = read_request(await _json(request))
        model = await anyio.to_thread.run_sync(self.models.find, asked.model)
        if model.best_of > 1 and asked.temperature == 0:
            raise refused(
                "At temperature 0 all candidates are the same, so there is no best one. Ask for a "
                f"higher temperature, or for the model {model.name.partition(':')[0]}.",
                "temperature",
            )
        # Of 53 bits, so that JavaScript can send it back.
        seed = secrets.randbits(53) if asked.seed is None else asked.seed
        job = self.engine.ask(_wanted(asked, model, seed))
        about = Completion(f"chatcmpl-{secrets.token_hex(12)}", asked, model, seed, now())
        keep = self.remembered.keep if self.remembered else lambda answers: None
        return ChatAnswer(about, job, self.engine, keep)

    async def list_models(self, request: Request) -> Response:
        """GET /v1/models."""
        names = await anyio.to_thread.run_sync(self.models.names)
        return JSONResponse({"object": "list", "data": list(map(_model, names))})

    async def one_model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        find = self.models.find
        found = await anyio.to_thread.run_sync(find, request.path_params["name"])
        return JSONResponse(_model(found.name))

    async def health(self, request: Request) -> Response:
        """GET /health: 200 if the model answers, 503 with the reason if not."""
        state = self.engine.state
        reason = {"message": self.engine.message} if state not in (READY, FAILED) else {}
        return JSONResponse({"status": state} | reason, 200 if state == READY else 503)

    async def feedback(self, request: Request) -> Response:
        """POST /v1/feedback."""
        if self.remembered is None or self.store is None:
            raise ApiError(404, NO_FEEDBACK, code="no_feedback")
        body = await _json(request)
        given = await anyio.to_thread.run_sync(give_feedback, self.store, self.remembered, body)
        return JSONResponse({"object": "feedback", "vote": given.vote, "outcome": given.outcome})


def application(endpoint: Endpoint, access: Access) -> Guard:
    """The endpoint behind its guard."""
    routes = [
        Route("/v1/chat/completions", endpoint.chat, methods=["POST"]),
        Route("/v1/models", endpoint.list_models, methods=["GET"]),
        Route("/v1/models/{name:path}", endpoint.one_model, methods=["GET"]),
        Route("/v1/feedback", endpoint.feedback, methods=["POST"]),
        Route("/health", endpoint.health, methods=["GET"]),
    ]
    handlers: Any = {ApiError: _refuse, HTTPException: _refuse_path, UserError: _fail}
    handlers[Exception] = _unexpected  # Starlette raises it once more, and uvicorn shows it
    return Guard(Starlette(routes=routes, exception_handlers=handlers), access)


def _wanted(asked: ChatRequest, model: Model, seed: int) -> dict[str, Any]:
    """The request as the model's process takes it; see `work.Work`."""
    return {
        "messages": asked.messages,
        "model": model.place,
        "reward": model.reward,
        "n": asked.n,
        "best_of": model.best_of,
        "seed": seed,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "max_tokens": asked.max_tokens,
        "stops": asked.stops,
    }


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "lorarlhf"}


async def _json(request: Request) -> Any:
    """The body of a request, counted while it is read, since its length may be wrong."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                raise ApiError(413, f"A request has up to {MOST_BYTES // 2**20} MB.")
    except ClientDisconnect as error:  # nobody reads this, and it is no error of the server
        raise refused("The connection ended before the body was complete.") from error
    try:
        # Without unpaired surrogates, which have no UTF-8: they could be neither sent nor stored.
        text = json.dumps(json.loads(body), ensure_ascii=False)
        return json.loads(text.encode("utf-8", "ignore"))
    except ValueError as error:  # also if it is not UTF-8
        raise refused(f"The body is not JSON ({error}).") from error
    except RecursionError as error:
        raise refused("The body is nested too deeply.") from error


async def _refuse(request: Request, error: Any) -> Response:
    return JSONResponse(error.body(), error.status, error.headers())


async def _refuse_path(request: Request, error: Any) -> Response:
    """A path or a method that does not exist."""
    paths = "/v1/chat/completions, /v1/models, /v1/feedback and /health"
    wrong = ApiError(
        error.status_code,
        f"{request.method} {request.url.path} does not exist here. There are {paths}.",
    )
    return JSONResponse(wrong.body(), error.status_code, error.headers)


async def _fail(request: Request, error: Any) -> Response:
    """The store can't be read or written."""
    wrong = ApiError(503, str(error))
    return JSONResponse(wrong.body(), 503)


async def _unexpected(request: Request, error: Any) -> Response:
    wrong = ApiError(500, "An unexpected error occurred. The server's terminal shows it.")
    return JSONResponse(wrong.body(), 500)
