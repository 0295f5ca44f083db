"""Errors as OpenAI's API sends them: a status, and an object that says what is wrong."""

from dataclasses import dataclass
from typing import Any

INVALID, KEY, LIMIT, SERVER = (
    "invalid_request_error",
    "authentication_error",
    "rate_limit_error",
    "server_error",
)
TYPES = {401: KEY, 403: "permission_error", 429: LIMIT, 500: SERVER, 503: SERVER}


@dataclass
class ApiError(Exception):
    """A request that is refused, or an answer that failed.

    Attributes:
        status: of HTTP: 400, 401, 403, 404, 413, 421, 429 or 503; 500 for what nobody expected.
        message: what is wrong and what to do.
        param: the field of the request that is wrong.
        code: a word for programs, such as `context_length_exceeded`.
        retry_after: seconds after which another try makes sense.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after: int | None = None

    def body(self) -> dict[str, Any]:
        """The object in the response's body, or in an event of a stream."""
        kind = TYPES.get(self.status, INVALID)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """The headers that go with it."""
        found = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that can't be served as it is."""
    return ApiError(400, message, param, code)
