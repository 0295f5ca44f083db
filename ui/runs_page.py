"""The Runs page: the project's runs, their curves over each other, and what started from what."""

import gradio as gr

from lorarlhf_ui.events import served
from lorarlhf_ui.runs import Runs
from lorarlhf_ui.theme import static

SCRIPTS = ("reach.js", "runs.js")
"""They run as one script, in this order."""
REQUESTS = ("runs", "details", "curves", "rename", "keep", "delete", "export")


def runs_page(runs: Runs) -> None:
    """Put the page's components into the Blocks that are being built."""
    gr.HTML(
        html_template=static("runs.html"),
        js_on_load="".join(static(name) for name in SCRIPTS),
        server_functions=[served(name, getattr(runs, name), owner=True) for name in REQUESTS],
        apply_default_css=False,
        elem_id="runs",
    )
