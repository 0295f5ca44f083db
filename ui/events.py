"""How the pages' components and scripts call Python functions."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.security import is_owner, rater_of

EVENT: dict[str, Any] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "concurrency_limit": None,
}
"""The options of every Gradio event on the pages."""

IN_TURN: dict[str, Any] = EVENT | {"concurrency_id": "chat"}
"""`EVENT` for events that are handled in the order in which they came, whatever handles them."""

NEVER_DROPPED: dict[str, Any] = IN_TURN | {"trigger_mode": "multiple"}
"""`IN_TURN` for events that may come while an earlier one is still open. Otherwise Gradio ignores
them silently: a message that is sent while the last answer's stream closes would be lost."""

Handler = Callable[[str, dict[str, Any]], dict[str, Any]]
"""Answers a request of a page's script; takes the rater's name and the request's data."""


def allowed(request: gr.Request, owner: bool = False) -> str:
    """The rater who sent a request.

    Args:
        owner: whether only owners of the project may send it.

    Raises:
        UserError: nobody is logged in, or the rater is not an owner.
    """
    rater = rater_of(request)
    if rater is None:
        raise UserError("You are not logged in any more. Reload the page.")
    if owner and not is_owner(request):
        raise UserError("Only an owner of this project can do this.")
    return rater


def for_owners(handler: Callable[..., Any]) -> Callable[..., Any]:
    """An event's handler that only owners of the project can use; others see an error."""

    def answer(request: gr.Request, *inputs: Any) -> Any:
        try:
            allowed(request, owner=True)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return handler(*inputs)

    answer.__name__ = handler.__name__
    return answer


def served(name: str, handler: Handler, owner: bool = False) -> Callable[..., dict[str, Any]]:
    """A handler as gr.HTML calls it: with the rater of the login, and errors as text.

    Args:
        owner: whether only owners of the project may use it.
    """

    def answer(data: Any, request: gr.Request) -> dict[str, Any]:
        try:
            return handler(allowed(request, owner), data if isinstance(data, dict) else {})
        except UserError as error:
            return {"error": str(error)}

    answer.__name__ = name
    return answer
