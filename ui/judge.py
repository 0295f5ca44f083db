"""The widget that shows an item and takes a vote, as a Gradio component."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.security import rater_of
from lorarlhf_ui.theme import static

Answer = Callable[[str, dict[str, Any]], dict[str, Any]]


def judge(questions: dict[str, Answer], *, own_prompts: bool) -> gr.HTML:
    """The widget; `questions` are what its script may ask, each with the rater's name.

    Args:
        own_prompts: with a field for the rater's own prompt.
    """
    template = static("judge.html")
    if not own_prompts:
        start, end = template.index("<!-- own -->"), template.index("<!-- /own -->")
        template = template[:start] + template[end:]
    return gr.HTML(
        html_template=template,
        js_on_load=static("reach.js") + static("judge.js"),
        server_functions=[served(name, ask) for name, ask in questions.items()],
        apply_default_css=False,
        elem_id="judge",
    )


def served(name: str, ask: Answer) -> Callable[..., dict[str, Any]]:
    """A function for the page's script: the rater comes from the login, errors as words."""

    def answer(data: Any, request: gr.Request) -> dict[str, Any]:
        rater = rater_of(request)
        if rater is None:
            return {"error": "You are not logged in any more. Reload the page."}
        try:
            return ask(rater, data if isinstance(data, dict) else {})
        except UserError as error:
            return {"error": str(error)}

    answer.__name__ = name
    return answer
