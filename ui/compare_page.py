"""The compare page: a blind taste test of two models."""

from typing import Any

import gradio as gr

from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.compare import Tasting
from lorarlhf_ui.judge import judge
from lorarlhf_ui.security import rater_of

AGAIN = "() => document.querySelector('.judge')?.dispatchEvent(new Event('again'))"


def compare_page(tasting: Tasting) -> None:
    """Put the page's components into the Blocks that are being built."""
    judge(
        {
            "begin": lambda rater, data: tasting.begin(rater),
            "vote": lambda rater, data: tasting.vote(
                rater, data.get("token"), data.get("said") or {}, data.get("milliseconds")
            ),
            "undo": lambda rater, data: tasting.undo(rater, data.get("expected")),
            "progress": lambda rater, data: tasting.progress(rater),
        },
        own_prompts=False,
    )
    with gr.Accordion("A new taste test", open=True, elem_id="taste-new"):
        with gr.Row():
            first = gr.Dropdown(label="One model", elem_id="taste-first", interactive=True)
            second = gr.Dropdown(label="The other", elem_id="taste-second", interactive=True)
            wanted = gr.Slider(5, 60, 30, step=1, label="Held-out prompts", elem_id="taste-wanted")
        # Off until the models are known: a test of nothing would be refused.
        start = gr.Button(
            "Start", variant="primary", elem_id="taste-start", min_width=120, interactive=False
        )
        said = gr.Markdown(elem_id="taste-said", elem_classes="said")
    with gr.Accordion("Earlier tests", open=False, elem_id="taste-earlier"):
        earlier = gr.Markdown(elem_id="taste-results")

    def fill(request: gr.Request) -> list[Any]:
        names = tasting.ahead.models.names()
        newest = names[1] if len(names) > 1 else names[0]
        return [
            gr.Dropdown(choices=names, value=names[0]),
            gr.Dropdown(choices=names, value=newest),
            gr.Slider(maximum=len(tasting.prompts())),
            results(rater_of(request)),
            gr.Button(interactive=True),
        ]

    def begin(one: str, other: str, wanted: int) -> str:
        try:
            tasting.start(one, other, int(wanted))
        except UserError as error:
            return str(error)
        return "The answers are being written; vote as they come. Names are told at the end."

    def results(rater: str | None) -> str:
        lines = [f"- {tasting.verdict(test, rater)}" for test in tasting.all()[1:]]
        return "\n".join(lines) or "None yet."

    quiet: dict[str, Any] = {
        "api_visibility": "private",
        "show_progress": "hidden",
        "concurrency_limit": None,
    }
    gr.on(None, fill, None, [first, second, wanted, earlier, start], **quiet)
    started = start.click(begin, [first, second, wanted], said, **quiet)
    started.then(None, None, None, js=AGAIN)
