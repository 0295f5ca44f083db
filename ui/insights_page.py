"""The Insights page: what the votes prefer, why it may be so, and how far raters agree."""

import gradio as gr

from lorarlhf_ui.events import served
from lorarlhf_ui.insights import Insights
from lorarlhf_ui.theme import static

SCRIPTS = ("reach.js", "drafts.js", "raw.js", "heat_map.js", "insights.js")
"""They run as one script, in this order."""


def insights_page(insights: Insights) -> None:
    """Put the page's components into the Blocks that are being built."""
    gr.HTML(
        html_template=static("insights.html"),
        js_on_load="".join(static(name) for name in SCRIPTS),
        server_functions=[served("look", insights.look), served("own_axis", insights.own_axis)],
        apply_default_css=False,
        elem_id="insights",
    )
