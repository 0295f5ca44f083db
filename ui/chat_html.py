"""A conversation as safe HTML, and what the reward role has to do with its last answers."""

import html

from lorarlhf_ui.conversation import Message, Turn
from lorarlhf_ui.markdown import render

LIKES = '<button type="button" data-do="shares">What the reward role likes</button>'


def message_html(message: str) -> str:
    """A message as text: it may quote what somebody wrote, which is no template of Gradio's."""
    return f'<p role="status">{html.escape(message).replace("{", "&#123;")}</p>' if message else ""


def about(turn: Turn) -> str:
    """What the reward role has to do with the answers of a turn, or ""."""
    lines = []
    if turn.scores and not turn.open:  # a score would sway the vote
        scores = " and ".join(f"{score:.2f}" for score in turn.scores)
        lines.append(f"Reward role's score: {scores}.")
    if turn.picked is not None and len(turn.answers) > 1:
        lines.append(f"Each answer is the best of {turn.picked.count}, picked by the reward role.")
    elif turn.picked is not None:
        lines.append(
            f"The best of {turn.picked.count} answers, picked by the reward role, with a score of "
            f"{turn.picked.scores[0]:.2f}. Picking moves the model by at most "
            f"{turn.picked.bound:.2f} nats (KL)."
        )
    return " ".join(lines)


def thread_html(messages: list[Message], liked: int = 0) -> str:
    """The messages on one side as HTML.

    Args:
        liked: of so many turns, the first ones, the reward role may say what it likes.
    """
    out = []
    for number, message in enumerate(messages):
        user = message["role"] == "user"
        kind, who = ("user", "You") if user else ("bot", "Answer")
        edit = '<button type="button" data-do="edit">Edit</button>' if user else ""
        text = render(message["content"]) or '<p class="faint">…</p>'
        likes = "" if user or number // 2 >= liked else LIKES
        out.append(
            f'<article class="message {kind}" data-testid="{kind}" data-turn="{number // 2}" '
            f'aria-label="{who}">{text}<div class="line">{edit}'
            f'<button type="button" data-do="copy">Copy</button>{likes}</div></article>'
        )
    return "".join(out)
