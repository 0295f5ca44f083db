"""The Settings page: which models answer on the Rate page, and how."""

from typing import Any

import gradio as gr

from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.events import EVENT, for_owners
from lorarlhf_ui.models import AnswerSettings
from lorarlhf_ui.prefetch import Prefetch

SAME = "the same"
NEWEST = "newest"


def settings_page(prefetch: Prefetch) -> None:
    """Put the page's components into the Blocks that are being built.

    The fields are disabled until they show the current settings, which would overwrite what was
    typed before.
    """
    gr.Markdown("How answers for the Rate page are generated:")
    off: dict[str, Any] = {"interactive": False}
    wide = off | {"min_width": 260}  # a narrower slider has no room for its label
    with gr.Row():
        model = gr.Dropdown(label="Model", elem_id="settings-model", **off)
        against = gr.Dropdown(label="Model of the second answer", elem_id="settings-against", **off)
        label = "Answers to each prompt (three or more are ranked)"
        answers = gr.Slider(2, 6, step=1, label=label, elem_id="settings-answers", **wide)
    with gr.Row():
        temperature = gr.Slider(0.0, 2.0, step=0.1, label="Temperature", **wide)
        tokens = gr.Slider(16, 1024, step=16, label="Longest answer, in tokens", **wide)
        label = "Share of prompts that every rater gets"
        overlap = gr.Slider(0.0, 1.0, step=0.05, label=label, **wide)
    save = gr.Button("Save", variant="primary", elem_id="settings-save", **off)
    message = gr.Markdown(elem_id="settings-message", elem_classes="page-message")
    fields = [model, against, answers, temperature, tokens, overlap]

    def fill() -> list[Any]:
        settings, names = prefetch.settings(), prefetch.models.names()
        return [
            gr.Dropdown(choices=[NEWEST, *names], value=settings.model, interactive=True),
            gr.Dropdown(choices=[SAME, *names], value=settings.against or SAME, interactive=True),
            gr.Slider(value=settings.answers, interactive=True),
            gr.Slider(value=settings.temperature, interactive=True),
            gr.Slider(value=settings.max_new_tokens, interactive=True),
            gr.Slider(value=settings.overlap, interactive=True),
            gr.Button(interactive=True),
        ]

    def change_settings(
        model: str, against: str, answers: int, temperature: float, tokens: int, overlap: float
    ) -> str:
        second = "" if against == SAME else against
        settings = AnswerSettings(
            model, second, int(answers), float(temperature), int(tokens), overlap
        )
        try:
            prefetch.change_settings(settings)
        except UserError as error:
            return str(error)
        return "Saved. Answers that are ready already come first."

    gr.on(None, for_owners(fill), None, [*fields, save], **EVENT)
    save.click(for_owners(change_settings), fields, message, **EVENT)
