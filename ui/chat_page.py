"""The Chat page: one or two models answer the same conversation, side by side."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.chat import BEST_OF, Conversations
from lorarlhf_ui.chat_html import about, message_html, thread_html
from lorarlhf_ui.conversation import Conversation
from lorarlhf_ui.events import EVENT, FORGET_MODEL, IN_TURN, NEVER_DROPPED, asked_model, served
from lorarlhf_ui.security import rater_of
from lorarlhf_ui.theme import static

NOBODY = "nobody"
"""The choice of no second model."""
EMPTY = "One of the answers is empty, so there is nothing to compare. Answer again."
VOTES = {
    "left": "Left is better",
    "right": "Right is better",
    "tie": "Tie",
    "both_good": "Both good",
    "both_bad": "Both bad",
}
SCRIPTS = ("reach.js", "drafts.js", "raw.js", "heat_map.js", "chat_thread.js")
"""They run as one script on each side, in this order."""

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
            sides = (("left", True), ("right", False))
            self.sides = [_side(name, first, self.conversations) for name, first in sides]
        self.message = gr.HTML(
            elem_id="chat-message", elem_classes="page-message", apply_default_css=False
        )
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
            # Hidden until `fill` knows that there is a reward role to pick.
            self.best = gr.Radio(
                list(BEST_OF),
                value=1,
                label="Answers that the reward model picks from (you see the first one until then)",
                visible=False,
                elem_id="chat-best",
            )
            self.scored = gr.Checkbox(
                label="Show the reward role's score of each answer; of a pair, after your vote",
                elem_id="chat-scored",
            )

    def _connect(self) -> None:
        sampling = [self.system, self.temperature, self.tokens, self.best]
        options = [*self.models, *sampling, self.scored]
        shown = [*self.sides, self.message, self.votes]
        filled = [*self.models, *sampling, *shown]
        there = gr.on(None, self.fill, None, filled, **NEVER_DROPPED)
        there.then(None, None, None, js=FORGET_MODEL, **EVENT)
        self.sides[0].tick(self.on_tick, self.models, filled, **NEVER_DROPPED)
        gr.on(
            [self.text.submit, self.send.click],
            self.on_send,
            [self.text, *options],
            [self.text, *shown],
            **NEVER_DROPPED,
        )
        self.stop.click(self.on_stop, None, None, **IN_TURN)
        self.retry.click(self.on_retry, options, shown, **NEVER_DROPPED)
        self.sides[0].edit(self.on_edit, options, shown, **NEVER_DROPPED)
        self.restart.click(self.on_restart, None, shown, **IN_TURN)
        self.models[1].change(None, self.models[1], self.sides[1], js=SHOW_SECOND)
        for choice, button in self.vote_buttons.items():
            button.click(self._voting(choice), self.scored, shown, **IN_TURN)

    # ---- events

    def fill(self, request: gr.Request) -> Iterator[list[Any]]:
        """The models, and the rater's conversation with its settings; answers may still grow.

        A run that the page's address names is chosen as the model of the next answer.
        """
        rater = _name(request)
        models = self.conversations.prefetch.models
        conversation = self.conversations.of(rater)
        # The models whose answers are shown.
        places = conversation.models if conversation.turns else []
        current = [models.label(place).removeprefix("runs/") for place in places]
        choices = models.choices(also=current)
        names = [name for _, name in choices]
        current = current or names[1:2] or names[:1]
        if asked_model(request) in names:
            current[0] = asked_model(request)
        second = current[1] if len(current) > 1 else NOBODY
        nobody = [(NOBODY, NOBODY), *choices]
        yield [
            gr.Dropdown(choices=choices, value=current[0] if current[0] in names else names[0]),
            gr.Dropdown(choices=nobody, value=second if second in names else NOBODY),
            *_settings(conversation, self.conversations.reward.is_there()),
            *self._shown(rater, two=len(current) > 1),
        ]
        if conversation.job is not None:
            for shown in self._follow(rater, self.conversations.watch(rater), scored=False):
                yield [gr.skip()] * 6 + shown

    def on_tick(self, request: gr.Request, left: str, right: str) -> Iterator[list[Any]]:
        """`fill` once more, unless it has come in the meantime and the person has chosen."""
        if left:
            yield [gr.skip()] * 10
            return
        yield from self.fill(request)

    def on_send(self, request: gr.Request, text: str, *options: Any) -> Iterator[Any]:
        """Send a message, and show the answers while they are written."""
        names, more, scored = _options(options)
        rater = _name(request)
        if self.conversations.is_answering(rater, text):  # a double click, or Enter and a click
            yield [gr.skip()] * 5
            return
        first = True
        try:
            for _ in self.conversations.send(rater, text, names, **more):
                yield ["" if first else gr.skip(), *self._shown(rater, "" if first else None)]
                first = False
        except UserError as error:
            # What was typed since is in the field now, so the message comes back beside it.
            lost = "" if first else f" Your message is not answered: “{text.strip()}”"
            yield [text if first else gr.skip(), *self._shown(rater, f"{error}{lost}")]
            return
        yield ["" if first else gr.skip(), *self._final(rater, scored)]

    def on_retry(self, request: gr.Request, *options: Any) -> Iterator[Any]:
        """Answer the last message again."""
        names, more, scored = _options(options)
        rater = _name(request)
        yield from self._follow(rater, self.conversations.retry(rater, names, **more), scored)

    def on_edit(self, request: gr.Request, data: gr.EventData, *options: Any) -> Iterator[Any]:
        """Replace a message, and show the new answers."""
        names, more, scored = _options(options)
        rater = _name(request)
        number = data.turn if isinstance(data.turn, int) else -1
        edited = self.conversations.edit(rater, number, str(data.text), names, **more)
        yield from self._follow(rater, edited, scored)

    def on_stop(self, request: gr.Request) -> None:
        """Stop generating answers."""
        self.conversations.stop(_name(request))

    def on_restart(self, request: gr.Request) -> list[Any]:
        """Start a new conversation."""
        rater = _name(request)
        self.conversations.restart(rater)
        return self._shown(rater)

    def _voting(self, choice: str) -> Any:
        def on_vote(request: gr.Request, scored: bool) -> Iterator[list[Any]]:
            rater = _name(request)
            try:
                turn = self.conversations.vote(rater, choice).turns[-1]
            except UserError as error:
                yield self._shown(rater, str(error))
                return
            left, right = self.conversations.authors(turn)
            said = (
                f"Saved. The left answer is by {left}, the right one by {right}. The conversation "
                "continues with the better answer."
            )
            yield self._shown(rater, said)
            if not scored:
                return
            try:
                self.conversations.score(rater)
                more = about(turn)
            except UserError as error:
                more = str(error)
            turns = self.conversations.of(rater).turns
            if turns and turns[-1] is turn:  # nobody has gone on in the meantime
                yield self._shown(rater, f"{said} {more}")

        on_vote.__name__ = f"on_vote_{choice}"
        return on_vote

    # ---- what is shown

    def _follow(
        self, rater: str, updates: Iterator[Conversation], scored: bool
    ) -> Iterator[list[Any]]:
        try:
            first = True
            for _ in updates:
                yield self._shown(rater, "" if first else None)
                first = False
        except UserError as error:
            yield self._shown(rater, str(error))
            return
        yield self._final(rater, scored)

    def _final(self, rater: str, scored: bool) -> list[Any]:
        """The rater's current conversation, which may have been replaced in the meantime."""
        if not scored:
            return self._shown(rater)
        try:
            self.conversations.score(rater)
            return self._shown(rater)
        except UserError as error:
            return self._shown(rater, str(error))

    def _shown(self, rater: str, message: str | None = "", two: bool | None = None) -> list[Any]:
        """Values of both sides, the message and the row of vote buttons.

        Args:
            message: None leaves the one that is there, which may answer another event.
            two: whether the second side is visible; None leaves that as it is.
        """
        conversation = self.conversations.of(rater)
        turn = conversation.turns[-1] if conversation.turns else None
        if turn is not None and message == "":
            message = about(turn)
        can_vote = turn is not None and turn.open and not conversation.busy
        if can_vote and not all(answer.strip() for answer in conversation.turns[-1].answers):
            can_vote, message = False, message or EMPTY
        shown = gr.skip() if message is None else message_html(message)
        liked = conversation.judgeable
        if liked and not self.conversations.reward.is_there():
            liked = 0
        left, right = (thread_html(conversation.side(side), liked) for side in (0, 1))
        both: Any = right if two is None else gr.HTML(value=right, visible=two)
        return [left, both, shown, gr.Row(visible=can_vote)]


