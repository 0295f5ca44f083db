"""The Settings page: which models answer on the Rate page and how, and what is asked next."""

from typing import Any

import gradio as gr

from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.events import EVENT, for_owners
from lorarlhf_ui.models import INFORMATION, MOST_REPEATS, RANDOM, AnswerSettings
from lorarlhf_ui.prefetch import Prefetch

SAME = "the same"
NEWEST = "newest"
ORDERS = [("at random", RANDOM), ("most informative first", INFORMATION)]


def settings_page(prefetch: Prefetch) -> None:
    """Put the page's components into the Blocks that are being built.

    The fields are disabled until they show the current settings, which would overwrite what was
    typed before.
    """
    off: dict[str, Any] = {"interactive": False}
    wide = off | {"min_width": 260}  # a narrower slider has no room for its label
    fields = [*_answer_fields(off, wide), *_order_fields(wide)]
    save = gr.Button("Save", variant="primary", elem_id="settings-save", **off)
    message = gr.Markdown(elem_id="settings-message", elem_classes="page-message")

    def fill() -> list[Any]:
        settings = prefetch.settings()
        names = prefetch.models.choices(also=(settings.model, settings.against))
        newest, same = (NEWEST, NEWEST), (SAME, SAME)
        return [
            gr.Dropdown(choices=[newest, *names], value=settings.model, interactive=True),
            gr.Dropdown(choices=[same, *names], value=settings.against or SAME, interactive=True),
            gr.Slider(value=settings.answers, interactive=True),
            gr.Slider(value=settings.temperature, interactive=True),
            gr.Slider(value=settings.max_new_tokens, interactive=True),
            gr.Dropdown(value=settings.order, interactive=True),
            gr.Slider(value=settings.overlap, interactive=True),
            gr.Slider(value=settings.repeats, interactive=True),
            gr.Button(interactive=True),
        ]

    def change_settings(*values: Any) -> str:
        model, against, answers, temperature, tokens, order, overlap, repeats = values
        settings = AnswerSettings(
            model,
            "" if against == SAME else against,
            int(answers),
            float(temperature),
            int(tokens),
            overlap,
            order,
            repeats,
        )
        try:
            prefetch.change_settings(settings)
        except UserError as error:
            return str(error)
        return "Saved. Answers that are ready already stay in the queue."

    gr.on(None, for_owners(fill), None, [*fields, save], **EVENT)
    save.click(for_owners(change_settings), fields, message, **EVENT)


def _answer_fields(off: dict[str, Any], wide: dict[str, Any]) -> list[Any]:
    gr.Markdown("How answers for the Rate page are generated:")
    with gr.Row():
        model = gr.Dropdown(label="Model", elem_id="settings-model", **off)
        against = gr.Dropdown(label="Model of the second answer", elem_id="settings-against", **off)
        label = "Answers to each prompt (three or more are ranked)"
        answers = gr.Slider(2, 6, step=1, label=label, elem_id="settings-answers", **wide)
    with gr.Row():
        temperature = gr.Slider(0.0, 2.0, step=0.1, label="Temperature", **wide)
        tokens = gr.Slider(16, 1024, step=16, label="Longest answer, in tokens", **wide)
    return [model, against, answers, temperature, tokens]


def _order_fields(wide: dict[str, Any]) -> list[Any]:
    gr.Markdown("What raters are asked next:")
    with gr.Row():
        order = gr.Dropdown(ORDERS, label="Order", elem_id="settings-order", **wide)
        label = "Share of prompts that every rater gets"
        overlap = gr.Slider(0.0, 1.0, step=0.05, label=label, **wide)
        label = "Share of votes that ask an earlier pair again"
        place = "settings-repeats"
        repeats = gr.Slider(0.0, MOST_REPEATS, step=0.01, label=label, elem_id=place, **wide)
    return [order, overlap, repeats]
