"""The collect page: two or more answers, a vote, the next ones."""

from lorarlhf_ui.judge import judge
from lorarlhf_ui.rate import Collecting


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
