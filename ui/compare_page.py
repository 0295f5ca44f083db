"""The Compare page: a blind comparison of two models."""

from typing import Any

import gradio as gr

from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.compare import Comparisons
from lorarlhf_ui.events import EVENT, FORGET_MODEL, asked_model, for_owners
from lorarlhf_ui.security import is_owner, rater_of
from lorarlhf_ui.vote_widget import vote_widget

RELOAD = "() => document.querySelector('.vote-widget')?.dispatchEvent(new Event('reload'))"


def compare_page(comparisons: Comparisons) -> None:
    """Put the page's components into the Blocks that are being built."""
    _widget(comparisons)
    # Hidden until `fill` knows that an owner is here.
    with gr.Accordion(
        "New blind comparison", open=True, elem_id="compare-new", visible=False
    ) as new:
        with gr.Row():
            first = gr.Dropdown(label="One model", elem_id="compare-first", interactive=True)
            second = gr.Dropdown(label="The other", elem_id="compare-second", interactive=True)
            wanted = gr.Slider(5, 60, 30, step=1, label="Held-out prompts", elem_id="compare-count")
        # Disabled until `fill` has set the choices of models.
        start = gr.Button(
            "Start", variant="primary", elem_id="compare-start", min_width=120, interactive=False
        )
        message = gr.Markdown(elem_id="compare-message", elem_classes="page-message")
    with gr.Accordion("Earlier comparisons", open=False, elem_id="compare-earlier"):
        earlier = gr.Markdown(elem_id="compare-results")

    def fill(request: gr.Request) -> list[Any]:
        results = _earlier(comparisons, rater_of(request))
        if not is_owner(request):
            return [gr.skip(), gr.skip(), gr.skip(), results, gr.skip(), gr.skip()]
        choices, models = comparisons.choices(), comparisons.prefetch.models.names()
        other = models[1] if len(models) > 1 else choices[-1][1]
        if asked_model(request) in models:
            other = asked_model(request)
        return [
            gr.Dropdown(choices=choices, value=models[0]),
            gr.Dropdown(choices=choices, value=other),
            gr.Slider(maximum=len(comparisons.prompts())),
            results,
            gr.Button(interactive=True),
            gr.Accordion(visible=True),
        ]

    def start_comparison(one: str, other: str, count: int) -> str:
        try:
            comparisons.start(one, other, int(count))
        except UserError as error:
            return str(error)
        return "The answers are being generated. Vote as they appear; names are shown at the end."

    there = gr.on(None, fill, None, [first, second, wanted, earlier, start, new], **EVENT)
    there.then(None, None, None, js=FORGET_MODEL, **EVENT)
    started = start.click(for_owners(start_comparison), [first, second, wanted], message, **EVENT)
    started.then(None, None, None, js=RELOAD)


def _widget(comparisons: Comparisons) -> None:
    vote_widget(
        {
            "begin": lambda rater, data: comparisons.begin(rater),
            "vote": lambda rater, data: comparisons.vote(
                rater, data.get("token"), data.get("vote") or {}, data.get("milliseconds")
            ),
            "undo": lambda rater, data: comparisons.undo(rater, data.get("expected")),
            "progress": lambda rater, data: comparisons.progress(rater),
        },
        own_prompts=False,
    )


def _earlier(comparisons: Comparisons, rater: str | None) -> str:
    """The results of all comparisons but the newest, as Markdown."""
    lines = [f"- {comparisons.result(one, rater)}" for one in comparisons.all()[1:]]
    return "\n".join(lines) or "None yet."