def _side(name: str, first: bool, conversations: Conversations) -> gr.HTML:
    return gr.HTML(
        value="",
        html_template=static("chat_thread.html").replace("NAME", name),
        js_on_load="".join(static(script) for script in SCRIPTS),
        server_functions=[served("shares", conversations.shares)],
        apply_default_css=False,
        visible=first,
        min_width=300,
        elem_id=f"chat-{name}-side",
    )


def _name(request: gr.Request) -> str:
    rater = rater_of(request)
    if rater is None:
        raise gr.Error("You are not logged in any more. Reload the page.")
    return rater


def _settings(conversation: Conversation, picks: bool) -> list[Any]:
    """System prompt, temperature, length and best of n of the last answers, or as they are.

    Args:
        picks: whether there is a reward role to pick the best.
    """
    if not conversation.turns:
        return [gr.skip()] * 3 + [gr.Radio(visible=picks)]
    options = conversation.options
    best = gr.Radio(value=options.get("best_of", 1) if picks else 1, visible=picks)
    return [conversation.system, options["temperature"], options["max_new_tokens"], best]


def _options(values: tuple[Any, ...]) -> tuple[list[str], dict[str, Any], bool]:
    left, right, system, temperature, tokens, best, scored = values
    left = left or "newest"  # the message was sent before `fill` returned
    names = [left] if right in (None, NOBODY) else [left, right]
    more = {"system": system, "temperature": temperature, "max_new_tokens": tokens}
    more["best_of"] = int(best or 1)
    return names, more, bool(scored)
