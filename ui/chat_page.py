"""The chat page: one or two models answer the same conversation, side by side."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.chat import NOBODY, Talk, Talking
from lorarlhf_ui.security import rater_of

VOTES = {
    "left": "Left is better",
    "right": "Right is better",
    "tie": "Tie",
    "both_good": "Both good",
    "both_bad": "Both bad",
}
# Tags that are shown as the text they are; Markdown makes none of them but images. Gradio takes
# scripts away, and what the rest can do with a style stays inside the message (pages.css).
AS_TEXT = """
    img image picture source audio video track canvas iframe object embed map area style form input
    textarea select option label fieldset legend output meter progress link dialog details summary
    b i u s small big sub sup mark font center marquee meta base
"""

# Whether there is a second side. In the browser: Gradio can lose an event that is sent while the
# answer to the one before it ends, and a question may follow at once.
BESIDE = f"(name) => ({{__type__: 'update', visible: name !== '{NOBODY}'}})"


def chat_page(talking: Talking) -> None:
    """Put the page's components into the Blocks that are being built."""
    _ChatPage(talking)


class _ChatPage:
    def __init__(self, talking: Talking) -> None:
        self.talking = talking
        self._draw()
        self._connect()

    def _draw(self) -> None:
        with gr.Row():
            self.models = [
                gr.Dropdown(label=label, elem_id=f"chat-{name}-model", interactive=True)
                for label, name in (("Who answers", "left"), ("Beside it", "right"))
            ]
        with gr.Row():
            self.chatbots = [_chatbot("left", True), _chatbot("right", False)]
        self.said = gr.Markdown(elem_id="chat-said", elem_classes="said")
        with gr.Row(
            elem_id="chat-votes", elem_classes="small-buttons", visible=False
        ) as self.votes:
            self.vote_buttons = {
                which: gr.Button(label, size="sm", elem_id=f"chat-{which}", min_width=100)
                for which, label in VOTES.items()
            }
        with gr.Row(elem_classes="ask"):
            self.text = gr.Textbox(
                placeholder="Say something; Enter sends it",
                label="Your message",
                show_label=False,
                lines=1,
                max_lines=8,
                scale=6,
                elem_id="chat-text",
            )
            self.send = gr.Button("Send", variant="primary", min_width=80, elem_id="chat-send")
            self.stop = gr.Button("Stop", min_width=80, elem_id="chat-stop")
        with gr.Row(elem_classes="small-buttons"):
            self.retry = gr.Button("Answer again", size="sm", elem_id="chat-retry")
            self.anew = gr.Button("New conversation", size="sm", elem_id="chat-anew")
        with gr.Accordion("System prompt and sampling", open=False):
            self.system = gr.Textbox(
                label="System prompt, of a new conversation", lines=2, elem_id="chat-system"
            )
            with gr.Row():
                self.temperature = gr.Slider(0.0, 2.0, 0.7, step=0.1, label="Temperature")
                self.tokens = gr.Slider(16, 2048, 256, step=16, label="Longest answer, in tokens")
            self.scored = gr.Checkbox(
                label="Show the reward role's score of each answer", elem_id="chat-scored"
            )

    def _connect(self) -> None:
        quiet: dict[str, Any] = {
            "api_visibility": "private",
            "show_progress": "hidden",
            "concurrency_limit": None,
        }
        options = [*self.models, self.system, self.temperature, self.tokens, self.scored]
        shown = [*self.chatbots, self.said, self.votes]
        gr.on(None, self.fill, None, [*self.models, *shown], **quiet)
        gr.on(
            [self.text.submit, self.send.click],
            self.on_send,
            [self.text, *options],
            [self.text, *shown],
            **quiet,
        )
        self.stop.click(self.on_stop, None, None, **quiet)
        self.retry.click(self.on_retry, options, shown, **quiet)
        self.chatbots[0].edit(self.on_edit, options, shown, **quiet)
        self.anew.click(self.on_anew, None, shown, **quiet)
        self.models[1].change(None, self.models[1], self.chatbots[1], js=BESIDE)
        for which, button in self.vote_buttons.items():
            button.click(self._voting(which), None, shown, **quiet)

    # ---- events

    def fill(self, request: gr.Request) -> list[Any]:
        """The models there are, and the conversation as it stands."""
        names = self.talking.ahead.models.names()
        talk = self.talking.talk(_name(request))
        now = names[1:2] or names[:1]
        if talk.turns:  # those whose answers are shown
            models = self.talking.ahead.models
            now = [models.label(place).removeprefix("runs/") for place in talk.turns[-1].models]
        beside = now[1] if len(now) > 1 else NOBODY
        return [
            gr.Dropdown(choices=names, value=now[0] if now[0] in names else names[0]),
            gr.Dropdown(choices=[NOBODY, *names], value=beside if beside in names else NOBODY),
            *self._shown(talk, two=len(now) > 1),
        ]

    def on_send(self, request: gr.Request, text: str, *options: Any) -> Iterator[Any]:
        """Ask, and show the answers as they are written."""
        names, more, scored = _options(options)
        rater = _name(request)
        first = True
        try:
            for talk in self.talking.say(rater, text, names, **more):
                yield ["" if first else gr.skip(), *self._shown(talk)]
                first = False
        except UserError as error:
            yield [text if first else gr.skip(), *self._shown(self.talking.talk(rater), str(error))]
            return
        yield ["" if first else gr.skip(), *self._at_the_end(rater, scored)]

    def on_retry(self, request: gr.Request, *options: Any) -> Iterator[Any]:
        """Answer the last question again."""
        names, more, scored = _options(options)
        yield from self._follow(
            _name(request), self.talking.retry(_name(request), names, **more), scored
        )

    def on_edit(self, request: gr.Request, data: gr.EditData, *options: Any) -> Iterator[Any]:
        """Ask a question in other words."""
        names, more, scored = _options(options)
        place = data.index if isinstance(data.index, int) else data.index[0]
        number, text = place // 2, str(data.value)
        rater = _name(request)
        yield from self._follow(
            rater, self.talking.edit(rater, number, text, names, **more), scored
        )

    def on_stop(self, request: gr.Request) -> None:
        """End the answers where they are."""
        self.talking.stop(_name(request))

    def on_anew(self, request: gr.Request) -> list[Any]:
        """Forget the conversation."""
        return self._shown(self.talking.anew(_name(request)))

    def _voting(self, which: str) -> Any:
        def on_vote(request: gr.Request) -> list[Any]:
            rater = _name(request)
            try:
                talk = self.talking.vote(rater, which)
            except UserError as error:
                return self._shown(self.talking.talk(rater), str(error))
            return self._shown(talk, "Kept. The conversation goes on with the better answer.")

        on_vote.__name__ = f"on_vote_{which}"
        return on_vote

    # ---- what is shown

    def _follow(self, rater: str, talks: Iterator[Talk], scored: bool) -> Iterator[Any]:
        try:
            for talk in talks:
                yield self._shown(talk)
        except UserError as error:
            yield self._shown(self.talking.talk(rater), str(error))
            return
        yield self._at_the_end(rater, scored)

    def _at_the_end(self, rater: str, scored: bool) -> list[Any]:
        """The conversation as it stands: Gradio draws what came last again, and it may be gone."""
        if not scored:
            return self._shown(self.talking.talk(rater))
        try:
            return self._shown(self.talking.score(rater))
        except UserError as error:
            return self._shown(self.talking.talk(rater), str(error))

    def _shown(self, talk: Talk, said: str = "", two: bool | None = None) -> list[Any]:
        turn = talk.turns[-1] if talk.turns else None
        done = talk.job is None or talk.job.done
        if turn is not None and turn.scores and not said:
            scores = " and ".join(f"{score:.2f}" for score in turn.scores)
            said = f"Reward role's score: {scores}."
        pair = turn is not None and len(turn.answers) > 1 and done and turn.vote is None
        right: Any = talk.side(1)
        if two is not None:
            right = gr.Chatbot(value=right, visible=two)
        return [talk.side(0), right, said, gr.Row(visible=pair)]


def _chatbot(name: str, first: bool) -> gr.Chatbot:
    return gr.Chatbot(
        label=f"The {name} model's answers",
        show_label=False,
        visible=first,
        height=460,
        min_width=300,
        editable="user" if first else None,
        buttons=["copy"],
        allow_tags=AS_TEXT.split(),  # "preserved", that is: not tags any more
        feedback_options=None,
        layout="bubble",
        placeholder="Ask something below.",
        elem_id=f"chat-{name}-side",
    )


def _name(request: gr.Request) -> str:
    rater = rater_of(request)
    if rater is None:
        raise gr.Error("You are not logged in any more. Reload the page.")
    return rater


def _options(values: tuple[Any, ...]) -> tuple[list[str], dict[str, Any], bool]:
    left, right, system, temperature, tokens, scored = values
    left = left or "newest"  # asked before the page was filled
    names = [left] if right in (None, NOBODY) else [left, right]
    more = {"system": system, "temperature": temperature, "max_new_tokens": tokens}
    return names, more, bool(scored)
