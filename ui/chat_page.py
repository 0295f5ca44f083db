"""The Chat page: one or two models answer the same conversation, side by side."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.chat import Conversation, Conversations
from lorarlhf_ui.events import IN_TURN, NEVER_DROPPED
from lorarlhf_ui.security import rater_of

NOBODY = "nobody"
"""The choice of no second model."""
VOTES = {
    "left": "Left is better",
    "right": "Right is better",
    "tie": "Tie",
    "both_good": "Both good",
    "both_bad": "Both bad",
}
# These tags are shown as text. Of these, Markdown produces only images. Gradio removes scripts,
# and pages.css keeps the styles of the remaining tags inside their message.
AS_TEXT = """
    img image picture source audio video track canvas iframe object embed map area style form input
    textarea select option label fieldset legend output meter progress link dialog details summary
    b i u s small big sub sup mark font center marquee meta base
"""

# Shows or hides the second side. It runs in the browser: Gradio can lose an event that is sent
# while the previous one ends, and a message may follow at once.
SHOW_SECOND = f"(name) => ({{__type__: 'update', visible: name !== '{NOBODY}'}})"


def chat_page(conversations: Conversations) -> None:
    """Put the page's components into the Blocks that are being built."""
    _ChatPage(conversations)


class _ChatPage:
    def __init__(self, conversations: Conversations) -> None:
        self.conversations = conversations
        self._build_conversation()
        self._build_input()
        self._build_options()
        self._connect()

    # ---- components

    def _build_conversation(self) -> None:
        with gr.Row():
            self.models = [
                gr.Dropdown(label=label, elem_id=f"chat-{name}-model", interactive=True)
                for label, name in (("Model", "left"), ("Second model", "right"))
            ]
        with gr.Row():
            self.chatbots = [_chatbot("left", True), _chatbot("right", False)]
        self.message = gr.Markdown(elem_id="chat-message", elem_classes="page-message")
        with gr.Row(
            elem_id="chat-votes", elem_classes="small-buttons", visible=False
        ) as self.votes:
            self.vote_buttons = {
                choice: gr.Button(label, size="sm", elem_id=f"chat-{choice}", min_width=100)
                for choice, label in VOTES.items()
            }

    def _build_input(self) -> None:
        with gr.Row(elem_classes="ask"):
            self.text = gr.Textbox(
                placeholder="Write a message; Enter sends it",
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
            self.restart = gr.Button("New conversation", size="sm", elem_id="chat-restart")

    def _build_options(self) -> None:
        with gr.Accordion("System prompt and sampling", open=False):
            self.system = gr.Textbox(
                label="System prompt of a new conversation", lines=2, elem_id="chat-system"
            )
            with gr.Row():
                self.temperature = gr.Slider(0.0, 2.0, 0.7, step=0.1, label="Temperature")
                self.tokens = gr.Slider(16, 2048, 256, step=16, label="Longest answer, in tokens")
            self.scored = gr.Checkbox(
                label="Show the reward role's score of each answer", elem_id="chat-scored"
            )

    def _connect(self) -> None:
        options = [*self.models, self.system, self.temperature, self.tokens, self.scored]
        shown = [*self.chatbots, self.message, self.votes]
        gr.on(None, self.fill, None, [*self.models, *shown], **NEVER_DROPPED)
        gr.on(
            [self.text.submit, self.send.click],
            self.on_send,
            [self.text, *options],
            [self.text, *shown],
            **NEVER_DROPPED,
        )
        self.stop.click(self.on_stop, None, None, **IN_TURN)
        self.retry.click(self.on_retry, options, shown, **NEVER_DROPPED)
        self.chatbots[0].edit(self.on_edit, options, shown, **NEVER_DROPPED)
        self.restart.click(self.on_restart, None, shown, **IN_TURN)
        self.models[1].change(None, self.models[1], self.chatbots[1], js=SHOW_SECOND)
        for choice, button in self.vote_buttons.items():
            button.click(self._voting(choice), None, shown, **IN_TURN)

    # ---- events

    def fill(self, request: gr.Request) -> list[Any]:
        """The choices of models, and the rater's conversation."""
        models = self.conversations.prefetch.models
        names = models.names()
        conversation = self.conversations.of(_name(request))
        current = names[1:2] or names[:1]
        if conversation.turns:  # the models whose answers are shown
            places = conversation.models
            current = [models.label(place).removeprefix("runs/") for place in places]
        second = current[1] if len(current) > 1 else NOBODY
        return [
            gr.Dropdown(choices=names, value=current[0] if current[0] in names else names[0]),
            gr.Dropdown(choices=[NOBODY, *names], value=second if second in names else NOBODY),
            *self._shown(conversation, two=len(current) > 1),
        ]

    def on_send(self, request: gr.Request, text: str, *options: Any) -> Iterator[Any]:
        """Send a message, and show the answers while they are written."""
        names, more, scored = _options(options)
        rater = _name(request)
        if self.conversations.is_answering(rater, text):  # a double click, or Enter and a click
            yield [gr.skip()] * 5
            return
        first = True
        try:
            for conversation in self.conversations.send(rater, text, names, **more):
                yield [
                    "" if first else gr.skip(),
                    *self._shown(conversation, "" if first else None),
                ]
                first = False
        except UserError as error:
            shown = self._shown(self.conversations.of(rater), str(error))
            yield [text if first else gr.skip(), *shown]
            return
        yield ["" if first else gr.skip(), *self._final(rater, scored)]

    def on_retry(self, request: gr.Request, *options: Any) -> Iterator[Any]:
        """Answer the last message again."""
        names, more, scored = _options(options)
        rater = _name(request)
        yield from self._follow(rater, self.conversations.retry(rater, names, **more), scored)

    def on_edit(self, request: gr.Request, data: gr.EditData, *options: Any) -> Iterator[Any]:
        """Replace a message, and show the new answers."""
        names, more, scored = _options(options)
        index = data.index if isinstance(data.index, int) else data.index[0]
        number, text = index // 2, str(data.value)
        rater = _name(request)
        edited = self.conversations.edit(rater, number, text, names, **more)
        yield from self._follow(rater, edited, scored)

    def on_stop(self, request: gr.Request) -> None:
        """Stop generating answers."""
        self.conversations.stop(_name(request))

    def on_restart(self, request: gr.Request) -> list[Any]:
        """Start a new conversation."""
        return self._shown(self.conversations.restart(_name(request)))

    def _voting(self, choice: str) -> Any:
        def on_vote(request: gr.Request) -> list[Any]:
            rater = _name(request)
            try:
                conversation = self.conversations.vote(rater, choice)
            except UserError as error:
                return self._shown(self.conversations.of(rater), str(error))
            left, right = self.conversations.authors(conversation.turns[-1])
            return self._shown(
                conversation,
                f"Saved. The left answer is by {left}, the right one by {right}. The conversation "
                "continues with the better answer.",
            )

        on_vote.__name__ = f"on_vote_{choice}"
        return on_vote

    # ---- what is shown

    def _follow(
        self, rater: str, updates: Iterator[Conversation], scored: bool
    ) -> Iterator[list[Any]]:
        try:
            first = True
            for conversation in updates:
                yield self._shown(conversation, "" if first else None)
                first = False
        except UserError as error:
            yield self._shown(self.conversations.of(rater), str(error))
            return
        yield self._final(rater, scored)

    def _final(self, rater: str, scored: bool) -> list[Any]:
        """The rater's current conversation, which may have been replaced in the meantime."""
        if not scored:
            return self._shown(self.conversations.of(rater))
        try:
            return self._shown(self.conversations.score(rater))
        except UserError as error:
            return self._shown(self.conversations.of(rater), str(error))

    def _shown(
        self, conversation: Conversation, message: str | None = "", two: bool | None = None
    ) -> list[Any]:
        """Values of both sides, the message and the row of vote buttons.

        Args:
            message: None leaves the one that is there, which may answer another event.
            two: whether the second side is visible; None leaves that as it is.
        """
        turn = conversation.turns[-1] if conversation.turns else None
        if turn is not None and turn.scores and message == "":
            scores = " and ".join(f"{score:.2f}" for score in turn.scores)
            message = f"Reward role's score: {scores}."
        done = not conversation.busy
        can_vote = turn is not None and len(turn.answers) > 1 and done and turn.vote is None
        shown = gr.skip() if message is None else message
        right: Any = conversation.side(1)
        if two is not None:
            right = gr.Chatbot(value=right, visible=two)
        return [conversation.side(0), right, shown, gr.Row(visible=can_vote)]


def _chatbot(name: str, first: bool) -> gr.Chatbot:
    return gr.Chatbot(
        label=f"The {name} model's answers",
        show_label=False,
        visible=first,
        height=460,
        min_width=300,
        editable="user" if first else None,
        buttons=["copy"],
        allow_tags=AS_TEXT.split(),  # "allowed" tags are preserved, and so shown as text
        feedback_options=None,
        layout="bubble",
        placeholder="Write a message below.",
        elem_id=f"chat-{name}-side",
    )


def _name(request: gr.Request) -> str:
    rater = rater_of(request)
    if rater is None:
        raise gr.Error("You are not logged in any more. Reload the page.")
    return rater


def _options(values: tuple[Any, ...]) -> tuple[list[str], dict[str, Any], bool]:
    left, right, system, temperature, tokens, scored = values
    left = left or "newest"  # the message was sent before `fill` returned
    names = [left] if right in (None, NOBODY) else [left, right]
    more = {"system": system, "temperature": temperature, "max_new_tokens": tokens}
    return names, more, bool(scored)
