"""The settings page: which models answer on the Rate page, and how."""

from typing import Any

import gradio as gr

from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.prefetch import Making, Prefetch

SAME = "the same"
NEWEST = "newest"


def settings_page(ahead: Prefetch) -> None:
    """Put the page's components into the Blocks that are being built.

    They can be changed once they show what holds: what is typed into a field before that would be
    overwritten.
    """
    gr.Markdown("### How answers are made for the Rate page")
    off: dict[str, Any] = {"interactive": False}
    with gr.Row():
        model = gr.Dropdown(label="Answers from", elem_id="making-model", **off)
        against = gr.Dropdown(label="The second one from", elem_id="making-against", **off)
        label = "Answers to a prompt (from three on they are ranked)"
        answers = gr.Slider(2, 6, step=1, label=label, elem_id="making-answers", **off)
    with gr.Row():
        temperature = gr.Slider(0.0, 2.0, step=0.1, label="Temperature", **off)
        tokens = gr.Slider(16, 1024, step=16, label="Longest answer, in tokens", **off)
        label = "Share of prompts that every rater is asked"
        overlap = gr.Slider(0.0, 1.0, step=0.05, label=label, **off)
    save = gr.Button("Use from now on", size="sm", elem_id="making-save", **off)
    said = gr.Markdown(elem_id="making-said")
    fields = [model, against, answers, temperature, tokens, overlap]

    def fill() -> list[Any]:
        making, names = ahead.making(), ahead.models.names()
        return [
            gr.Dropdown(choices=[NEWEST, *names], value=making.model, interactive=True),
            gr.Dropdown(choices=[SAME, *names], value=making.against or SAME, interactive=True),
            gr.Slider(value=making.answers, interactive=True),
            gr.Slider(value=making.temperature, interactive=True),
            gr.Slider(value=making.max_new_tokens, interactive=True),
            gr.Slider(value=making.overlap, interactive=True),
            gr.Button(interactive=True),
        ]

    def change(
        model: str, against: str, answers: int, temperature: float, tokens: int, overlap: float
    ) -> str:
        second = "" if against == SAME else against
        making = Making(model, second, int(answers), float(temperature), int(tokens), overlap)
        try:
            ahead.make(making)
        except UserError as error:
            return str(error)
        return "Kept. Answers that are ready already come first."

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    quiet["concurrency_limit"] = None
    gr.on(None, fill, None, [*fields, save], **quiet)
    save.click(change, fields, said, **quiet)
