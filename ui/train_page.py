"""The Train page: what runs, what waits, and the form that starts more."""

import gradio as gr

from lorarlhf_ui.events import served
from lorarlhf_ui.theme import static
from lorarlhf_ui.train import Training
from lorarlhf_ui.train_form import form_html

SCRIPTS = ("reach.js", "drafts.js", "raw.js", "heat_map.js", "train.js")
"""They run as one script, in this order."""
FORM = "<!-- form -->"


def train_page(training: Training) -> None:
    """Put the page's components into the Blocks that are being built."""
    page = static("train.html").replace(FORM, form_html(training.kinds))
    handlers = {
        "look": training.look,
        "estimate": training.estimate,
        "start": training.start,
        "tonight": training.tonight,
        "stop": training.stop,
        "resume": training.resume,
        "keep": training.keep,
        "drop": training.drop,
    }
    gr.HTML(
        html_template=page,
        js_on_load="".join(static(name) for name in SCRIPTS),
        server_functions=[served(name, handler, owner=True) for name, handler in handlers.items()],
        apply_default_css=False,
        elem_id="train",
    )
