"""How the pages' components and scripts call Python functions."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.security import rater_of

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


def served(name: str, handler: Handler) -> Callable[..., dict[str, Any]]:
    """A handler as gr.HTML calls it: with the rater of the login, and errors as text."""

    def answer(data: Any, request: gr.Request) -> dict[str, Any]:
        rater = rater_of(request)
        if rater is None:
            return {"error": "You are not logged in any more. Reload the page."}
        try:
            return handler(rater, data if isinstance(data, dict) else {})
        except UserError as error:
            return {"error": str(error)}

    answer.__name__ = name
    return answer
