"""The collect page: two or more answers, a vote, the next ones."""

from typing import Any

import gradio as gr

from lorarlhf.errors import UserError
from lorarlhf_ui.ahead import Ahead, Making
from lorarlhf_ui.collecting import Collecting
from lorarlhf_ui.judge import judge

SAME = "the same"
NEWEST = "newest"


def collect_page(collecting: Collecting) -> None:
    """Put the page's components into the Blocks that are being built."""
    judge(
        {
            "begin": lambda rater, data: collecting.begin(rater),
            "vote": lambda rater, data: collecting.vote(
                rater, data.get("token"), data.get("said") or {}, data.get("milliseconds")
            ),
            "undo": lambda rater, data: collecting.undo(rater, data.get("expected")),
            "ask": lambda rater, data: collecting.ask(rater, data.get("text")),
            "watch": lambda rater, data: collecting.watch(rater, data.get("seen") or []),
            "progress": lambda rater, data: collecting.progress(rater),
        },
        own_prompts=True,
    )
    with gr.Accordion("How answers are made", open=False, elem_id="making"):
        _making(collecting.ahead)


def _making(ahead: Ahead) -> None:
    with gr.Row():
        model = gr.Dropdown(label="Answers from", elem_id="making-model")
        against = gr.Dropdown(label="The second one from", elem_id="making-against")
        answers = gr.Slider(2, 6, step=1, label="Answers to a prompt", elem_id="making-answers")
    with gr.Row():
        temperature = gr.Slider(0.0, 2.0, step=0.1, label="Temperature")
        tokens = gr.Slider(16, 1024, step=16, label="Longest answer, in tokens")
        overlap = gr.Slider(0.0, 1.0, step=0.05, label="Share of prompts that every rater is asked")
    save = gr.Button("Use from now on", size="sm", elem_id="making-save")
    said = gr.Markdown(elem_id="making-said")
    fields = [model, against, answers, temperature, tokens, overlap]

    def fill() -> list[Any]:
        making, names = ahead.making(), ahead.models.names()
        return [
            gr.Dropdown(choices=[NEWEST, *names], value=making.model),
            gr.Dropdown(choices=[SAME, *names], value=making.against or SAME),
            making.answers,
            making.temperature,
            making.max_new_tokens,
            making.overlap,
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
    gr.on(None, fill, None, fields, **quiet)
    save.click(change, fields, said, **quiet)
