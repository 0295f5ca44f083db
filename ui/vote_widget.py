"""The widget that shows an item and takes a vote, as a Gradio component."""

import gradio as gr

from lorarlhf_ui.events import Handler, served
from lorarlhf_ui.theme import static

SCRIPTS = (
    *("reach.js", "keys.js", "drafts.js", "raw.js"),
    *("vote_cards.js", "vote_ranking.js", "vote_widget.js"),
)
"""They run as one script, in this order."""


def vote_widget(handlers: dict[str, Handler], *, own_prompts: bool) -> gr.HTML:
    """The widget.

    Args:
        handlers: what its script may request, by name.
        own_prompts: whether there is a field for the rater's own prompt.
    """
    template = static("vote_widget.html")
    if not own_prompts:
        start, end = template.index("<!-- own -->"), template.index("<!-- /own -->")
        template = template[:start] + template[end:]
    return gr.HTML(
        html_template=template,
        js_on_load="".join(static(name) for name in SCRIPTS),
        server_functions=[served(name, handler) for name, handler in handlers.items()],
        apply_default_css=False,
        elem_id="vote-widget",
    )
